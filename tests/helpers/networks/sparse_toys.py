"""Small records, splits and trained models for the sparsity tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from expunge.core.split import Split, as_ids
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.models import architecture
from expunge.models.architecture import Architecture
from expunge.training import Runtime, get_recipe, train

CPU = Runtime("cpu")


def toy_records(shape: tuple[int, ...], count: int = 240, classes: int = 4, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, *shape)).astype(np.float32)
    features = centres[labels] + 0.7 * rng.normal(size=(count, *shape)).astype(np.float32)
    ids = np.array([f"r{i:04d}" for i in range(count)])
    return Records("toy", ids, labels, tuple("abcdefgh"[:classes]), features=features)


def toy_split(records: Records) -> Split:
    ids, n = records.record_ids, len(records)
    return Split(
        retain=ids[: n // 2],
        forget=as_ids(()),
        validation=ids[n // 2 : 5 * n // 8],
        test=ids[5 * n // 8 : 7 * n // 8],
        non_members=ids[7 * n // 8 :],
    )


def toy_trained(
    name: str, shape: tuple[int, ...], *, epochs: int = 6, seed: int = 0, **options
) -> tuple[Trained, Records]:
    records = toy_records(shape)
    blueprint = architecture(name, records, normalise="none", **options)
    how = get_recipe("one-cycle", epochs=epochs, batch_size=40, rewind=0.2)
    return train(records, toy_split(records), blueprint, recipe=how, seed=seed, runtime=CPU), records


SHAPES = {"mlp": (20,), "cnn1d": (9, 128), "lenet5": (1, 28, 28)}
EASY = {"resnet20": {"width": 8}}


def randomised(blueprint: Architecture, seed: int = 0) -> nn.Module:
    """Build a network whose BatchNorm layers and biases are far from their initial values."""
    model = blueprint.build(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            elif getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    return model
