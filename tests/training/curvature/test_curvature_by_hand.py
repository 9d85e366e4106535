"""Curvature by hand: the residual ||C q - lambda q|| and the norm against dense matrices, means over few records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.training.curvature import Curvature, draw_vector, gradient, lanczos, power_iteration


def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels)  # in float64, as the model is


def logistic_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor, np.ndarray]:
    """A linear classifier, records and labels, and its Hessian: the mean of (diag(p) - p p^T) x (x x^T)."""
    torch.manual_seed(3)
    model = nn.Linear(5, 4, bias=False).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 4, (9,))
    p = model(x).softmax(1).detach().numpy()
    blocks = [np.kron(np.diag(q) - np.outer(q, q), np.outer(r, r)) for q, r in zip(p, x.numpy(), strict=True)]
    return model, x, y, np.mean(blocks, axis=0)


def ritz_pair(dense: np.ndarray, start: np.ndarray, steps: int) -> tuple[float, float]:
    """The outermost eigenvalue of the matrix on its Krylov space, and the residual of its vector."""
    krylov = [start / np.linalg.norm(start)]
    for _ in range(steps - 1):
        krylov.append(dense @ krylov[-1])
        krylov[-1] /= np.linalg.norm(krylov[-1])
    q, _ = np.linalg.qr(np.stack(krylov, axis=1))
    values, vectors = np.linalg.eigh(q.T @ dense @ q)
    outer = int(np.argmax(np.abs(values)))
    vector = q @ vectors[:, outer]
    return abs(float(values[outer])), float(np.linalg.norm(dense @ vector - values[outer] * vector))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_residual_is_that_of_the_outermost_ritz_pair(steps: int, masked: bool) -> None:
    model, x, y, dense = logistic_problem()
    mask = None
    if masked:
        kept = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.4
        mask = Mask({"weight": kept}, MaskProvenance("random"))
        block = kept.reshape(-1).numpy()
        dense = dense * block[:, None] * block[None, :]
    matrix = Curvature(model, lambda: [(x, y)], mask, objective=objective)
    start = draw_vector(matrix.parameters, 6, mask)["weight"].reshape(-1).numpy()
    found = lanczos(matrix, steps=steps, seed=6, tolerance=0.0)
    value, residual = ritz_pair(dense, start, steps)
    assert found.products == steps
    assert found.norm == pytest.approx(value, rel=1e-10)
    assert found.residual == pytest.approx(residual, rel=1e-8)
    assert np.abs(np.linalg.eigvalsh(dense) - found.norm).min() <= found.residual * (1 + 1e-9)


def test_lanczos_stops_as_soon_as_the_residual_is_below_the_tolerance() -> None:
    model, x, y, dense = logistic_problem()
    matrix = Curvature(model, lambda: [(x, y)], objective=objective)
    start = draw_vector(matrix.parameters, 6)["weight"].reshape(-1).numpy()
    wanted = next(k for k in range(1, 21) if np.divide(*ritz_pair(dense, start, k)[::-1]) <= 1e-3)
    found = lanczos(matrix, steps=30, seed=6, tolerance=1e-3)
    assert found.products == wanted > 2
    assert found.residual <= 1e-3 * found.norm


def test_the_residual_of_power_iteration_is_that_of_its_last_vector() -> None:
    model, x, y, dense = logistic_problem()
    matrix = Curvature(model, lambda: [(x, y)], objective=objective)
    v = draw_vector(matrix.parameters, 6)["weight"].reshape(-1).numpy()
    for _ in range(4):
        v = v / np.linalg.norm(v)
        product = dense @ v
        value = float(v @ product)
        residual = float(np.linalg.norm(product - value * v))
        v = product
    found = power_iteration(matrix, steps=4, seed=6, tolerance=0.0)
    assert (found.norm, found.residual, found.products) == (pytest.approx(value), pytest.approx(residual), 4)


def test_the_norm_is_that_of_the_largest_eigenvalue_in_absolute_value() -> None:
    """The negative loss: all eigenvalues are 0 or negative, and the norm is the absolute value of the lowest."""
    model, x, y, dense = logistic_problem()
    matrix = Curvature(model, lambda: [(x, y)], objective=lambda logits, labels: -objective(logits, labels))
    lowest = np.linalg.eigvalsh(-dense).min()
    for found in (lanczos(matrix, steps=20, tolerance=1e-12), power_iteration(matrix, steps=2000, tolerance=1e-9)):
        assert found.norm == pytest.approx(-lowest, rel=1e-6)
        assert min(found.eigenvalues) == pytest.approx(lowest, rel=1e-6)
        assert found.residual < 1e-6


@pytest.mark.parametrize("records", [1, 2, 3])
@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
def test_the_mean_over_few_records(records: int, matrix_type: str) -> None:
    """A linear classifier: H = mean of (diag(p) - p p^T) x (x x^T), g = mean of (p - e_y) x, whatever the batches."""
    torch.manual_seed(4)
    model = nn.Linear(3, 4, bias=False).double()
    x, y = torch.randn(records, 3, dtype=torch.float64), torch.randint(0, 4, (records,))
    p, rows = model(x).softmax(1).detach().numpy(), x.numpy()
    dense = np.mean(
        [np.kron(np.diag(q) - np.outer(q, q), np.outer(r, r)) for q, r in zip(p, rows, strict=True)], axis=0
    )
    slope = np.mean([np.outer(q - np.eye(4)[k], r) for q, r, k in zip(p, rows, y.tolist(), strict=True)], axis=0)
    v = torch.randn(4, 3, dtype=torch.float64)
    for size in {1, records}:
        batches = list(zip(x.split(size), y.split(size), strict=True))
        matrix = Curvature(
            model, lambda made=batches: made, matrix_type=matrix_type, objective=nn.functional.cross_entropy
        )
        product = matrix.multiply({"weight": v})["weight"].numpy().reshape(-1)
        np.testing.assert_allclose(product, dense @ v.numpy().reshape(-1), atol=1e-12)
        found = gradient(model, batches, objective=nn.functional.cross_entropy)["weight"]
        np.testing.assert_allclose(found.numpy(), slope, atol=1e-12)


def test_parameters_without_influence_have_derivatives_of_zero() -> None:
    """A layer that the output does not depend on, as an auxiliary head in evaluation mode."""

    class WithAuxiliaryHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.unused = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.main(x)

    torch.manual_seed(4)
    model = WithAuxiliaryHead().double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 4, (5,))
    found = gradient(model, [(x, y)], objective=nn.functional.cross_entropy)
    assert (found["unused.weight"] == 0).all()
    assert (found["main.weight"] != 0).any()
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for matrix_type in ("hessian", "gauss-newton"):
        matrix = Curvature(model, lambda: [(x, y)], matrix_type=matrix_type, objective=nn.functional.cross_entropy)
        product = matrix.multiply(vector)
        assert (product["unused.weight"] == 0).all()
        assert (product["main.weight"] != 0).any()
    for _, jv in (f(matrix.parameters, vector, x) for f in (matrix._forward_mode, matrix._double_backward)):
        torch.testing.assert_close(jv, (x.sum(1) + 1)[:, None].expand(5, 4))  # all entries of the layer move by 1


@pytest.mark.parametrize("sizes", [(4, 3), (2, 2), (1, 3), (1,)])
def test_with_batch_statistics_each_batch_of_two_or_more_is_normalised_by_its_own(sizes: tuple[int, ...]) -> None:
    """A batch of one record has no variance, so the running statistics normalise it, as in training."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    batches = [(torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2) for n in sizes]
    running = model[1].running_mean.clone(), model[1].running_var.clone()
    expected = torch.zeros_like(model[0].weight)
    for x, y in batches:
        hidden = model[0](x)
        mean, var = (running[0], running[1]) if len(x) == 1 else (hidden.mean(0), hidden.var(0, unbiased=False))
        normal = (hidden - mean) / torch.sqrt(var + 1e-5) * model[1].weight + model[1].bias
        loss = objective(model[2](normal), y) * len(x)
        expected += torch.autograd.grad(loss, model[0].weight)[0] / sum(sizes)
        if len(x) > 1:
            running = 0.9 * running[0] + 0.1 * mean.detach(), 0.9 * running[1] + 0.1 * hidden.var(0).detach()
    found = gradient(model, batches, objective=objective, names=["0.weight"], batch_statistics=True)
    torch.testing.assert_close(found["0.weight"], expected, rtol=1e-9, atol=1e-12)


