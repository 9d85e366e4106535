"""Curvature against dense matrices: autograd's Hessian, J^T L'' J, numpy's eigenvalues and solves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, TrainingError
from expunge.core.mask import Mask, MaskProvenance
from expunge.training.curvature import (
    Curvature,
    conjugate_gradient,
    dot,
    draw_vector,
    gradient,
    lanczos,
    norm,
    parameters_of,
    power_iteration,
)
from expunge.training.loop import cross_entropy


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(11, 4, dtype=torch.float64), torch.randint(0, 3, (11,))
    generator = torch.Generator().manual_seed(1)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.4 for n, p in model.named_parameters() if p.dim() > 1}
    return model, x, y, Mask(kept, MaskProvenance("random"))


def batches_of(x, y, size):
    return lambda: zip(x.split(size), y.split(size), strict=True)


def objective(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def flat(vector):
    return torch.cat([t.reshape(-1) for t in vector.values()])


def dense_function(model):
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def outputs(theta, x):
        parts = theta.split([s.numel() for s in shapes])
        return torch.func.functional_call(
            model, {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}, (x,)
        )

    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return outputs, theta


def dense_matrix(model, x, y, matrix_type, mask):
    outputs, theta = dense_function(model)
    if matrix_type == "hessian":
        full = torch.autograd.functional.hessian(lambda t: objective(outputs(t, x), y), theta)
    else:
        jacobian = torch.autograd.functional.jacobian(lambda t: outputs(t, x), theta)
        p = outputs(theta, x).softmax(1)
        loss_hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        full = torch.einsum("nki,nkl,nlj->ij", jacobian, loss_hessian, jacobian) / len(x)
    if mask is not None:
        kept = torch.cat(
            [mask.kept.get(n, torch.ones_like(p, dtype=torch.bool)).reshape(-1) for n, p in model.named_parameters()]
        )
        full = full * kept[:, None] * kept[None, :]
    return full


@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("masked", [False, True])
def test_products_spectrum_and_solves(problem, matrix_type, masked):
    model, x, y, mask = problem
    mask = mask if masked else None
    full = dense_matrix(model, x, y, matrix_type, mask)
    matrix = Curvature(model, batches_of(x, y, 4), mask, matrix_type, objective)
    v = draw_vector(matrix.parameters, 3, mask)
    assert torch.allclose(flat(matrix.multiply(v)), full @ flat(v), atol=1e-12)
    values = np.linalg.eigvalsh(full.numpy())
    top = np.abs(values).max()
    found = lanczos(matrix, steps=40, tolerance=1e-10)
    assert found.norm == pytest.approx(top, rel=1e-8)
    assert power_iteration(matrix, steps=3000, tolerance=1e-7).norm == pytest.approx(top, rel=1e-4)
    damped = Curvature(model, batches_of(x, y, 4), mask, matrix_type, objective, damping=0.5 + max(0.0, -values.min()))
    b = draw_vector(matrix.parameters, 4, mask)
    kept = flat(draw_vector(matrix.parameters, 5, mask)) != 0
    block = (full + damped.damping * torch.eye(len(full)))[kept][:, kept]
    solved = conjugate_gradient(damped, b, steps=200, tolerance=1e-12)
    assert torch.allclose(flat(solved.x)[kept], torch.linalg.solve(block, flat(b)[kept]), atol=1e-8)
    assert (flat(solved.x)[~kept] == 0).all()


@pytest.mark.parametrize("steps", [4, 9])
def test_an_eigenvalue_lies_within_the_residual_of_each_ritz_value(problem, steps):
    model, x, y, _ = problem
    values = np.linalg.eigvalsh(dense_matrix(model, x, y, "hessian", None).numpy())
    found = lanczos(Curvature(model, batches_of(x, y, 4), None, "hessian", objective), steps=steps, tolerance=0.0)
    assert len(found.eigenvalues) == len(found.residuals) == found.products == steps
    distances = np.abs(np.asarray(found.eigenvalues)[:, None] - values[None]).min(1)
    assert (distances <= np.asarray(found.residuals) + 1e-12).all()
    assert found.residuals[int(np.argmax(np.abs(found.eigenvalues)))] == found.residual
    assert max(found.residuals) > 1e-6  # the inner ones have not converged


def test_without_a_tolerance_all_steps_are_taken() -> None:
    """The residual of an outlier is exactly 0 in floating-point numbers long before the other end has converged."""
    torch.manual_seed(0)
    x = torch.randn(64, 60)
    x[:, 0] *= 1e4
    batches = batches_of(x, torch.zeros(64, dtype=torch.long), 64)
    model = nn.Linear(60, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    found = lanczos(Curvature(model, batches, None, "gauss-newton"), steps=40, tolerance=0.0)
    assert found.products == 40
    assert found.residual == 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_no_eigenvalue_is_found_that_does_not_exist(columns, seed):
    """Many more steps than there are eigenvalues: what is left of a product then is rounding, and no new direction."""
    x = torch.zeros(20, 40)
    x[:, :columns] = torch.randn(20, columns, generator=torch.Generator().manual_seed(seed)) * 30
    model = nn.Linear(40, 3, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    batches = batches_of(x, torch.zeros(20, dtype=torch.long), 20)
    found = lanczos(Curvature(model, batches, None, "gauss-newton"), steps=90, seed=seed, tolerance=0.0)
    values = np.linalg.eigvalsh(dense_gauss_newton(x.double(), torch.full((20, 3), 1 / 3).double()).numpy())
    assert found.norm == pytest.approx(values.max(), rel=1e-5)
    distances = np.abs(np.asarray(found.eigenvalues)[:, None] - values[None]).min(1)
    assert distances.max() < 1e-5 * values.max()


def dense_gauss_newton(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Of a linear classifier with the probabilities `p`: the mean of (diag(p) - p p^T) x x^T over the records."""
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nij,na,nb->iajb", inner, x, x).reshape(p.shape[1] * x.shape[1], -1) / len(x)


