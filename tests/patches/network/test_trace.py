from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.patches.network.execute import execute_pattern
from expunge.patches.network.regions import compute_patterns
from expunge.patches.network.trace import explain_unsupported, trace


def test_traced_list_gives_the_models_float32_bits(any_network):
    model, shape = any_network
    network = trace(model, shape)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(execute_pattern(network, x, network.tensors)[0], model(x))


@pytest.mark.parametrize(
    ("shape", "size", "kind"),
    [
        ((2, 8, 8), 1, "mean"), ((2, 7, 5), 1, "mean"), ((2, 9, 9), 3, "average_pool"), ((2, 6, 9), 3, "average_pool"),
        ((2, 12), 1, "mean"), ((2, 21), 3, "average_pool"), ((2, 37), 1, "mean"),
    ],
)  # fmt: skip
def test_adaptive_pooling_is_listed_as_torch_executes_it(shape, size, kind):
    """One place is a mean, several divide by height and width in turn: other bits than those of an average pool."""
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[len(shape) - 2](size)
    model = nn.Sequential(pool, nn.Flatten())
    network = trace(model, shape)
    assert [operation.op for operation in network.operations[1:2]] == [kind]
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(execute_pattern(network, x, network.tensors)[0], model(x))


def test_tracing_does_not_modify_the_model(any_network):
    model, shape = any_network
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, shape)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_hash_changes_with_a_weight_and_not_with_a_retrace(any_network):
    model, shape = any_network
    first = trace(model, shape).hash
    assert trace(model, shape).hash == first
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(1e-3)
    assert trace(model, shape).hash != first


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 2)

    def forward(self, x):
        return self.line(x) if x.sum() > 0 else -self.line(x)


class _Product(nn.Module):
    def forward(self, x):
        return x[:, :2] * x[:, 1:]


class _Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 2)

    def forward(self, x):
        return self.line(torch.relu(x.mean(1)).reshape(-1, 1))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)), "sigmoid"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)), "GELU"),
        (nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), "softmax"),
        (nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 2)), "ReLU6"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)), "statistics"),
        (_Product(), "product"),
        (_Scalar(), "without an axis"),
        (_Branch(), ""),
    ],
)
def test_other_nonlinearities_are_refused_with_a_reason(model, said):
    with pytest.raises(ModelError) as caught:
        trace(model, (3,))
    assert said in caught.value.what
    assert explain_unsupported(model, (3,)) == caught.value.what


def test_a_supported_network_is_traced():
    assert (
        explain_unsupported(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)), (3,)) is None
    )


class _Numbers(nn.Module):
    """Numbers in the code that are not float32 numbers."""

    def __init__(self, slope: float, shift: float, scale: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(slope), nn.Linear(8, 3))
        self.shift, self.scale = shift, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x - self.shift) / self.scale) * 0.3


@pytest.mark.parametrize("numbers", [(0.2, 0.1307, 0.3081), (0.01, 0.5, 0.05), (0.9, 0.3, 0.01), (0.7, 0.1, 3.3)])
def test_numbers_in_the_code_are_supported(numbers):
    torch.manual_seed(0)
    model = _Numbers(*numbers).eval()
    network = trace(model, (4,))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(compute_patterns(network, x)[0], model(x), rtol=1e-6, atol=1e-6)


def test_control_flow_that_depends_on_the_data_is_refused():
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * (2 if len(x) > 3 else 1))

    with pytest.raises(ModelError, match="does not reproduce"):
        trace(Looks(4, 3), (4,))


def test_code_that_reads_values_is_named_without_the_words_of_torch() -> None:
    class Branching(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if x.sum().item() > 0 else 2.0)

    class Asking(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    for model in (Branching(4, 2), Asking(4, 2)):
        with pytest.raises(ModelError, match="its code reads the value of a tensor") as caught:
            trace(model, (4,))
        assert "make_fx" not in str(caught.value)
        assert "tracing tensor" not in str(caught.value)
