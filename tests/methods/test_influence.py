"""IU against closed forms, dense systems, and a transcription of the released code."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.influence_based.released_iu import N
from expunge.models import architecture
from expunge.training import Recipe, Runtime, train
from expunge.training.curvature import Curvature, conjugate_gradient, gradient, kronecker_factors

DECAY = 0.05


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double().numpy()


def change(trained: Trained, after: Trained) -> np.ndarray:
    return flat(after.model) - flat(trained.model)


# ---- logistic regression with an L2 penalty, in numpy


class Logistic:
    """Softmax regression with the penalty (DECAY / 2) |theta|^2: gradient, Hessian and optimum, in float64."""

    def __init__(self, x: np.ndarray, y: np.ndarray, classes: int) -> None:
        self.x, self.y, self.classes = np.hstack([x, np.ones((len(x), 1))]), y, classes

    def probabilities(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        logits = self.x[rows] @ theta.reshape(self.classes, -1).T
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def gradient(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        p = self.probabilities(theta, rows) - np.eye(self.classes)[self.y[rows]]
        return (p.T @ self.x[rows] / len(rows)).reshape(-1)

    def hessian(self, theta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        p = self.probabilities(theta, rows)
        inner = np.einsum("nk,kl->nkl", p, np.eye(self.classes)) - p[:, :, None] * p[:, None]
        full = np.einsum("nkl,ni,nj->kilj", inner, self.x[rows], self.x[rows]) / len(rows)
        return full.reshape(theta.size, theta.size)

    def optimum(self, rows: np.ndarray) -> np.ndarray:
        theta = np.zeros(self.classes * self.x.shape[1])
        for _ in range(50):
            penalised = self.hessian(theta, rows) + DECAY * np.eye(theta.size)
            theta = theta - np.linalg.solve(penalised, self.gradient(theta, rows) + DECAY * theta)
        return theta


def to_model(theta: np.ndarray, model: nn.Module, classes: int) -> None:
    (layer,) = [m for m in model.modules() if isinstance(m, nn.Linear)]
    rows = torch.from_numpy(theta.reshape(classes, -1)).float()
    with torch.no_grad():
        layer.weight.copy_(rows[:, :-1])
        layer.bias.copy_(rows[:, -1])


def to_theta(model: nn.Module) -> np.ndarray:
    (layer,) = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double().numpy().reshape(-1)


@pytest.fixture(scope="module")
def logistic() -> tuple[Trained, Context, ForgetRequest, Logistic]:
    """A logistic regression at its penalised optimum on 200 records, of which 10 are to be forgotten."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 4)).astype(np.float32)
    y = (x @ draw.normal(size=(4, 3)) + draw.normal(size=(300, 3))).argmax(1)
    ids = np.asarray([f"r{i:03d}" for i in range(300)])
    records = Records("table", ids, y, ("a", "b", "c"), features=x)
    split = Split(ids[:200], (), ids[200:220], ids[220:260], ids[260:])
    blueprint = architecture("mlp", records, widths=(), normalise="none")
    context = Context(records, Runtime("cpu"), seed=1)
    trained = train(records, split, blueprint, recipe=Recipe(epochs=1), seed=0, runtime=context.runtime)
    problem = Logistic(x.astype(np.float64), y, 3)
    to_model(problem.optimum(np.arange(200)), trained.model, 3)
    return trained, context, ForgetRequest(ids[:10]), problem


@pytest.mark.parametrize("inverse", ["cg", "lissa"])
def test_the_step_of_logistic_regression_is_the_newton_step(
    inverse: str, logistic: tuple[Trained, Context, ForgetRequest, Logistic]
) -> None:
    """theta + (H_r + decay)^-1 (N_f / N) (g_f - g_r), and close to the optimum without D_f."""
    trained, context, request, problem = logistic
    options: dict[str, Any] = {"lissa_steps": 3000} if inverse == "lissa" else {"steps": 100, "tolerance": 1e-7}
    method = get_method("IU", inverse=inverse, damping=DECAY, records=0, **options)
    outcome = method.forget(trained, request, context)
    theta, retain = to_theta(trained.model), np.arange(10, 200)
    v = 10 / 200 * (problem.gradient(theta, np.arange(10)) - problem.gradient(theta, retain))
    expected = theta + np.linalg.solve(problem.hessian(theta, retain) + DECAY * np.eye(theta.size), v)
    found = to_theta(outcome.trained.model)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    retrained = problem.optimum(retain)
    assert np.linalg.norm(found - retrained) < 0.05 * np.linalg.norm(theta - retrained)


