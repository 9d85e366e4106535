"""CF-k and EU-k: which layers are the last, and that exactly these are trained, or drawn again and trained."""

from __future__ import annotations

import plain_training as plain
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.restricted.last_layers import find_last_layers
from expunge.models import Architecture, architecture
from expunge.training import Recipe, Runtime, train

#: The tensors of the small CNN by layer, from the last.
LAYERS = [
    {"classifier.weight", "classifier.bias"},
    {"blocks.1.0.weight", "blocks.1.1.weight", "blocks.1.1.bias"},
    {"blocks.0.0.weight", "blocks.0.1.weight", "blocks.0.1.bias"},
]


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_batch_norm_goes_with_the_layer_before_it(layers: int, dense: Trained, digits: Records) -> None:
    found = find_last_layers(dense.model, layers, digits.input_shape)
    assert found.parameters == set().union(*LAYERS[:layers])


class Reversed(nn.Module):
    """The layers are called in another order than they are defined in; one has its parameters in a module inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 10)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.first = nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x.flatten(1))[:, None]
        logits: torch.Tensor = self.last(self.norm(self.attention(hidden, hidden, hidden)[0][:, 0]))
        return logits


def test_the_order_is_that_of_the_forward_pass(digits: Records) -> None:
    network = Reversed()
    assert find_last_layers(network, 1, digits.input_shape).parameters == {"last.weight", "last.bias"}
    every = find_last_layers(network, 2, digits.input_shape).parameters
    assert every == set(dict(network.named_parameters()))
    with pytest.raises(MethodError, match="has 2 convolutions and linear layers, fewer than 3"):
        find_last_layers(network, 3, digits.input_shape)


def train_last(
    trained: Trained, model: nn.Module, layers: int, digits: Records, request: ForgetRequest, name: str, mode: str
) -> nn.Module:
    """Plain training of the last layers: the optimiser has only their parameters."""
    gone = set(request.record_ids.tolist())
    retain = [i for i in trained.split.retain.tolist() if i not in gone]
    names = set().union(*LAYERS[:layers])
    optimiser = torch.optim.SGD(
        [p for n, p in model.named_parameters() if n in names], lr=0.05, momentum=0.9, weight_decay=5e-4
    )
    masks = {n: k for n, k in plain.masks_of(trained).items() if n in names}
    seed = plain.method_seed(1, name)
    for epoch in range(2):
        plain.train_mode(model)
        for path, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and f"{path}.weight" not in names and mode == "definition":
                module.eval()
        for x, y in plain.batches_of(digits, retain, 32, seed, epoch):
            plain.step(model, optimiser, F.cross_entropy(model(x), y), masks)
    return model


@pytest.mark.parametrize("trained", ["dense", "sparse"], indirect=True)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", ["definition", "legacy"])
def test_cf_k(
    trained: Trained, layers: int, mode: str, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    expected = train_last(trained, plain.copy_of(trained), layers, digits, request_20, "CF-k", mode)
    method = get_method(
        "CF-k", layers=layers, legacy=mode == "legacy", epochs=2, learning_rate=0.05, batch_size=32
    )  # fmt: skip
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, expected, 0.0)
    unchanged = set().union(*LAYERS[layers:])
    assert {c.name for c in outcome.changes if c.kind == "parameter" and c.status == "unchanged"} == unchanged
    assert set(outcome.extents["weights"].unchanged_names) == unchanged
    buffers = {c.name for c in outcome.changes if c.name.startswith("blocks.0.1.running") and c.status != "unchanged"}
    assert bool(buffers) == (mode == "legacy")


@pytest.mark.parametrize("trained", ["dense", "sparse"], indirect=True)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("mode", ["definition", "legacy"])
def test_eu_k(
    trained: Trained, layers: int, mode: str, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """The last layers start from fresh values, those of BatchNorm too, and no other tensor changes."""
    fresh = Architecture.from_json(trained.provenance.architecture)
    fresh_state = fresh.build(derive(plain.method_seed(1, "EU-k"), "initial")).state_dict()
    model = plain.copy_of(trained)
    for name in set().union(*LAYERS[:layers]):
        path = name.rpartition(".")[0]
        is_norm = path in ("blocks.0.1", "blocks.1.1")
        if is_norm and mode == "legacy":
            continue
        tensors = [name, *(f"{path}.{b}" for b in ("running_mean", "running_var", "num_batches_tracked") if is_norm)]
        for tensor in tensors:
            model.state_dict()[tensor].copy_(fresh_state[tensor])
    with torch.no_grad():
        for name, kept in plain.masks_of(trained).items():
            model.get_parameter(name)[~kept] = 0
    expected = train_last(trained, model, layers, digits, request_20, "EU-k", mode)
    method = get_method("EU-k", layers=layers, legacy=mode == "legacy", epochs=2, learning_rate=0.05, batch_size=32)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, expected, 0.0)
    unchanged = set().union(*LAYERS[layers:])
    assert {c.name for c in outcome.changes if c.kind == "parameter" and c.status == "unchanged"} == unchanged


def test_eu_k_refuses_a_network_that_is_built_with_the_trained_weights(
    digits: Records, digits_split, cpu: Runtime, request_20: ForgetRequest, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = architecture("mlp", digits, digits_split, normalise="none", widths=(4,))
    trained = train(digits, digits_split, network, recipe=Recipe(epochs=1, batch_size=64), seed=0, runtime=cpu)
    stuck = trained.model.state_dict()

    def build(self: Architecture, seed: int) -> nn.Module:
        model = original(self, seed)
        model.load_state_dict(stuck)
        return model

    original = Architecture.build
    monkeypatch.setattr(Architecture, "build", build)
    with pytest.raises(MethodError, match="built with the trained values"):
        get_method("EU-k").forget(trained, request_20, Context(digits, cpu))


def test_more_layers_than_there_are(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    for name in ("CF-k", "EU-k"):
        with pytest.raises(MethodError, match="fewer than 4"):
            get_method(name, layers=4).forget(dense, request_20, context)
        with pytest.raises(MethodError, match="layers = 0"):
            get_method(name, layers=0)
