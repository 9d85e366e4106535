"""Curvature, GraSP and influence through attention: against attention written out, and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from any_layers import AnyLayers
from not_twice import Bag, Distances
from torch import nn
from torch.nn import functional

from expunge.core.errors import TrainingError
from expunge.experiments.config.run_config import check_config
from expunge.methods.unprune.influence import estimate_without_forget
from expunge.sparsity import Rule, make_mask
from expunge.training.curvature import Curvature, check_second_derivatives, draw_vector, gradient
from expunge.workflow import check_inputs, check_run

NETWORKS = {"Bag": Bag, "Distances": Distances}


class Attention(nn.Module):
    """One head over the rows of the image, by torch's function or written out."""

    def __init__(self, *, by_hand: bool = False) -> None:
        super().__init__()
        self.maps, self.head, self.by_hand = nn.Linear(8, 24), nn.Linear(64, 10), by_hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.maps(x.squeeze(1)).split(8, dim=2)
        if self.by_hand:
            hidden = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=2) @ v
        else:
            hidden = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.head(hidden.flatten(1))


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    by_torch, by_hand = Attention(), Attention(by_hand=True)
    by_hand.load_state_dict(by_torch.state_dict())
    return by_torch, by_hand


def records(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
def test_products_equal_those_of_attention_written_out(matrix_type: str) -> None:
    by_torch, by_hand = pair()
    batches = [records()]
    v = draw_vector(dict(by_torch.named_parameters()), 0)
    found = Curvature(by_torch, lambda: batches, matrix_type=matrix_type).multiply(v)
    expected = Curvature(by_hand, lambda: batches, matrix_type=matrix_type).multiply(v)
    for name in v:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["attention", "encoder", "lstm", "gru"])
def test_products_equal_finite_differences(kind: str) -> None:
    """H v = (g(theta + h v) - g(theta - h v)) / 2 h, in float64."""
    torch.manual_seed(0)
    model = AnyLayers(kind).double().eval()
    x, y = records()
    batches = [(x.double(), y)]

    def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels)

    v = draw_vector(dict(model.named_parameters()), 3)
    product = Curvature(model, lambda: batches, objective=objective).multiply(v)
    h, sides = 1e-5, []
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += sign * h * v[name]
        sides.append(gradient(model, batches, objective=objective))
    scale = max(float(t.abs().max()) for t in product.values())
    for name, tensor in product.items():
        difference = (sides[0][name] - sides[1][name]) / (2 * h)
        torch.testing.assert_close(tensor, difference, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_grasp_through_attention(batch_statistics: bool) -> None:
    masks = []
    for model in pair():
        rule = Rule("GraSP", layers=("linear",), sparsity=0.5)
        extra: dict[str, Any] = {"batch_statistics": True} if batch_statistics else {}
        mask, _ = make_mask(model, rule, batches=lambda: [records()], input_shape=(1, 8, 8), **extra)
        masks.append(mask)
    overlap = [
        float((masks[0].kept[name] == masks[1].kept[name]).float().mean()) for name in ("maps.weight", "head.weight")
    ]
    assert min(overlap) > 0.99  # float32: the scores differ in their last bits


def test_the_influence_estimate_through_attention() -> None:
    changes = []
    for model in pair():
        estimate = estimate_without_forget(model, [records(4)], [records(12)], removed=0.25, damping=0.1, steps=5)
        changes.append(torch.cat([t.reshape(-1) for t in estimate.change.values()]))
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-2, atol=1e-4)
    assert float(changes[0].norm()) > 0


@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
def test_operations_without_one_are_named(matrix_type: str) -> None:
    for name, operation in (("Bag", "_embedding_bag_backward"), ("Distances", "_cdist_backward")):
        model = NETWORKS[name]()
        v = draw_vector(dict(model.named_parameters()), 0)
        with pytest.raises(TrainingError, match=rf"{name}: an operation .* no second derivative \(.*{operation}"):
            Curvature(model, lambda: [records()], matrix_type=matrix_type).multiply(v)
        with pytest.raises(TrainingError, match="no second derivative"):
            check_second_derivatives(model, (1, 8, 8), 10, matrix_type=matrix_type)
    rule = Rule("GraSP", layers=("linear",))
    with pytest.raises(TrainingError, match="no second derivative"):
        make_mask(Distances(), rule, batches=lambda: [records()], input_shape=(1, 8, 8))
    make_mask(Bag(), rule, batches=lambda: [records()], input_shape=(1, 8, 8))  # the head needs none of it
    check_second_derivatives(pair()[0], (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("name", "criterion", "usable"),
    [("Distances", "GraSP", False), ("Distances", "SNIP", True), ("Bag", "GraSP", True)],
)
def test_check_and_the_run_decide_alike_about_grasp(name: str, criterion: str, usable: bool) -> None:
    sparsity = {"criterion": criterion, "schedule": "at-init", "sparsity": 0.5, "layers": ["linear"]}
    decide_alike(name, {"sparsity": sparsity}, usable)


@pytest.mark.parametrize(("curvature", "usable"), [("gauss-newton", False), ("hessian", False), ("none", True)])
def test_check_and_the_run_decide_alike_about_influence(curvature: str, usable: bool) -> None:
    options = {"rule": "influence", "curvature": curvature, "method_options": {"epochs": 1}}
    sections = {
        "sparsity": {"criterion": "magnitude", "schedule": "one-shot", "layers": ["linear"], "keep_weights": True},
        "forget": {"by": "random", "count": 5},
        "method": {"name": "Un-prune", "options": options},
    }
    decide_alike("Bag", sections, usable)


def decide_alike(name: str, sections: dict[str, Any], usable: bool) -> None:
    values = {
        "data": {"source": "digits"},
        "model": {"name": f"not_twice:{name}"},
        "training": {"recipe": "one-cycle"},
        "runtime": {"device": "cpu"},
        **sections,
    }
    config = check_config(values, trust=["not_twice"])
    errors = [f.message for f in check_run(config).findings if f.level == "error"]
    assert (errors == []) == usable
    if usable:
        check_inputs(config)
        return
    assert "has no second derivative" in errors[0]
    with pytest.raises(TrainingError, match="has no second derivative"):
        check_inputs(config)


class _ByHand(torch.autograd.Function):
    """tanh with a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = context.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


class _Detached(_ByHand):
    """The same, with a derivative in which the gradient is a constant."""

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = context.saved_tensors
        return gradient.detach() * (1 - x.detach().tanh() ** 2)


@pytest.mark.parametrize("matrix_type", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("operation", [_ByHand, _Detached])
def test_an_operation_that_loses_the_layers_before_it_is_refused(matrix_type: str, operation: Any) -> None:
    """PyTorch gives no error there, but a product in which the first layer has no part."""

    class Network(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](operation.apply(self[0](x.flatten(1))))

    torch.manual_seed(0)
    network = Network(nn.Linear(64, 8), nn.Linear(8, 10))
    with pytest.raises(TrainingError, match="derivatives of the network are not those of its outputs"):
        check_second_derivatives(network, (1, 8, 8), 10, matrix_type=matrix_type)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_second_derivatives(
        nn.Sequential(nn.Flatten(), network[0], nn.Tanh(), network[1]), (1, 8, 8), 10, matrix_type=matrix_type
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
