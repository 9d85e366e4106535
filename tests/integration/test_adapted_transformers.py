"""Adapted models of transformers give the user's own logits and gradients, bit for bit."""

from __future__ import annotations

import pytest
import torch
from small_transformers import CLASSES, describe, make_model, make_values
from torch import nn

from expunge.models.call import ModelCall, adapt, detect_call, unadapt

pytest.importorskip("transformers")
KINDS = ("bert", "vit", "convnext", "swin", "resnet")


def adapt_model(model: nn.Module, kind: str) -> tuple[nn.Module, ModelCall]:
    fields = describe(kind)
    call = detect_call(model, fields.probe(2), CLASSES, fields)
    return adapt(model, call), call


def own_inputs(kind: str, count: int) -> dict[str, torch.Tensor]:
    """What the user's own collate function gives: padded to the longest record of the batch."""
    values = {name: torch.from_numpy(value) for name, value in make_values(kind, count).items()}
    if kind == "bert":
        longest = int(values["attention_mask"].sum(1).max())
        values = {name: value[:, :longest] for name, value in values.items()}
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_the_users_own(kind: str) -> None:
    model = make_model(kind).eval()
    adapted, call = adapt_model(model, kind)
    assert call.output == "logits"
    x, y = torch.from_numpy(describe(kind).pack_batch(make_values(kind, 6))), torch.arange(6) % CLASSES
    own = model(**own_inputs(kind, 6)).logits
    logits = adapted(x)
    assert torch.equal(logits, own)
    nn.functional.cross_entropy(own, y).backward()
    nn.functional.cross_entropy(logits, y).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, _ in adapted.named_parameters()] == list(gradients)
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name
    assert list(adapted.state_dict()) == list(model.state_dict())
    assert type(unadapt(adapted)) is type(model)


def test_positional_images_need_no_field() -> None:
    model = make_model("vit").eval()
    x = torch.rand(3, 3, 16, 16)
    call = detect_call(model, torch.zeros(2, 3, 16, 16), CLASSES)
    assert call == ModelCall(None, "logits")
    assert torch.equal(adapt(model, call)(x), model(x).logits)


def test_trimming_changes_logits_by_rounding_only_and_dropout_draws_are_the_users() -> None:
    model = make_model("bert")
    adapted, _ = adapt_model(model, "bert")
    values = make_values("bert", 5)
    x = torch.from_numpy(describe("bert").pack_batch(values))
    full = {name: torch.from_numpy(value) for name, value in values.items()}
    with torch.no_grad():
        assert torch.allclose(adapted.eval()(x), model.eval()(**full).logits, atol=1e-6)
        torch.manual_seed(3)
        own = model.train()(**own_inputs("bert", 5)).logits
        torch.manual_seed(3)
        assert torch.equal(adapted.train()(x), own)
