"""Curvature and gradient of one record: the mean over one record is that record's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.training.curvature import Curvature, gradient


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
