"""Small models of transformers from configs, and records for them; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from expunge import Records
from expunge.data.fields import Field, InputFields

CLASSES = 3
LENGTH = 8
IMAGE = (3, 16, 16)


def make_model(kind: str, seed: int | None = 0) -> nn.Module:
    """A classifier of transformers with 2 layers of width 32, in training mode; seed None: of the current generator."""
    import transformers as t

    image = {"image_size": 16, "num_labels": CLASSES}
    wide = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    configs: dict[str, Any] = {
        "bert": lambda: t.BertForSequenceClassification(
            t.BertConfig(vocab_size=40, max_position_embeddings=12, num_labels=CLASSES, **wide)
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(patch_size=8, **image, **wide)),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2, **image)
        ),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, **image)
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES
            )
        ),
    }
    if seed is not None:
        torch.manual_seed(seed)
    made: nn.Module = configs[kind]()
    return made


def make_values(kind: str, count: int) -> dict[str, np.ndarray]:
    """The inputs of `count` records, as the user's own code gives them to the model."""
    generator = np.random.default_rng(1)
    if kind != "bert":
        return {"pixel_values": generator.random((count, *IMAGE), dtype=np.float32)}
    lengths = generator.integers(3, LENGTH - 1, count)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    ids = generator.integers(1, 40, (count, LENGTH)) * mask
    return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}


def describe(kind: str) -> InputFields:
    """The fields of the inputs; images are one positional field."""
    if kind != "bert":
        return InputFields((Field("pixel_values", IMAGE, "float32"),))
    return InputFields.infer({name: value[0] for name, value in make_values(kind, 1).items()})


def make_records(kind: str, count: int = 48) -> Records:
    """Records whose labels follow from their inputs, so that training has something to learn."""
    values = make_values(kind, count)
    labels = np.arange(count) % CLASSES
    if kind == "bert":
        values["input_ids"][:, 1] = labels + 1
    else:
        values["pixel_values"] += labels[:, None, None, None].astype(np.float32)
    fields = describe(kind)
    names = tuple(f"class {k}" for k in range(CLASSES))
    ids = [f"r{row:03d}" for row in range(count)]
    return Records(kind, ids, labels, names, fields.pack_batch(values), fields=fields)
