"""What the parts of the curvature code are for, one by one: memory, layers that are called twice, masks, residuals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.mask import Mask, MaskProvenance
from expunge.training.curvature import (
    Curvature,
    Vector,
    block_diagonal_solve,
    conjugate_gradient,
    diagonal_fisher,
    draw_vector,
    kronecker_factors,
    layer_rules,
    per_record_gradients,
    records,
    softmax_root,
    solve_by_products,
)
from expunge.training.curvature import kronecker as kronecker_module
from expunge.training.curvature.fisher import make_columns

CLASSES = 3
Fisher = Callable[..., object]


class Twice(nn.Module):
    """A layer that is called twice, and one whose weight two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.other.weight = self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.other(self.inner(self.inner(x).tanh()).tanh()).tanh())
        return logits


def data(*shape: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(count, *shape, dtype=torch.float64), torch.randint(0, CLASSES, (count,))


def flat(vector: Vector) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in vector.values()])


def by_loop(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The diagonal Fisher information, by one backward pass for each record and label."""
    names = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in names.items()}
    for record in x:
        for label in range(CLASSES):
            log_p = model.eval()(record[None]).log_softmax(1)[0, label]
            slopes = torch.autograd.grad(log_p, list(names.values()))
            for name, slope in zip(names, slopes, strict=True):
                total[name] += log_p.detach().exp() * slope.square() / len(x)
    return total


def test_a_layer_that_is_called_twice_has_no_kronecker_factors_but_its_diagonal() -> None:
    torch.manual_seed(0)
    model, (x, y) = Twice().double(), data(4)
    expected = by_loop(model, x)
    factors = kronecker_factors(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert [block.weight for block in factors.blocks] == ["out.weight"]
    assert set(factors.diagonal) == {"inner.weight", "inner.bias", "other.bias"}
    for name, entries in factors.diagonal.items():
        torch.testing.assert_close(entries, expected[name], rtol=1e-9, atol=1e-14)


def test_a_layer_of_which_a_parameter_is_left_out_has_no_kronecker_factors() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double(), data(4)
    factors = kronecker_factors(model, [(x, y)], names=["0.weight", "2.weight", "2.bias"])
    assert [block.weight for block in factors.blocks] == ["2.weight"]
    torch.testing.assert_close(factors.diagonal["0.weight"], by_loop(model, x)["0.weight"], rtol=1e-9, atol=1e-14)


def test_the_masked_product_projects_what_it_multiplies_and_what_it_returns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    x, y = data(4)
    generator = torch.Generator().manual_seed(1)
    kept = {name: torch.rand(p.shape, generator=generator) > 0.4 for name, p in model.named_parameters()}
    whole = kronecker_factors(model, [(x, y)])
    masked = kronecker_factors(model, [(x, y)], mask=Mask(kept, MaskProvenance("random")))
    v = draw_vector(dict(model.named_parameters()), 0)
    inner = whole.multiply({name: v[name] * kept[name] for name in v})
    for name, found in masked.multiply(v, 0.5).items():
        torch.testing.assert_close(found, kept[name] * (inner[name] + 0.5 * v[name]))
    assert set(masked.diagonal) == {"1.weight", "1.bias"}
    for name, entries in masked.diagonal.items():
        assert torch.equal(entries, whole.diagonal[name] * kept[name])
        assert not kept[name].all()


@pytest.mark.parametrize("compute", [diagonal_fisher, kronecker_factors])
def test_few_records_go_through_the_network_at_once_whatever_the_batch(
    compute: Fisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The derivatives of all outputs are held, so this bounds the memory."""
    monkeypatch.setattr(records, "AT_ONCE", 6)
    monkeypatch.setattr(kronecker_module, "AT_ONCE", 6)
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, CLASSES).double(), data(4, count=40)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda layer, given: sizes.append(len(given[0])))
    compute(model, [(x, y)])
    assert max(sizes) == 3, "two columns each"
    sizes.clear()
    compute(model, [(x, y)], kind="sampled", samples=6)
    assert max(sizes) == 2, "make_plan compares two records; then there is one at a time"
    handle.remove()