def test_for_logistic_regression_both_matrices_are_the_same_and_alpha_scales_the_step(
    logistic: tuple[Trained, Context, ForgetRequest, Logistic],
) -> None:
    trained, context, request, _ = logistic
    choices = {
        "gauss-newton": {}, "hessian": {"curvature": "hessian"}, "half": {"alpha": 0.5}, "none": {"alpha": 0.0}
    }  # fmt: skip
    steps = {}
    for key, options in choices.items():
        method = get_method("IU", records=0, damping=DECAY, **options)
        steps[key] = change(trained, method.forget(trained, request, context).trained)
    np.testing.assert_allclose(steps["hessian"], steps["gauss-newton"], atol=1e-6)
    np.testing.assert_allclose(steps["half"], 0.5 * steps["gauss-newton"], atol=1e-6)
    assert np.abs(steps["none"]).max() == 0.0


def test_for_ridge_regression_the_step_ends_at_the_optimum_without_the_records() -> None:
    """A quadratic loss with its penalty as the damping: leave-k-out in closed form."""
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(40, 5)), draw.normal(size=(40, 2))

    def optimum(rows: np.ndarray) -> np.ndarray:
        gram = x[rows].T @ x[rows] / len(rows) + DECAY * np.eye(5)
        return np.linalg.solve(gram, x[rows].T @ y[rows] / len(rows)).T

    model = nn.Linear(5, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(optimum(np.arange(40))))
    targets = torch.from_numpy(y)

    def squares(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 0.5 * (outputs - targets[labels]).square().sum(1).mean()

    def batch(rows: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.from_numpy(x[rows]), torch.from_numpy(rows))]

    forget, retain = np.arange(4), np.arange(4, 40)
    gradients = [gradient(model, batch(rows), objective=squares)["weight"] for rows in (forget, retain)]
    v = {"weight": 0.1 * (gradients[0] - gradients[1])}
    matrix = Curvature(model, lambda: batch(retain), None, "gauss-newton", squares, damping=DECAY)
    step = conjugate_gradient(matrix, v, steps=50, tolerance=1e-12).x["weight"]
    np.testing.assert_allclose((model.weight + step).detach().numpy(), optimum(retain), atol=1e-10)


# ---- a network


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def parts(trained: Trained, records: Records, request: ForgetRequest) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """D_f and D_r as one batch each."""
    from expunge.data.batches import Batches

    rows = [records.rows(request.record_ids), records.rows(request.apply(trained.split).retain)]
    return [list(Batches(records, r, batch_size=10_000).in_order()) for r in rows]


def difference(model: nn.Module, forget: Any, retain: Any) -> dict[str, torch.Tensor]:
    removed = len(forget[0][0]) / (len(forget[0][0]) + len(retain[0][0]))
    g_f, g_r = gradient(model, forget), gradient(model, retain)
    return {name: removed * (g_f[name] - g_r[name]) for name in g_f}


