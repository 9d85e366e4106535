"""The operation list and the patches must match the float32 execution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.patches.network.execute import cast, compute_atom_values, execute_pattern
from expunge.patches.network.rounding import bound_execution_error
from expunge.patches.network.trace import trace


class Applied(nn.Module):
    """A function, then a linear layer and a ReLU."""

    def __init__(self, function, inputs: int = 4) -> None:
        super().__init__()
        self.function, self.last = function, nn.Linear(inputs, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.last(self.function(x)))


def test_constants_of_the_list_are_those_that_float32_executes():
    padded = trace(Applied(lambda x: nn.functional.pad(x, (0, 2), value=0.1)).eval(), (2,))
    leaky = trace(Applied(lambda x: nn.functional.leaky_relu(x, 0.01), 2).eval(), (2,))
    value, slope = padded.operations[1].attributes["value"], leaky.operations[1].attributes["slope"]
    assert (value, slope) == (float(np.float32(0.1)), float(np.float32(0.01)))


@pytest.mark.parametrize(("variance", "epsilon"), [(-0.5, 1.0), (1.0, 1e-44)])
def test_batch_norm_that_rounds_badly_is_refused(variance, epsilon):
    model = nn.Sequential(nn.BatchNorm1d(2, eps=epsilon), nn.Linear(2, 2)).eval()
    model[0].running_var.fill_(variance)
    with pytest.raises(ModelError, match="BatchNorm"):
        trace(model, (2,))


class Shared(nn.Module):
    """A product with a bias of one row, or of one row for each record of a batch."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.eye(2)), nn.Parameter(torch.rand(rows, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_a_bias_is_one_number_an_output():
    network = trace(Shared(1).eval(), (2,))
    assert {tuple(t.shape) for t in network.tensors.values()} == {(2, 2), (2,)}
    with pytest.raises(ModelError, match="between the records"):
        trace(Shared(3).eval(), (2,))


def test_leaky_units_that_underflow_stay_within_the_error_bound():
    """What slope and weights make is below 2^-126; executed logits deviate from the exact ones by no more than e."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(2.0**-60), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(-(2.0**-100) * model[0].weight.abs())  # every unit is off
        model[2].weight.mul_(2.0**120)
        model[0].bias.zero_()
        model[2].bias.zero_()
    network, x = trace(model, (3,)), torch.rand(20, 3)
    logits, bits = execute_pattern(network, x, network.tensors)
    exact, _ = compute_atom_values(network, x.double(), cast(network.tensors, torch.float64))
    error = bound_execution_error(network, bits, torch.zeros(3), torch.ones(3)).logits
    assert (logits == 0).all(), "all of it underflows"
    assert (exact != 0).all()
    assert ((logits.double() - exact).abs() <= error).all()
