"""Ensembles with AdamW, clipping, label smoothing and parameters without decay: each member as `fit` trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError
from expunge.core.mask import Mask, MaskProvenance
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.ensemble import Member, train_ensemble

BASE: dict[str, Any] = {"epochs": 2, "batch_size": 32, "learning_rate": 0.02, "weight_decay": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"optimiser": "adamw", "lr_schedule": "linear", "lr_update": "step", "warmup_steps": 2},
    "adam": {"optimiser": "adam", "betas": (0.8, 0.9)},
    "clipping": {"clip_norm": 0.3},
    "smoothing": {"label_smoothing": 0.2},
    "no decay": {"no_decay": "bias-and-norm"},
}


def make_members(records: Records, architecture: Architecture) -> list[Member]:
    weight = architecture.build(0).get_parameter("hidden.0.weight")
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = Mask({"hidden.0.weight": kept}, MaskProvenance("example"))
    return [Member(np.arange(start, start + count), seed=start, mask=mask) for start, count in ((0, 80), (40, 80))]


@pytest.mark.parametrize("case", CASES)
def test_stacked_members_equal_single_ones(digits: Records, case: str) -> None:
    architecture = Architecture("mlp", {"widths": (8,)}, digits.input_shape, digits.classes)
    recipe, cpu = Recipe(**{**BASE, **CASES[case]}), Runtime("cpu")
    members = make_members(digits, architecture)
    ensemble = train_ensemble(digits, architecture, members, recipe=recipe, runtime=cpu)
    assert ensemble.engine == "vmap", "the products are those of plain SGD"
    assert ensemble.obstacle == ""
    for number, member in enumerate(members):
        model = architecture.build(member.seeds["initial"])
        context = Context(digits, cpu, member.seeds["order"])
        fit(model, member.rows, recipe, context, mask=member.mask)
        for name, tensor in ensemble.state(number).items():
            assert torch.allclose(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-5), name
        plain = architecture.build(member.seeds["initial"])
        fit(plain, member.rows, Recipe(**BASE), context, mask=member.mask)
        states = plain.state_dict(), model.state_dict()
        moved = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
        assert moved > 1e-4, "the case differs from plain SGD"


def test_the_products_engine_refuses_other_optimisers(digits: Records) -> None:
    architecture = Architecture("mlp", {"widths": (8,)}, digits.input_shape, digits.classes)
    with pytest.raises(ConfigError, match="plain SGD"):
        train_ensemble(
            digits, architecture, [Member(np.arange(20))], recipe=Recipe(epochs=1, optimiser="adamw"), engine="products"
        )


def test_products_follow_a_warm_up_in_steps(digits: Records) -> None:
    """Members with different numbers of steps in an epoch have different learning rates."""
    architecture = Architecture("mlp", {"widths": (8,)}, digits.input_shape, digits.classes)
    recipe, cpu = Recipe(**BASE, lr_schedule="cosine", lr_update="step", warmup_steps=3), Runtime("cpu")
    members = [Member(np.arange(120), seed=1), Member(np.arange(70), seed=2)]
    ensemble = train_ensemble(digits, architecture, members, recipe=recipe, runtime=cpu)
    assert ensemble.engine == "products"
    for number, member in enumerate(members):
        model = architecture.build(member.seeds["initial"])
        fit(model, member.rows, recipe, Context(digits, cpu, member.seeds["order"]))
        for name, tensor in ensemble.state(number).items():
            assert torch.allclose(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-5), name