@pytest.mark.parametrize("sparse_model", [False, True])
@pytest.mark.parametrize("inverse", ["cg", "kfac", "block-diagonal"])
def test_the_step_in_a_network_solves_its_system_on_the_kept_weights(
    inverse: str, sparse_model: bool, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    """The residual of the step, recomputed here: C dx + damping dx = v."""
    trained = request.getfixturevalue("sparse" if sparse_model else "dense")
    forget, retain = parts(trained, context.records, request_20)
    options: dict[str, Any] = {} if inverse == "kfac" else {"steps": 200, "tolerance": 1e-4}
    method = get_method("IU", inverse=inverse, records=0, damping=0.5, **options)
    outcome = method.forget(trained, request_20, context)
    v = difference(trained.model, forget, retain)
    before, after = dict(trained.model.named_parameters()), dict(outcome.trained.model.named_parameters())
    step = {name: (after[name] - before[name]).detach() for name in before}
    mask = trained.mask
    kept = {n: torch.ones_like(t, dtype=torch.bool) if mask is None else mask.kept.get(n, torch.ones_like(t) > 0)
            for n, t in step.items()}  # fmt: skip
    if inverse == "kfac":
        found = kronecker_factors(trained.model, retain, mask=mask).multiply(step, 0.5)
    elif inverse == "cg":
        found = Curvature(trained.model, lambda: retain, mask, "gauss-newton", damping=0.5).multiply(step)
    else:
        found = {}
        for prefix in sorted({name.rpartition(".")[0] for name in step}):
            names = tuple(name for name in step if name.rpartition(".")[0] == prefix)
            block = Curvature(trained.model, lambda: retain, mask, "gauss-newton", damping=0.5, names=names)
            found |= block.multiply({name: step[name] for name in names})
    size = math.sqrt(sum(float((v[n] * kept[n]).square().sum()) for n in v))
    error = math.sqrt(sum(float(((found[n] - v[n]) * kept[n]).square().sum()) for n in v))
    assert error < 2e-3 * size
    assert all((step[n][~kept[n]] == 0).all() for n in step)
    assert outcome.history[0]["inverse"] == inverse
    assert outcome.rewrote == ("weights",)


def test_the_cost_is_counted(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """One pass over D_f and D_r, and two passes over the sample for each product."""
    retain = len(request_20.apply(dense.split).retain)
    outcome = get_method("IU", records=100, steps=3, tolerance=0.0).forget(dense, request_20, context)
    assert outcome.cost.trained_records == 20 + retain + 3 * 2 * 100
    assert outcome.history[0]["products"] == 3
    outcome = get_method("IU", records=100, steps=1, curvature="hessian").forget(dense, request_20, context)
    assert outcome.cost.trained_records == 20 + retain + 4 * 100
    outcome = get_method("IU", records=0, inverse="kfac").forget(dense, request_20, context)
    assert outcome.cost.trained_records == 20 + retain + 16 * retain
    outcome = get_method("FF", records=100).forget(dense, request_20, context)
    assert outcome.cost.trained_records == 10 * 100
    outcome = get_method("FF", records=100, fisher="sampled", batch_norm="re-estimate").forget(
        dense, request_20, context
    )
    assert (outcome.cost.trained_records, outcome.cost.forward_records) == (2 * 100, retain)
    outcome = get_method("FF", legacy=True).forget(dense, request_20, context)
    assert outcome.cost.trained_records == 10 * retain


@pytest.mark.parametrize("sparse_model", [False, True])
def test_the_rank_one_step_equals_the_recursion_of_the_released_code(
    sparse_model: bool, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    """Full vectors, one record at a time, as the code has it; here in float64."""
    trained = request.getfixturevalue("sparse" if sparse_model else "dense")
    model = copy.deepcopy(trained.model).double().eval()
    kept = torch.cat([
        (torch.ones_like(p) if trained.mask is None else trained.mask.kept.get(n, torch.ones_like(p)).to(p)).reshape(-1)
        for n, p in model.named_parameters()
    ]).detach()  # fmt: skip
    forget, retain = parts(trained, context.records, request_20)

    def sum_of_gradients(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = functional.cross_entropy(model(x.double()), y, reduction="sum")
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]) * kept

    (x_f, y_f), (x_r, y_r) = forget[0], retain[0]
    total = len(x_f) + len(x_r)
    v = sum_of_gradients(x_f, y_f) / total - len(x_f) / (total * len(x_r)) * sum_of_gradients(x_r, y_r)
    k, o = v.clone(), torch.zeros_like(v)
    for i in range(min(len(x_r), N + 2)):
        g = sum_of_gradients(x_r[i : i + 1], y_r[i : i + 1])
        if i == 0:
            o = g.clone()
            continue
        below = N + o @ g
        k, o = k - (k @ g) / below * o, o - (o @ g) / below * o
    outcome = get_method("IU", legacy=True, alpha=2.0, batch_size=50).forget(trained, request_20, context)
    found = torch.from_numpy(change(trained, outcome.trained))
    torch.testing.assert_close(found, 2.0 * k, rtol=1e-3, atol=1e-6)
    first = sum_of_gradients(x_r[:1], y_r[:1])
    rest = found / 2.0 - v
    assert abs(float(rest @ first / (rest.norm() * first.norm()))) > 0.999, "the inverse is more than one vector"


def test_the_released_code_reads_the_first_1002_records() -> None:
    """Of more records than that, with the gradients of softmax regression from their formula."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(1100, 3)).astype(np.float32)
    x[[1021, 1022]] *= 20  # the last record that is read, and the next one: each alone makes a difference
    y = (x @ draw.normal(size=(3, 3))).argmax(1)
    ids = np.asarray([f"r{i:04d}" for i in range(1100)])
    records = Records("table", ids, y, ("a", "b", "c"), features=x)
    split = Split(ids[:1060], (), ids[1060:1070], ids[1070:1090], ids[1090:])
    blueprint = architecture("mlp", records, widths=(), normalise="none")
    context = Context(records, Runtime("cpu"), seed=1)
    trained = train(records, split, blueprint, recipe=Recipe(epochs=0), seed=0, runtime=context.runtime)
    to_model(0.01 * draw.normal(size=12), trained.model, 3)
    request = ForgetRequest(ids[:20])
    outcome = get_method("IU", legacy=True).forget(trained, request, context)
    theta, ones = to_theta(trained.model).reshape(3, -1), np.hstack([x.astype(np.float64), np.ones((1100, 1))])
    p = np.exp(ones @ theta.T)
    slopes = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    g = np.einsum("nk,ni->nki", slopes, ones).reshape(1100, -1)
    forget, retain = g[:20], g[20:1060]
    v = 20 / 1060 * (forget.mean(0) - retain.mean(0))
    k, o = v.copy(), retain[0].copy()
    last = np.zeros(2)
    for i in range(1, 1003):
        below = 1000 + o @ retain[i]
        change = (k @ retain[i]) / below * o
        last = np.array([last[1], np.abs(change).max()])
        if i < 1002:
            k, o = k - change, o - (o @ retain[i]) / below * o
    assert last.min() > 3e-6, "one record more or less would not show"
    found = to_theta(outcome.trained.model) - theta.ravel()
    np.testing.assert_allclose(found, k, atol=1e-6)
    assert outcome.cost.trained_records == 20 + 1040 + 1 + 2 * 1002
