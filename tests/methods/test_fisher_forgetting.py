"""FF against its formula and a transcription of the released code; refusals of FF and IU."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import MethodError, TrainingError
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime
from expunge.training.curvature import diagonal_fisher


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double().numpy()


def change(trained: Trained, after: Trained) -> np.ndarray:
    return flat(after.model) - flat(trained.model)


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def parts(trained: Trained, records: Records, request: ForgetRequest) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """D_f and D_r as one batch each."""
    from expunge.data.batches import Batches

    rows = [records.rows(request.record_ids), records.rows(request.apply(trained.split).retain)]
    return [list(Batches(records, r, batch_size=10_000).in_order()) for r in rows]


def test_the_noise_has_the_stated_variance(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """Standardised with the Fisher information of records, the noise of many seeds is standard normal."""
    _, retain = parts(dense, context.records, request_20)
    for options, kind, exponent in (
        ({}, "exact", 0.5), ({"exponent": 1.0, "damping": 1e-3, "fisher": "empirical"}, "empirical", 1.0)
    ):  # fmt: skip
        fisher = torch.cat([f.reshape(-1) for f in diagonal_fisher(dense.model, retain, kind=kind).values()]).double()
        std = (1e-6 * (fisher + options.get("damping", 1e-8)) ** -exponent).sqrt().numpy()
        method = get_method("FF", alpha=1e-6, **options)
        draws = [
            change(dense, method.forget(dense, request_20, dataclasses.replace(context, seed=seed)).trained) / std
            for seed in range(8)
        ]
        values = np.stack(draws)
        count = values.size
        assert abs(values.mean()) < 4 / math.sqrt(count)
        assert abs(values.var() - 1) < 4 * math.sqrt(2 / count)
        low = np.argsort(std)[: len(std) // 4]  # the variance holds where the Fisher information is large too
        assert abs(values[:, low].var() - 1) < 5 * math.sqrt(2 / values[:, low].size)
        assert abs(np.corrcoef(values[0], values[1])[0, 1]) < 0.2


def test_the_optimal_covariance_has_the_exponent_of_the_papers() -> None:
    """Among powers of F, F^(-1/2) minimises tr(F S) / (2 alpha) + alpha tr(S^-1) / 2."""
    fisher, alpha = np.array([1e-4, 1e-2, 1.0, 30.0]), 1e-3

    def cost(s: np.ndarray) -> float:
        return float((fisher * s).sum() / (2 * alpha) + alpha * (1 / s).sum() / 2)

    best = cost(alpha * fisher**-0.5)
    for power in (-1.0, -0.6, -0.4, 0.0):
        assert cost(alpha * fisher**power) > best
    for bump in np.eye(4):
        assert cost(alpha * fisher**-0.5 * (1 + 0.1 * bump)) > best


@pytest.mark.parametrize("whole_class", [False, True])
def test_the_noise_of_the_released_code(
    whole_class: bool, sparse: Trained, request_20: ForgetRequest, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and standard deviation against a transcription; the draws are replaced by ones."""
    records, request = context.records, request_20
    if whole_class:
        ids = sparse.split.retain
        ids = ids[records.labels[records.rows(ids)] == 3]
        request = ForgetRequest(ids, selection={"by": "class"}, forgotten_class=3)
    _, retain = parts(sparse, records, request)
    model, (x, y) = copy.deepcopy(sparse.model).eval(), retain[0]
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    chunks = list(zip(x.split(32), y.split(32), strict=True))
    for images, labels in chunks:
        logits = model(images)
        p = logits.softmax(1).detach()
        for label in range(10):
            model.zero_grad()
            functional.cross_entropy(logits, torch.full_like(labels, label)).backward(retain_graph=True)
            for name, parameter in model.named_parameters():
                squares[name] += p[:, label].mean() * parameter.grad.square()
    expected = {}
    for name, parameter in model.named_parameters():
        kept = sparse.mask.kept.get(name, torch.ones_like(parameter) > 0)
        var = 1 / (squares[name] * kept / len(chunks) + 1e-8)
        var = var.clamp(max=1e3)
        if parameter.shape[0] == 10:
            var = var.clamp(max=1e2)
        var = 3e-8 * var
        if parameter.ndim > 1:
            var = var.mean(dim=1, keepdim=True).expand_as(parameter).clone()
        mu = parameter.detach().clone()
        if parameter.shape[0] == 10 and whole_class:
            mu[3], var[3] = 0, 1e-4
        if parameter.shape[0] == 10 or parameter.ndim == 1:
            var = var * 10
        expected[name] = torch.where(kept, mu + var.sqrt(), 0.0)
    from expunge.methods.influence_based import ff

    monkeypatch.setattr(ff.torch, "randn", lambda shape, generator=None: torch.ones(shape))
    outcome = get_method("FF", legacy=True, alpha=3e-8).forget(sparse, request, context)
    for name, parameter in outcome.trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_buffers_and_the_forget_set(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """FF reads no record of D_f; buffers are frozen, or those of one pass over D_r with the new weights."""
    features = np.array(context.records.features)
    features[context.records.rows(request_20.record_ids)] = 77
    changed = dataclasses.replace(context, records=dataclasses.replace(context.records, features=features))
    buffers = {}
    for name, options in (("FF", {"fisher": "sampled"}), ("IU", {"records": 50, "steps": 2})):
        for mode in ("frozen", "re-estimate"):
            method = get_method(name, batch_norm=mode, **options)
            outcome = method.forget(dense, request_20, context)
            buffers[name, mode] = hash_tensors(dict(outcome.trained.model.named_buffers()))
            if name == "FF":
                assert method.forget(dense, request_20, changed).trained.hash == outcome.trained.hash
    original = hash_tensors(dict(dense.model.named_buffers()))
    assert buffers["FF", "frozen"] == buffers["IU", "frozen"] == original
    assert original not in (buffers["FF", "re-estimate"], buffers["IU", "re-estimate"])


def test_in_unpruning_and_in_a_sequence(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    for name, options in (("FF", {"fisher": "sampled"}), ("IU", {"records": 50, "steps": 2})):
        around = get_method("Un-prune", method=name, method_options=options, final_epochs=0)
        outcome = around.forget(sparse, request_20, context)
        assert outcome.trained.mask is not None
        assert outcome.trained.mask.count_violations(outcome.trained.model) == {}
        next_request = ForgetRequest(outcome.trained.split.retain[:10])
        second = get_method(name, **options).forget(outcome.trained, next_request, context)
        assert len(second.trained.split.forget) == 30


# ---- refusals

REFUSALS = [
    ("FF", {"alpha": -1.0}, "alpha"),
    ("FF", {"damping": 0.0}, "damping"),
    ("FF", {"exponent": -0.5}, "exponent"),
    ("FF", {"fisher": "exakt"}, "did you mean 'exact'"),
    ("FF", {"batch_norm": "train"}, "takes no training step"),
    ("FF", {"legacy": True, "exponent": 1.0}, "exponent has no effect with legacy=True"),
    ("IU", {"damping": 0.0}, "damping"),
    ("IU", {"alpha": float("nan")}, "alpha"),
    ("IU", {"steps": 0}, "steps"),
    ("IU", {"inverse": "k-fac"}, "did you mean 'kfac'"),
    ("IU", {"curvature": "newton"}, "gauss-newton"),
    ("IU", {"inverse": "kfac", "curvature": "hessian"}, "curvature has no effect with inverse=kfac"),
    ("IU", {"lissa_steps": 5}, "lissa_steps has no effect with inverse=cg"),
    ("IU", {"legacy": True, "inverse": "kfac"}, "inverse has no effect with legacy=True"),
    ("IU", {"batch_norm": "frosen"}, "did you mean 'frozen'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), REFUSALS)
def test_options_that_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        get_method(name, **options)


def test_plans_drop_options_without_effect() -> None:
    from expunge.methods.registry import method_class

    kept, dropped = method_class("IU").drop_unused({"inverse": "kfac", "steps": 5, "damping": 0.1})
    assert (kept, dropped) == ({"inverse": "kfac", "damping": 0.1}, {"steps": 5})


def untracked(trained: Trained) -> Trained:
    model = copy.deepcopy(trained.model)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return dataclasses.replace(trained, model=model)


@pytest.mark.parametrize("name", ["FF", "IU"])
def test_a_loss_that_is_no_sum_over_records_is_refused(
    name: str, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    with pytest.raises(MethodError, match="a loss that is a sum over records"):
        get_method(name).forget(untracked(dense), request_20, context)
    reason = get_method(name).unsupported_reason(untracked(dense).model, context.records)
    assert reason is not None
    assert get_method(name).unsupported_reason(dense.model, context.records) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FF", {}, "the Fisher information is not finite"),
        ("IU", {}, "the difference of the gradients on the forget and the retain set is not finite"),
        ("IU", {"legacy": True}, "the difference of the gradients"),
    ],
)
def test_values_that_are_not_finite_stop(
    name: str, options: dict[str, Any], message: str, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    model = copy.deepcopy(dense.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(TrainingError, match=message):
        get_method(name, **options).forget(dataclasses.replace(dense, model=model), request_20, context)


def test_a_step_that_is_too_long_stops(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(TrainingError, match=r"(after|change of) FF is not finite"):
        get_method("FF", alpha=1e300, fisher="sampled", exponent=4.0).forget(dense, request_20, context)
    with pytest.raises(TrainingError, match="LiSSA diverges"):
        get_method("IU", inverse="lissa", lissa_scale=1e-3).forget(dense, request_20, context)


def test_second_derivatives_are_needed_by_products_and_by_the_method_inside_unpruning() -> None:
    from expunge.sparsity import get_schedule

    assert get_method("IU").needed_curvature(None) == "gauss-newton"
    assert get_method("IU", curvature="hessian").needed_curvature(None) == "hessian"
    assert get_method("IU", inverse="kfac").needed_curvature(None) is None
    assert get_method("FF").needed_curvature(None) is None
    around = get_method("Un-prune", rule="magnitude", method="IU", method_options={"curvature": "hessian"})
    assert around.needed_curvature(get_schedule("one-shot")) == "hessian"
    assert around.for_dense_model() == get_method("IU", curvature="hessian")
    assert get_method("Un-prune", rule="influence").for_dense_model().needed_curvature(None) is None