def test_per_record_gradients_take_few_records_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "AT_ONCE", 6)
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, CLASSES).double(), data(4, count=40)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda layer, given: sizes.append(len(given[0])))
    assert len(per_record_gradients(model, x, y)["weight"]) == 40
    assert max(sizes) == 6


def test_parameters_without_a_rule_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, CLASSES)).double(), data(4)
    monkeypatch.setattr(records, "ENTRIES", 20)  # two or three records at a time
    found = diagonal_fisher(model, [(x, y)])
    for name, expected in by_loop(model, x).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-14)


def test_squares_of_large_and_of_small_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Conv2d(16, 2, 1), nn.Flatten(), nn.Linear(8, CLASSES))
    model, (x, y) = model.double(), data(8, 4, 4, count=4)
    assert model[0].weight.numel() >= layer_rules.FEW > model[2].weight.numel()
    found = diagonal_fisher(model, [(x, y)])
    for name, expected in by_loop(model, x).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-14)


def test_the_root_of_half_precision_logits_is_computed_in_single_precision() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5], [20.0, 0.0, -4.0]], dtype=torch.bfloat16)
    columns, _ = make_columns("exact")
    found = columns(logits, torch.zeros(2, dtype=torch.long))
    assert found.dtype == torch.float32
    assert torch.equal(found, softmax_root(logits.float()))


def test_conjugate_gradients_take_no_step_along_negative_curvature() -> None:
    scale = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    down = {"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    found = solve_by_products(lambda v: {"w": scale * v["w"]}, down, steps=5, tolerance=1e-9)
    assert (found.products, found.residual, found.x["w"].tolist()) == (1, 1.0, [0.0, 0.0])
    both = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    found = solve_by_products(lambda v: {"w": scale * v["w"]}, both, steps=5, tolerance=1e-9)
    assert found.products == 2
    length = 5 / 7  # b.b / b.Cb: the first step, which goes up
    torch.testing.assert_close(found.x["w"], length * both["w"])


def test_the_residual_of_the_block_diagonal_solve() -> None:
    torch.manual_seed(2)
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double(), data(4)
    matrix = Curvature(model, lambda: [(x, y)], None, "gauss-newton", functional.cross_entropy, damping=0.1)
    b = draw_vector(matrix.parameters, 3)
    found = block_diagonal_solve(matrix, b, steps=2)
    left = []
    for layer in ("0", "2"):
        names = tuple(name for name in b if name.startswith(layer))
        block = Curvature(model, lambda: [(x, y)], None, "gauss-newton", functional.cross_entropy, 0.1, names)
        product = block.multiply({name: found.x[name] for name in names})
        left.append(flat({name: b[name] - product[name] for name in names}))
    assert found.residual == pytest.approx(float(torch.cat(left).norm() / flat(b).norm()), rel=1e-6)
    assert found.residual > 1e-3


@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
def test_vectors_with_entries_at_pruned_weights_are_projected_first(matrix_type: str) -> None:
    """C is P C P: a product and a solution do not depend on what a vector has at pruned weights."""
    torch.manual_seed(2)
    model, (x, y) = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double(), data(4)
    generator = torch.Generator().manual_seed(1)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.4 for n, p in model.named_parameters() if p.dim() == 2}
    mask = Mask(kept, MaskProvenance("random"))
    matrix = Curvature(model, lambda: [(x, y)], mask, matrix_type, functional.cross_entropy, damping=2.0)
    v = draw_vector(matrix.parameters, 3)
    inside = {name: v[name] * kept.get(name, 1.0) for name in v}
    assert not torch.equal(flat(v), flat(inside))
    torch.testing.assert_close(flat(matrix.multiply(v)), flat(matrix.multiply(inside)))
    solved = [conjugate_gradient(matrix, b, steps=200, tolerance=1e-12).x for b in (v, inside)]
    torch.testing.assert_close(flat(solved[0]), flat(solved[1]))
    torch.testing.assert_close(flat(matrix.multiply(solved[0])), flat(inside), rtol=1e-8, atol=1e-9)
