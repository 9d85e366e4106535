"""The bound of [Jia2023]: the recursion is exact for quadratic losses; the factors equal a direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparse_toys import CPU, toy_trained
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.trained import clone_model
from expunge.evaluation.error_bound import measure_bound_terms, unroll, weight_distance
from expunge.sparsity import Pruning, prune
from expunge.training import Context
from expunge.training.curvature import norm


def squared(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def linear_problem(steps=12):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    batches = [(torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)) for _ in range(steps)]
    kept = {"weight": torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) > 0.4}
    return model, Mask(kept, MaskProvenance("random")), batches


@pytest.mark.parametrize("masked", [False, True])
def test_the_recursion_is_sgd_for_a_quadratic_loss(masked):
    model, mask, batches = linear_problem()
    mask = mask if masked else None
    found = unroll(model, [mask] * len(batches), batches, 0.05, objective=squared)
    copy = clone_model(model)
    if masked:
        mask.apply_(copy)
    start = clone_model(copy)
    optimiser = torch.optim.SGD(copy.parameters(), lr=0.05)
    for x, y in batches:
        optimiser.zero_grad()
        squared(copy(x), y).backward()
        if masked:
            copy.weight.grad[~mask.kept["weight"]] = 0
        optimiser.step()
    for (name, p), begin in zip(copy.named_parameters(), start.parameters(), strict=True):
        assert torch.allclose(found.change[name], (p - begin).detach(), atol=1e-12)
    assert found.error < 1e-12
    assert norm(found.residual) <= sum(found.terms) + 1e-12 <= found.bound + 1e-9
    assert found.terms[0] == 0  # f_1 = 0
    assert norm(found.residual) > 0.01  # negative control: the first-order part alone is not SGD


def test_a_mask_that_changes_over_time():
    """Grown, then pruned: pruned weights are removed from both the recursion and SGD."""
    model, mask, batches = linear_problem()
    masks = [mask] * 4 + [None] * 4 + [mask] * 4
    found = unroll(model, masks, batches, 0.05, objective=squared)
    assert found.error < 1e-12
    assert (found.change["weight"][~mask.kept["weight"]] == 0).all()
    assert norm(found.residual) <= found.bound + 1e-9


def test_grown_weights_start_from_their_initial_values_and_rates_may_ascend():
    """Training with a mask, ascent on the denser network, pruning: against SGD written out by hand."""
    model, mask, batches = linear_problem(10)
    masks = [mask] * 6 + [None] * 3 + [mask]
    rates = [0.05] * 6 + [-0.02] * 3 + [0.0]
    found = unroll(model, masks, batches, rates, objective=squared)
    w0, b0 = model.weight.detach().clone(), model.bias.detach().clone()
    kept = mask.kept["weight"]
    w, b = w0 * kept, b0.clone()
    for step, ((x, y), rate) in enumerate(zip(batches, rates, strict=True)):
        if step == 6:
            w = torch.where(kept, w, w0)
        gradient = 2 * (x @ w.T + b - y) / y.numel()
        w = w - rate * (gradient.T @ x) * (kept if masks[step] is mask else 1)
        b = b - rate * gradient.sum(0)
    w = w * kept
    assert torch.allclose(found.change["weight"], w - w0 * kept, atol=1e-12)
    assert torch.allclose(found.change["bias"], b - b0, atol=1e-12)
    assert found.error < 1e-12
    assert norm(found.residual) <= found.bound + 1e-9


def test_a_network_is_not_quadratic_and_the_error_shrinks_with_the_rate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(8, 5, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in range(6)]
    errors = [
        unroll(model, [None] * 6, batches, eta, objective=nn.functional.cross_entropy).error for eta in (0.4, 0.2)
    ]
    assert errors[0] > 1e-4
    assert errors[1] < errors[0] / 5  # third order in eta: an eighth


def test_measured_factors():
    trained, records = toy_trained("mlp", (8,), widths=(10,), epochs=4)
    sparse = prune(trained, Pruning(sparsity=0.5, layers=("linear",), schedule="one-shot"), Context(records, CPU))
    rows = records.rows(sparse.split.train)
    x, y = torch.from_numpy(records.features[rows]), torch.from_numpy(records.labels[rows])
    terms = measure_bound_terms(sparse, lambda: [(x, y)], records=len(rows), pair=(trained.model, sparse.model))
    assert terms.steps == 4 * 3
    assert terms.sparsity == pytest.approx(sparse.mask.sparsity)
    names = [n for n, _ in sparse.model.named_parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in sparse.model.parameters()])
    sizes = [p.shape for p in sparse.model.parameters()]

    def loss(theta):
        parts = theta.split([s.numel() for s in sizes])
        state = {n: t.view(s) for n, t, s in zip(names, parts, sizes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(sparse.model, state, (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, flat).numpy()
    keep = torch.cat(
        [
            sparse.mask.kept.get(n, torch.ones(s, dtype=torch.bool)).reshape(-1)
            for n, s in zip(names, sizes, strict=True)
        ]
    ).numpy()
    block = hessian[keep][:, keep]
    assert terms.sigma == pytest.approx(np.abs(np.linalg.eigvalsh(block)).max(), rel=1e-3)
    assert terms.true_distance == pytest.approx(weight_distance(trained.model, sparse.model, sparse.mask))
    assert terms.product == pytest.approx(terms.eta**2 * terms.steps * terms.distance_from_init * terms.sigma)
    with pytest.raises(MaskError, match="different parameters"):
        weight_distance(trained.model, nn.Linear(2, 2))