def test_gauss_newton_has_no_negative_eigenvalue_where_the_hessian_has(problem):
    model, x, y, _ = problem
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    newton = lanczos(Curvature(model, batches_of(x, y, 11), None, "gauss-newton", objective), steps=40, tolerance=0)
    hessian = lanczos(Curvature(model, batches_of(x, y, 11), None, "hessian", objective), steps=40, tolerance=0)
    assert min(newton.eigenvalues) > -1e-9
    assert min(hessian.eigenvalues) < -1e-4


def test_conjugate_gradient_stops_at_negative_curvature(problem):
    model, x, y, _ = problem
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    matrix = Curvature(model, batches_of(x, y, 11), None, "hessian", objective)
    solved = conjugate_gradient(matrix, draw_vector(matrix.parameters, 0), steps=500, tolerance=1e-14)
    assert solved.residual > 1e-14
    assert np.isfinite(norm(solved.x))


def test_gradient_is_the_mean_over_records_whatever_the_batches(problem):
    model, x, y, _ = problem
    whole = gradient(model, batches_of(x, y, 11)(), objective=objective)
    parts = gradient(model, batches_of(x, y, 3)(), objective=objective)
    expected = torch.autograd.grad(objective(model(x), y), list(model.parameters()))
    for (name, got), expected_part in zip(parts.items(), expected, strict=True):
        assert torch.allclose(got, expected_part, atol=1e-14)
        assert torch.allclose(whole[name], expected_part, atol=1e-14)
    assert dot(whole, whole) == pytest.approx(norm(parts) ** 2)


def test_buffers_do_not_change_and_bad_input_is_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Curvature(model, batches_of(x, y, 3)).multiply(draw_vector(dict(model.named_parameters()), 0))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ConfigError, match="gauss-newton"):
        Curvature(model, batches_of(x, y, 3), matrix_type="gauss")
    with pytest.raises(TrainingError, match="no records"):
        gradient(model, [], objective=cross_entropy)


class _Cube(torch.autograd.Function):
    """x^3 without a forward-mode derivative, like some custom operations."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class _CustomActivation(nn.Module):
    def forward(self, x):
        return _Cube.apply(x)


@pytest.mark.parametrize("names", [None, ("0.weight",)])
def test_gauss_newton_by_forward_mode_or_without_it(problem, names):
    _, x, y, _ = problem
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 5), _CustomActivation(), nn.Linear(5, 3)).double()
    full = dense_matrix(model, x, y, "gauss-newton", None)
    matrix = Curvature(model, batches_of(x, y, 4), None, "gauss-newton", objective, names=names)
    v = draw_vector(matrix.parameters, 3)
    with pytest.raises(NotImplementedError):
        matrix._forward_mode(matrix.parameters, v, x)
    size = len(flat(v))
    assert torch.allclose(flat(matrix.multiply(v)), full[:size, :size] @ flat(v), atol=1e-12)
    plain = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    plain = plain.double().eval()
    images, v = torch.randn(5, 1, 6, 6, dtype=torch.float64), draw_vector(parameters_of(plain), 4)
    curvature = Curvature(plain, list, matrix_type="gauss-newton")
    logits, forward = curvature._forward_mode(curvature.parameters, v, images)
    same_logits, reverse = curvature._double_backward(curvature.parameters, v, images)
    assert torch.equal(logits, same_logits)
    assert torch.allclose(forward, reverse, atol=1e-12)


def test_a_frozen_parameter_is_an_error():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"0\.weight: cannot differentiate"):
        gradient(model, [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))], names=["0.weight"])
