"""Fanchuan and MSG against plain PyTorch on the same batches."""

from __future__ import annotations

import math

import numpy as np
import plain_training as plain
import pytest
import torch
from torch.nn import functional as F

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
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


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_fanchuan(trained: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """Three optimisers of torch with their own momentum, and its cosine schedule."""
    forget = request_20.record_ids.tolist()
    retain = [i for i in trained.split.retain.tolist() if i not in set(forget)]
    seed, masks = plain.method_seed(1, "Fanchuan"), plain.masks_of(trained)
    model = plain.copy_of(trained)
    uniform, contrast, repair = plain.sgd(model, 5e-3, 0), plain.sgd(model, 3e-3, 0), plain.sgd(model, 4e-3, 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(contrast, T_max=3 * 3, eta_min=1e-6)  # 3 epochs of 3 batches

    def to_uniform(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (0.1 * (math.log(0.1) - F.log_softmax(model(x), 1))).sum(1).mean()

    plain.train_by_hand(model, uniform, plain.batches_of(digits, forget, 8, seed, 0), to_uniform, masks)
    for epoch in range(3):
        plain.train_mode(model)
        partners = plain.batches_of(digits, retain, 8, derive(seed, "partner", epoch), 0)
        for (x, _), (other, _) in zip(plain.batches_of(digits, forget, 8, seed, 2 * epoch + 1), partners, strict=False):
            z = model(x)
            constant = model(other).detach()
            plain.step(model, contrast, -F.log_softmax(z @ constant.T / 1.15, -1).mean(), masks)
            schedule.step()
        batches = plain.batches_of(digits, retain, 8, seed, 2 * epoch + 2)
        plain.train_by_hand(model, repair, batches, lambda x, y: F.cross_entropy(model(x), y), masks)
    method = get_method("Fanchuan", epochs=3, batch_size=8, contrast_learning_rate=3e-3)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 5e-6)
    assert outcome.cost.trained_records == 4 * 20 + 3 * len(retain)
    assert outcome.cost.forward_records == 3 * 24


@pytest.mark.parametrize("trained", ["dense", "sparse"], indirect=True)
@pytest.mark.parametrize("layers", [("conv",), ("conv", "linear")])
def test_msg(
    trained: Trained, layers: tuple[str, ...], digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """Per layer the smallest gradient differences of kept weights, fresh values, and slowed gradients elsewhere."""
    forget = request_20.record_ids.tolist()
    retain = [i for i in trained.split.retain.tolist() if i not in set(forget)]
    seed, masks = plain.method_seed(1, "MSG"), plain.masks_of(trained)
    keys = mix(digits.keys[digits.rows(retain)], derive(derive(seed, "sample", "retain"), "order", 0))
    sample = [retain[i] for i in np.argsort(keys, kind="stable")[:20]]
    model = plain.copy_of(trained)
    tried = plain.copy_of(trained).eval()
    loss = [F.cross_entropy(tried(x), y) for x, y in (plain.all_inputs(digits, ids) for ids in (sample, forget))]
    (loss[0] - loss[1]).backward()
    wanted = {"conv": 4, "linear": 2}
    names = [n for n, p in model.named_parameters() if p.dim() in {wanted[layer] for layer in layers}]
    generator = torch.Generator().manual_seed(derive(seed, "initial"))
    chosen = {}
    for name in names:
        weight, grad = model.get_parameter(name), tried.get_parameter(name).grad.abs()
        kept = masks.get(name, torch.ones_like(grad, dtype=torch.bool))
        smallest = grad[kept].sort().values[: round(0.3 * int(kept.sum()))]
        chosen[name] = kept & (grad <= smallest[-1])
        drawn = torch.randn(weight.shape, generator=generator)
        drawn *= math.sqrt(2 / (weight.shape[0] * math.prod(weight.shape[2:])))
        with torch.no_grad():
            weight[chosen[name]] = drawn[chosen[name]]
    optimiser = plain.sgd(model, 1.0)
    for epoch, share in enumerate((1 / 2, 1, 2 / 3, 1 / 3)):
        optimiser.param_groups[0]["lr"] = 0.03 * share
        plain.train_mode(model)
        for x, y in plain.batches_of(digits, retain, 16, seed, epoch):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for name in names:
                model.get_parameter(name).grad[~chosen[name]] *= 0.1
            for name, kept in masks.items():
                model.get_parameter(name).grad[~kept] = 0
            optimiser.step()
            with torch.no_grad():
                for name, kept in masks.items():
                    model.get_parameter(name)[~kept] = 0
    method = get_method("MSG", epochs=4, batch_size=16, learning_rate=0.03, layers=layers)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 2e-6)
    assert outcome.cost.trained_records == 40 + 4 * len(retain)


def test_msg_without_convolutions(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(MethodError, match="without one MSG is FT"):
        get_method("MSG").forget(mlp, request_20, context)
    assert get_method("MSG").unsupported_reason(mlp.model, context.records) is not None
    with pytest.raises(MethodError, match="unknown layer type 'con'"):
        get_method("MSG", layers=["con"])
