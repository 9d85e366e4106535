"""Warnecke's updates and NTK forgetting on linear models, where dense solutions are known."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import linear_models as linear
import numpy as np
import pytest
import torch

from expunge.core.errors import MethodError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.data import blank_columns, correct_labels, correct_records
from expunge.data.records import Records
from expunge.methods import Context, get_method, method_class
from expunge.methods.one_step.ntk import half_squares
from expunge.models import Architecture
from expunge.training import Recipe, Runtime

EXACT: dict[str, Any] = {"steps": 200, "tolerance": 1e-7}


@pytest.fixture(scope="module")
def drawn() -> tuple[Records, Split]:
    return linear.draw_records()


def make_request(kind: str, records: Records, split: Split) -> ForgetRequest:
    ids = split.retain[[1, 8, 20]]
    if kind == "removal":
        return ForgetRequest(ids)
    if kind == "labels":
        return correct_labels(records, split, {str(i): int(records.labels[records.rows([i])[0]] + 1) % 3 for i in ids})
    return blank_columns(records, split, ids, [0, 3])


def parts(records: Records, request: ForgetRequest, split: Split) -> tuple[Any, Any, Any]:
    """Old values, new values, and all training records after the request."""
    after = request.apply(split)
    corrected = correct_records(records, after.corrections)
    old = linear.arrays(records, request.record_ids)
    new = linear.arrays(corrected, request.record_ids if request.correction else [])
    return old, new, linear.arrays(corrected, after.retain)


def gradient_sum(x: np.ndarray, y: np.ndarray, theta: np.ndarray, decay: float) -> np.ndarray:
    """Summed gradient of CE + decay / 2 |theta|^2, from its formula."""
    ones = linear.with_ones(x)
    hot = np.eye(len(theta))[y]
    return (linear.softmax(ones @ theta.T) - hot).T @ ones + len(x) * decay * theta


@pytest.mark.parametrize("kind", ["removal", "labels", "columns"])
def test_warnecke_on_softmax_regression(kind: str, drawn: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = drawn
    original = linear.fit_softmax(*linear.arrays(records, split.retain), 3)
    trained = linear.make_trained(records, split, original)
    request, context = make_request(kind, records, split), Context(records, cpu)
    old, new, rest = parts(records, request, split)
    theta = linear.get_theta(trained)  # rounded to float32
    change = gradient_sum(*new, theta, linear.DECAY) - gradient_sum(*old, theta, linear.DECAY)
    first = get_method("Warnecke-1", tau=0.01).forget(trained, request, context).trained
    np.testing.assert_allclose(linear.get_theta(first), theta - 0.01 * change, atol=1e-6)
    second = get_method("Warnecke-2", damping=0.0, **EXACT).forget(trained, request, context).trained
    hessian = linear.softmax_hessian(linear.with_ones(rest[0]), theta)
    hessian += len(rest[0]) * linear.DECAY * np.eye(theta.size)
    newton = theta - np.linalg.solve(hessian, change.ravel()).reshape(theta.shape)
    np.testing.assert_allclose(linear.get_theta(second), newton, atol=1e-6)
    retrained = linear.fit_softmax(*rest, 3)
    left = np.linalg.norm(linear.get_theta(second) - retrained) / np.linalg.norm(theta - retrained)
    assert left < 0.25, f"{left:.3f} of the distance to the retrained model is left"
    assert np.linalg.norm(linear.get_theta(first) - retrained) < np.linalg.norm(theta - retrained)


@pytest.mark.parametrize("kind", ["removal", "labels", "columns"])
def test_warnecke_second_order_on_ridge_regression_gives_the_retrained_model(
    kind: str, drawn: tuple[Records, Split], cpu: Runtime
) -> None:
    class Ridge(method_class("Warnecke-2")):
        """The same update for the squared loss, which is quadratic."""

        objective = staticmethod(half_squares)

    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_ridge(*linear.arrays(records, split.retain), 3))
    request = make_request(kind, records, split)
    outcome = Ridge(damping=0.0, **EXACT).forget(trained, request, Context(records, cpu))
    retrained = linear.fit_ridge(*parts(records, request, split)[2], 3)
    np.testing.assert_allclose(linear.get_theta(outcome.trained), retrained, atol=1e-6)
    assert np.abs(linear.get_theta(trained) - retrained).max() > 1e-3, "the request changes nothing"


@pytest.mark.parametrize("kind", ["removal", "labels"])
def test_warnecke_on_the_kept_weights(kind: str, drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """A pruned ridge regression: the Newton step solves on the kept weights alone, which is not a part of the whole."""

    class Ridge(method_class("Warnecke-2")):
        objective = staticmethod(half_squares)

    records, split = drawn
    kept = np.random.default_rng(1).random((3, 5)) < 0.6
    theta = linear.fit_ridge(*linear.arrays(records, split.retain), 3, kept=kept)
    trained = linear.make_trained(records, split, theta, kept)
    request, context = make_request(kind, records, split), Context(records, cpu)
    outcome = Ridge(damping=0.0, **EXACT).forget(trained, request, context)
    retrained = linear.fit_ridge(*parts(records, request, split)[2], 3, kept=kept)
    np.testing.assert_allclose(linear.get_theta(outcome.trained), retrained, atol=1e-6)
    assert outcome.history[0]["residual"] < 1e-6
    old, new, _ = parts(records, request, split)
    change = gradient_sum(*new, theta, linear.DECAY) - gradient_sum(*old, theta, linear.DECAY)
    first = get_method("Warnecke-1", tau=0.01).forget(trained, request, context).trained
    free = np.hstack([kept, np.ones((3, 1), bool)])
    np.testing.assert_allclose(linear.get_theta(first), np.where(free, theta - 0.01 * change, 0.0), atol=1e-6)


def test_a_newton_step_of_the_last_tensor(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """Its equations are those of the bias, with the weights fixed."""
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    request, theta = make_request("labels", records, split), linear.get_theta(trained)
    old, new, rest = parts(records, request, split)
    change = gradient_sum(*new, theta, 0.2) - gradient_sum(*old, theta, 0.2)
    hessian = linear.softmax_hessian(linear.with_ones(rest[0]), theta)[5::6, 5::6] + len(rest[0]) * 0.2 * np.eye(3)
    method = get_method("Warnecke-2", damping=0.0, weight_decay=0.2, last_tensors=1, **EXACT)
    expected = theta.copy()
    expected[:, -1] -= np.linalg.solve(hessian, change[:, -1])
    found = linear.get_theta(method.forget(trained, request, Context(records, cpu)).trained)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - theta).max() > 1e-3


def test_the_hessian_of_a_linear_model_is_its_gauss_newton_matrix(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    request, context = make_request("removal", records, split), Context(records, cpu)
    found = [
        get_method("Warnecke-2", curvature=name, **EXACT).forget(trained, request, context).trained
        for name in ("gauss-newton", "hessian")
    ]
    np.testing.assert_allclose(linear.get_theta(found[0]), linear.get_theta(found[1]), atol=1e-6)


def test_lissa_converges_to_the_same_step(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    request, context = make_request("labels", records, split), Context(records, cpu)
    exact = get_method("Warnecke-2", damping=0.5, **EXACT).forget(trained, request, context).trained
    method = get_method("Warnecke-2", damping=0.5, solver="lissa", scale=4.0, steps=300)  # one batch of all records
    outcome = method.forget(trained, request, context)
    np.testing.assert_allclose(linear.get_theta(outcome.trained), linear.get_theta(exact), atol=1e-6)
    assert outcome.cost.trained_records == 6 + 300 * 2 * 36
    for options in ({"solver": "lissa"}, {"scale": 2.0}, {"solver": "lisa", "scale": 1.0}):
        with pytest.raises(MethodError, match=r"scale|solver"):
            get_method("Warnecke-2", **options)


def test_legacy_lissa_is_the_recursion_of_the_released_code(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """u <- v + (1 - damping) u - H_batch u / scale with *summed* losses, and u / scale at the end."""
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    request, context, theta = make_request("labels", records, split), Context(records, cpu), linear.get_theta(trained)
    old, new, (x, _) = parts(records, request, split)
    change = (gradient_sum(*new, theta, 0.0) - gradient_sum(*old, theta, 0.0)).ravel()
    size, scale, damping, steps = 14, 20.0, 0.01, 25
    assert len(x) % size, "the last batch is as large as the others"
    u = change
    for step in range(steps):
        start = step * size % (-(-len(x) // size) * size)
        hessian = linear.softmax_hessian(linear.with_ones(x[start : start + size]), theta)
        u = change + (1 - damping) * u - hessian @ u / scale
    method = get_method(
        "Warnecke-2", solver="lissa", legacy=True, batch_size=size, scale=scale / size, damping=damping * scale / size,
        steps=steps, weight_decay=0.0, curvature="hessian",
    )  # fmt: skip
    found = linear.get_theta(method.forget(trained, request, context).trained)
    expected = theta - (u / scale).reshape(theta.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    ours = linear.get_theta(dataclasses.replace(method, legacy=False).forget(trained, request, context).trained)
    assert np.linalg.norm(found - theta) > 1.5 * np.linalg.norm(ours - theta)
    with pytest.raises(MethodError, match="legacy has no effect with cg"):
        get_method("Warnecke-2", legacy=True)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("point", ["trained", "initial"])
def test_ntk_on_ridge_regression_gives_the_retrained_model(
    point: str, sparse: bool, drawn: tuple[Records, Split], cpu: Runtime
) -> None:
    records, split = drawn
    kept = None
    if sparse:
        kept = np.random.default_rng(1).random((3, 5)) < 0.6
    original = linear.fit_ridge(*linear.arrays(records, split.retain), 3, kept=kept)
    trained = linear.make_trained(records, split, original, kept)
    request = make_request("removal", records, split)
    method = get_method("NTK", residual="squared", point=point, **EXACT)
    outcome = method.forget(trained, request, Context(records, cpu))
    after = request.apply(split)
    retrained = linear.fit_ridge(*linear.arrays(records, after.retain), 3, kept=kept)
    np.testing.assert_allclose(linear.get_theta(outcome.trained), retrained, atol=1e-6)
    assert np.abs(original - retrained).max() > 1e-3, "the request changes nothing"
    if kept is not None:
        pruned = outcome.trained.model.classifier.weight.detach()[torch.from_numpy(~kept)]
        assert not pruned.any()
        assert not torch.signbit(pruned).any()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("point", ["trained", "initial"])
def test_ntk_of_a_network_is_the_dense_solution_at_its_point(
    point: str, sparse: bool, drawn: tuple[Records, Split], cpu: Runtime
) -> None:
    """(J^T J / n + lambda I) w = -(J^T r / n + lambda theta_a), with J and r at theta_a, for D and for D_r."""
    records, split = drawn
    network = Architecture("mlp", {"widths": (4,)}, records.input_shape, records.classes)
    model, generator = network.build(4), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.4 * torch.randn(weight.shape, generator=generator))
    names = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in names.items()}
    mask = None
    if sparse:
        mask = Mask({n: torch.rand(w.shape, generator=generator) < 0.7 for n, w in names.items() if w.dim() == 2},
                    MaskProvenance("drawn"))  # fmt: skip
        kept |= mask.kept
        mask.apply_(model)
    base = linear.make_trained(records, split, np.zeros((3, 6)))
    provenance = dataclasses.replace(base.provenance, architecture=network.to_json())
    trained = dataclasses.replace(base, model=model, mask=mask, provenance=provenance)
    request = make_request("removal", records, split)
    method = get_method("NTK", point=point, steps=300, tolerance=1e-7)
    outcome = method.forget(trained, request, Context(records, cpu))

    start = copy.deepcopy(network.build(4) if point == "initial" else model).double()
    at = {name: weight.detach() * kept[name] for name, weight in start.named_parameters()}
    flat_kept = torch.cat([kept[name].reshape(-1) for name in at])
    theta = torch.cat([weight.reshape(-1) for weight in at.values()])[flat_kept]

    def solve(ids: Any) -> torch.Tensor:
        x, y = linear.arrays(records, ids)
        x, hot = torch.from_numpy(x).double(), torch.eye(3, dtype=torch.float64)[torch.from_numpy(y)]

        def logits(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(start, weights, (x,))

        jacobian = torch.func.jacrev(logits)(at)
        j = torch.cat([part.reshape(len(x) * 3, -1) for part in jacobian.values()], 1)[:, flat_kept]
        r = (logits(at).softmax(1) - hot).reshape(-1)
        matrix = j.T @ j / len(x) + linear.DECAY * torch.eye(j.shape[1])
        return -torch.linalg.solve(matrix, j.T @ r / len(x) + linear.DECAY * theta)

    expected = torch.zeros(len(flat_kept), dtype=torch.float64)
    expected[flat_kept] = solve(request.apply(split).retain) - solve(split.retain)
    moved = dict(outcome.trained.model.named_parameters())
    found = torch.cat([(moved[name].double() - names[name] * kept[name]).reshape(-1) for name in at])
    torch.testing.assert_close(found.detach(), expected, atol=2e-6, rtol=1e-4)
    assert expected.abs().max() > 1e-3
    products = outcome.history[0]["products"]
    few = dataclasses.replace(method, steps=2).forget(trained, request, Context(records, cpu))
    assert products > few.history[0]["products"] == 4
    assert few.cost.trained_records == (1 + 2 * 2) * (36 + 33), "a gradient and two products of two passes each"


def test_legacy_ntk_is_the_formula_of_the_notebook(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """w_S = -G_S (G_S^T G_S + n lambda I)^-1 (p - y), for a linear model: G holds the inputs."""
    records, split = drawn
    original = linear.fit_softmax(*linear.arrays(records, split.retain), 3)
    trained = linear.make_trained(records, split, original)
    theta, request = linear.get_theta(trained), make_request("removal", records, split)

    def solve(ids: Any) -> np.ndarray:
        x, y = linear.arrays(records, ids)
        ones = linear.with_ones(x)
        residual = linear.softmax(ones @ theta.T) - np.eye(3)[y]
        columns = np.hstack([np.kron(np.eye(3), row[:, None]) for row in ones])  # 3 (F + 1) x n 3
        matrix = columns.T @ columns + len(x) * linear.DECAY * np.eye(columns.shape[1])
        return -(columns @ np.linalg.solve(matrix, residual.ravel())).reshape(theta.shape)

    expected = theta + solve(request.apply(split).retain) - solve(split.retain)
    outcome = get_method("NTK", legacy=True, **EXACT).forget(trained, request, Context(records, cpu))
    np.testing.assert_allclose(linear.get_theta(outcome.trained), expected, atol=1e-6)


def test_what_a_method_needs_is_named(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = drawn
    trained = linear.make_trained(records, split, np.zeros((3, 6)), decay=0.0)
    request, context = make_request("removal", records, split), Context(records, cpu)
    with pytest.raises(MethodError, match="no unique solution"):
        get_method("NTK").forget(trained, request, context)
    unknown = dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, recipe={}))
    for name in ("NTK", "Warnecke-1", "Warnecke-2"):
        with pytest.raises(MethodError, match="weight decay is unknown"):
            get_method(name).forget(unknown, request, context)
    for changes in ({"optimiser": "adamw"}, {"no_decay": ("*.bias",)}):  # its decay is no part of the objective
        recipe = Recipe(weight_decay=0.1, **changes).to_json()
        decoupled = dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, recipe=recipe))
        for name in ("NTK", "Warnecke-1", "Warnecke-2"):
            with pytest.raises(MethodError, match="is not that of the training objective"):
                get_method(name).forget(decoupled, request, context)
            assert get_method(name, weight_decay=0.1).forget(decoupled, request, context).trained.hash
    for name, options in (("Warnecke-2", {"curvature": "fisher"}), ("NTK", {"point": "start"}), ("PGU", {"kept": 0.0})):
        with pytest.raises(MethodError, match=next(iter(options))):
            get_method(name, **options)


def test_ntk_at_the_trained_weights_needs_no_initial_ones(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """An imported model has no seed of its initial weights: only `point=initial` asks for it."""
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    unknown = dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, seeds={}))
    request, context = make_request("removal", records, split), Context(records, cpu)
    expected = get_method("NTK", **EXACT).forget(trained, request, context).trained
    found = get_method("NTK", **EXACT).forget(unknown, request, context).trained
    np.testing.assert_array_equal(linear.get_theta(found), linear.get_theta(expected))
    with pytest.raises(MethodError, match="seed of the initial weights is not recorded"):
        get_method("NTK", point="initial").check_state(unknown)
    get_method("NTK", point="initial").check_state(trained)


def test_options_of_the_updates_on_softmax_regression(drawn: tuple[Records, Split], cpu: Runtime) -> None:
    """`weight_decay` replaces the recorded one, `scale` multiplies the shift, `last_tensors` leaves the others."""
    records, split = drawn
    trained = linear.make_trained(records, split, linear.fit_softmax(*linear.arrays(records, split.retain), 3))
    request, context, theta = make_request("removal", records, split), Context(records, cpu), linear.get_theta(trained)
    old, new, rest = parts(records, request, split)
    change = gradient_sum(*new, theta, 0.7) - gradient_sum(*old, theta, 0.7)
    first = get_method("Warnecke-1", tau=0.01, weight_decay=0.7).forget(trained, request, context).trained
    np.testing.assert_allclose(linear.get_theta(first), theta - 0.01 * change, atol=1e-6)
    damping = 0.3
    hessian = linear.softmax_hessian(linear.with_ones(rest[0]), theta) + len(rest[0]) * (0.7 + damping) * np.eye(18)
    second = get_method("Warnecke-2", damping=damping, weight_decay=0.7, **EXACT).forget(trained, request, context)
    newton = theta - np.linalg.solve(hessian, change.ravel()).reshape(theta.shape)
    np.testing.assert_allclose(linear.get_theta(second.trained), newton, atol=1e-6)
    bias = get_method("Warnecke-1", tau=0.01, weight_decay=0.7, last_tensors=1).forget(trained, request, context)
    expected = theta.copy()
    expected[:, -1] -= 0.01 * change[:, -1]
    np.testing.assert_allclose(linear.get_theta(bias.trained), expected, atol=1e-6)
    whole = [
        linear.get_theta(get_method("NTK", scale=scale, **EXACT).forget(trained, request, context).trained) - theta
        for scale in (1.0, 0.25)
    ]
    np.testing.assert_allclose(whole[1], 0.25 * whole[0], atol=1e-6)
    assert np.abs(whole[0]).max() > 1e-3
