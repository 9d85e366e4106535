"""SSD against loops over single records and over batches."""

from __future__ import annotations

from typing import Any

import plain_training as plain
import pytest
import torch
from torch.nn import functional as F

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime

KINDS = ["dense", "sparse", "mlp"]


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def squares(trained: Trained, digits: Records, ids: list[str], size: int) -> dict[str, torch.Tensor]:
    """Mean over batches of the squared gradient of the mean loss, in float64; of batches of one, it is the Fisher."""
    model = plain.copy_of(trained).double().eval()
    x, y = plain.all_inputs(digits, ids)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    parts = list(zip(x.split(size), y.split(size), strict=True))
    for inputs, labels in parts:
        model.zero_grad()
        F.cross_entropy(model(inputs.double()), labels).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.square()
    return {name: tensor / len(parts) for name, tensor in total.items()}


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("alpha", [1.5, 4.0])
def test_dampening(
    trained: Trained, legacy: bool, alpha: float, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """theta *= min(1, lambda F_D / F_f) where F_f > alpha F_D; buffers and pruned weights do not change."""
    size = 16 if legacy else 1
    rows = sorted(digits.rows(trained.split.retain).tolist())
    everything = squares(trained, digits, digits.record_ids[rows].tolist(), size)
    forget = squares(trained, digits, request_20.record_ids.tolist(), size)
    method = get_method("SSD", alpha=alpha, dampening=0.5, legacy=legacy, batch_size=16)
    outcome = method.forget(trained, request_20, context)
    after, changed = outcome.trained.model.state_dict(), 0
    masks = plain.masks_of(trained)
    for name, before in trained.model.named_parameters():
        kept = masks.get(name, torch.ones_like(before, dtype=torch.bool))
        factor = torch.where(
            (forget[name] > alpha * everything[name]) & kept, (0.5 * everything[name] / forget[name]).clamp(max=1), 1.0
        )
        close = (forget[name] - alpha * everything[name]).abs() < 1e-5 * forget[name]  # rounding decides
        expected = before.detach().double() * factor
        torch.testing.assert_close(after[name].double()[~close], expected[~close], rtol=1e-3, atol=1e-7)
        changed += int((factor < 1).sum())
    assert changed > 0
    assert {c.name for c in outcome.changes if c.status != "unchanged"} <= set(dict(trained.model.named_parameters()))
    assert outcome.cost.trained_records == len(rows) + (20 if legacy else 0)


def test_the_ratio_is_bounded_by_the_sizes(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """F_D includes D_f, so F_f / F_D is at most |D| / |D_f| = 14.5: a larger alpha dampens nothing."""
    outcome = get_method("SSD", alpha=14.6).forget(dense, request_20, context)
    assert outcome.rewrote == ()
    assert "0 of" in outcome.trained.provenance.history[-1]
    assert get_method("SSD", alpha=1.1).forget(dense, request_20, context).rewrote == ("weights",)


@pytest.mark.parametrize("options", [{}, {"fisher": "exact"}, {"legacy": True}])
def test_layers_outside_keep_their_bits(
    options: dict[str, Any], dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("SSD", alpha=1.0, only=("classifier",), **options).forget(dense, request_20, context)
    changed = {change.name for change in outcome.changes if change.status != "unchanged"}
    assert changed <= {"classifier.weight", "classifier.bias"}
    assert changed


def test_refusals(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(MethodError, match="called 'last'"):
        get_method("SSD", only=["last"]).forget(dense, request_20, context)
    with pytest.raises(MethodError, match="unknown fisher 'empiric'"):
        get_method("SSD", fisher="empiric")
    with pytest.raises(MethodError, match="labels of the records"):
        get_method("SSD", fisher="exact", legacy=True)
    with pytest.raises(MethodError, match="alpha = -1"):
        get_method("SSD", alpha=-1.0)
