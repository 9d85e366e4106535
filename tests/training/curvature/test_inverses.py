"""Kronecker factors and the inverses against dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import TrainingError
from expunge.core.mask import Mask, MaskProvenance
from expunge.training.curvature import (
    Curvature,
    Vector,
    block_diagonal_solve,
    conjugate_gradient,
    diagonal_fisher,
    draw_vector,
    jvp,
    kronecker_factors,
    lissa,
)

CLASSES = 3
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def flat(vector: Vector) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in vector.values()])


def random_mask(model: nn.Module, seed: int = 1) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.4 for n, p in model.named_parameters() if p.dim() > 1}
    return Mask(kept, MaskProvenance("random"))


def dense(multiply: Callable[[Vector], Vector], like: Vector) -> torch.Tensor:
    """The matrix of a product, one column for each entry."""
    size, columns = len(flat(like)), []
    for row in torch.eye(size, dtype=torch.float64):
        parts = row.split([tensor.numel() for tensor in like.values()])
        columns.append(flat(multiply({n: p.view_as(like[n]) for n, p in zip(like, parts, strict=True)})))
    return torch.stack(columns, 1)


def data(*shape: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, *shape, dtype=torch.float64), torch.randint(0, CLASSES, (count,))


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 2, bias=False),
        nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, CLASSES),
    ).double()  # fmt: skip
    x, y = data(2, 4, 4)
    model(x)
    return model, x, y


def test_the_factors_are_exact_where_inputs_and_derivatives_are_independent() -> None:
    """A linear classifier with zero weights has p = 1 / K for every record: the Hessian is A x (diag(p) - p p^T)."""
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = data(4)
    factors = kronecker_factors(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    matrix = Curvature(model, lambda: [(x, y)], matrix_type="gauss-newton", objective=functional.cross_entropy)
    like = draw_vector(matrix.parameters, 0)
    torch.testing.assert_close(dense(factors.multiply, like), dense(matrix.multiply, like), rtol=1e-10, atol=1e-12)


def test_the_factors_of_one_record_are_exact() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    x, y = data(4, count=1)
    matrix = Curvature(model, lambda: [(x, y)], matrix_type="gauss-newton", objective=functional.cross_entropy)
    like = draw_vector(matrix.parameters, 0)
    full, kfac = dense(matrix.multiply, like), dense(kronecker_factors(model, [(x, y)]).multiply, like)
    first = slice(0, 25)  # the blocks of both layers; K-FAC has zeros between them
    torch.testing.assert_close(kfac[first, first], full[first, first], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(kfac[25:, 25:], full[25:, 25:], rtol=1e-10, atol=1e-12)
    assert (kfac[:25, 25:] == 0).all()


def test_the_factors_equal_sums_over_records_and_pixels() -> None:
    """The second moments, written out for the second convolution and for both groups of the first one."""
    model, x, y = network()
    factors = kronecker_factors(model, [(x[:7], y[:7]), (x[7:], y[7:])])
    assert [(block.weight, block.bias) for block in factors.blocks] == [
        ("0.weight", "0.bias"), ("3.weight", None), ("5.weight", "5.bias"), ("7.weight", "7.bias")
    ]  # fmt: skip
    model.eval()
    for index, block in ((0, factors.blocks[0]), (3, factors.blocks[1])):
        layer = model[index]
        a, g = torch.zeros_like(block.a), torch.zeros_like(block.g)
        for record in x:
            inputs = model[:index](record[None]).detach()
            output = layer(inputs).detach().requires_grad_()
            p = model[index + 1 :](output).softmax(1)[0]
            pixels = output[0, 0].numel()
            patches = functional.unfold(inputs, layer.kernel_size, padding=layer.padding)[0]
            for group in range(layer.groups):
                rows = patches.view(layer.groups, -1, pixels)[group]
                rows = rows if layer.bias is None else torch.cat([rows, torch.ones(1, pixels, dtype=torch.float64)])
                a[group] += rows @ rows.T / len(x)
                for label in range(CLASSES):
                    (slope,) = torch.autograd.grad(p[label].log(), output, retain_graph=True)
                    d = slope[0].view(layer.groups, -1, pixels)[group]
                    g[group] += p[label].item() * d @ d.T / pixels / len(x)
        torch.testing.assert_close(block.a, a, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(block.g, g, rtol=1e-9, atol=1e-12)
    assert factors.diagonal.keys() == {"1.weight", "1.bias"}
    expected = diagonal_fisher(model, [(x, y)], names=["1.weight", "1.bias"])
    for name, entries in expected.items():
        torch.testing.assert_close(factors.diagonal[name], entries)


@pytest.mark.parametrize("masked", [False, True])
def test_the_inverse_of_the_factors_equals_a_dense_solve(masked: bool) -> None:
    model, x, y = network()
    mask = random_mask(model) if masked else None
    factors = kronecker_factors(model, [(x, y)], mask=mask)
    b = draw_vector(dict(model.named_parameters()), 3, mask)
    found = factors.solve(b, damping=0.01, tolerance=1e-12)
    matrix = dense(lambda v: factors.multiply(v, 0.01), b)
    kept = flat(draw_vector(dict(model.named_parameters()), 4, mask)) != 0
    expected = torch.zeros(len(kept), dtype=torch.float64)
    expected[kept] = torch.linalg.solve(matrix[kept][:, kept], flat(b)[kept])
    torch.testing.assert_close(flat(found.x), expected, rtol=1e-7, atol=1e-8)
    assert found.residual < 1e-8
    assert (flat(found.x)[~kept] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_block_diagonal_and_lissa_equal_dense_solves(masked: bool) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    x, y = data(4)
    mask = random_mask(model) if masked else None
    matrix = Curvature(model, lambda: [(x, y)], mask, "gauss-newton", functional.cross_entropy, damping=0.1)
    b = draw_vector(matrix.parameters, 3, mask)
    full, kept = dense(matrix.multiply, b), flat(draw_vector(matrix.parameters, 4, mask)) != 0
    block = full.clone()
    block[:25, 25:] = block[25:, :25] = 0
    for solution, expected in (
        (block_diagonal_solve(matrix, b, steps=200, tolerance=1e-12), block),
        (conjugate_gradient(matrix, b, steps=200, tolerance=1e-12), full),
        (lissa(matrix, b, steps=2000, scale=2.0), full),
    ):
        found = torch.linalg.solve(expected[kept][:, kept], flat(b)[kept])
        torch.testing.assert_close(flat(solution.x)[kept], found, rtol=1e-7, atol=1e-7)
        assert (flat(solution.x)[~kept] == 0).all()
        assert list(solution.x) == list(b)
    assert block_diagonal_solve(matrix, b, steps=3).products == 6


def test_lissa_takes_one_batch_in_each_step_and_stops_when_it_diverges() -> None:
    torch.manual_seed(2)
    model = nn.Linear(4, CLASSES).double()
    x, y = data(4)
    parts: Batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    read: list[int] = []

    def source() -> Batches:
        read.append(1)
        return parts

    matrix = Curvature(model, source, None, "gauss-newton", functional.cross_entropy, damping=0.1)
    b = draw_vector(matrix.parameters, 0)
    found = lissa(matrix, b, steps=5, scale=10.0)
    assert (found.products, len(read)) == (5, 3)
    assert math.isnan(found.residual)
    h = flat(b)
    for step in range(5):
        part = parts[step % 2]
        one = Curvature(model, lambda part=part: [part], None, "gauss-newton", functional.cross_entropy, damping=0.1)
        h = flat(b) + h - dense(one.multiply, b) @ h / 10.0
    torch.testing.assert_close(flat(found.x), h / 10.0)
    with pytest.raises(TrainingError, match=r"scale 0\.02: LiSSA diverges"):
        lissa(matrix, b, steps=500, scale=0.02)
    with pytest.raises(TrainingError, match="no records"):
        lissa(Curvature(model, list, damping=0.1), b, steps=2, scale=1.0)


def test_values_that_are_not_finite_stop_with_where() -> None:
    model, x, y = network()
    matrix = Curvature(model, lambda: [(x * float("inf"), y)], matrix_type="gauss-newton", damping=0.1)
    b = draw_vector(matrix.parameters, 0)
    with pytest.raises(TrainingError, match=r"0\.weight: product 1 with the curvature is not finite"):
        conjugate_gradient(matrix, b)
    b["3.weight"][0] = float("nan")
    with pytest.raises(TrainingError, match=r"3\.weight: the right side of the system is not finite"):
        conjugate_gradient(matrix, b)
    with pytest.raises(TrainingError, match="the Fisher information is not finite"):
        kronecker_factors(model, [(x * float("inf"), y)])
    with pytest.raises(TrainingError, match="no records"):
        kronecker_factors(model, [])


def test_a_product_with_the_jacobian() -> None:
    model, x, _ = network()
    model.eval()
    v = draw_vector(dict(model.named_parameters()), 0, random_mask(model))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    logits, expected = torch.func.jvp(lambda w: torch.func.functional_call(model, w, (x,)), (parameters,), (v,))
    found = jvp(model, x, draw_vector(dict(model.named_parameters()), 0), mask=random_mask(model))
    torch.testing.assert_close(found[0], logits)
    torch.testing.assert_close(found[1], expected)


def test_masked_factors_have_no_entry_at_pruned_weights() -> None:
    model, x, y = network()
    mask = random_mask(model)
    factors = kronecker_factors(model, [(x, y)], mask=mask, kind="sampled", seed=1)
    product = factors.multiply(draw_vector(dict(model.named_parameters()), 0))
    for name, kept in mask.kept.items():
        assert (product[name][~kept] == 0).all()
        assert (product[name][kept] != 0).any()
    assert np.isfinite(flat(product).numpy()).all()


def test_an_empty_batch_changes_no_factor() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    found = kronecker_factors(model, [(x[:2], y[:2]), (x[:0], y[:0]), (x[2:], y[2:])]).blocks[0]
    probabilities = model(x).softmax(1).detach()
    fisher = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    torch.testing.assert_close(found.g[0].double(), fisher.mean(0).double(), rtol=1e-4, atol=1e-6)


def test_one_label_is_drawn_for_each_record_by_default() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3), (torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))
    default, one = (kronecker_factors(model, [batch], kind="sampled", seed=3, **how) for how in ({}, {"samples": 1}))
    assert torch.equal(default.blocks[0].g, one.blocks[0].g)