class RunningMean(nn.Module):
    """Subtracts a running mean of its own, which each batch in training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2, 3, 3), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


class Doubled(nn.Module):
    """Doubles its input in training; its buffer is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor if self.training else x


def test_a_single_record_leaves_running_statistics_as_they_are_and_the_rest_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), RunningMean(), Doubled(), nn.Flatten(), nn.Linear(18, 2))
    one, two = (torch.ones(1, 1, 4, 4), torch.tensor([0])), (torch.ones(2, 1, 4, 4), torch.tensor([0, 1]))
    found = gradient(model, [one], batch_statistics=True)
    assert torch.equal(model[1].mean, torch.full((2, 3, 3), 0.5))
    hidden = 2 * (model[0](one[0]) - 0.5)
    loss = objective(model[4](hidden.flatten(1)), one[1])
    torch.testing.assert_close(found["0.weight"], torch.autograd.grad(loss, model[0].weight)[0])
    gradient(model, [two], batch_statistics=True)
    assert not torch.equal(model[1].mean, torch.full((2, 3, 3), 0.5))


def test_a_mask_that_keeps_nothing_has_no_curvature() -> None:
    model, x, y, _ = logistic_problem()
    mask = Mask({"weight": torch.zeros(4, 5, dtype=torch.bool)}, MaskProvenance("random"))
    matrix = Curvature(model, lambda: [(x, y)], mask, objective=objective)
    for found in (power_iteration(matrix), lanczos(matrix)):
        assert (found.norm, found.residual, found.products) == (0.0, 0.0, 0)
