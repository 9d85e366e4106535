"""Boundary Shrink and Expand, and UNSIR, against plain PyTorch, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import method_contract as contract
import numpy as np
import plain_training as plain
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.core.errors import ExpungeError, MethodError, RequestError, TrainingError
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.changed_inputs import find_discrete_features
from expunge.training import Runtime
from expunge.training.transfer import find_output_layer

KINDS = ["dense", "sparse", "mlp"]
CLASS = 3


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def threes(digits: Records, dense: Trained) -> ForgetRequest:
    return forget_class(digits, dense.split, CLASS)


# ---- Boundary Shrink


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("legacy", [False, True])
def test_shrink_trains_on_the_label_of_the_adversarial_neighbour(
    trained: Trained, legacy: bool, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    forget = request_20.record_ids.tolist()
    original = plain.copy_of(trained).eval()
    x, y = plain.all_inputs(digits, forget)
    x.requires_grad_()
    F.cross_entropy(original(x), y).backward()
    near = (x + 0.05 * x.grad.sign()).clamp(0, 1).detach()
    if legacy:
        near = torch.round(near * 255) / 255
    logits = original(near)
    if not legacy:
        logits[torch.arange(20), y] = -math.inf
    found = logits.argmax(1)
    assert bool((found == y).any()) == legacy, "the test should have records whose neighbour keeps its label"
    labels = digits.labels.copy()
    labels[digits.rows(forget)] = found.numpy()
    changed = dataclasses.replace(digits, labels=labels)
    model, seed = plain.copy_of(trained), plain.method_seed(1, "Boundary Shrink")
    optimiser, masks = plain.sgd(model, 0.01), plain.masks_of(trained)
    for epoch in range(2):
        batches = Batches(changed, digits.rows(forget), batch_size=8).epoch(seed, epoch)
        plain.train_by_hand(model, optimiser, batches, lambda x, y: F.cross_entropy(model(x), y), masks)
    method = get_method(
        "Boundary Shrink", epochs=2, learning_rate=0.01, batch_size=8, radius=0.05, legacy=legacy
    )  # fmt: skip
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 1e-7)
    assert (outcome.cost.trained_records, outcome.cost.forward_records) == (60, 20)


def test_shrink_does_not_clamp_features_that_are_not_pixels(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """Standardised features have no bounds: the neighbour is x + radius * sign(gradient)."""
    forget = request_20.record_ids.tolist()
    assert digits.features is not None
    floats = dataclasses.replace(digits, features=np.array(digits.features, np.float32) / 60 - 1.5)
    original = plain.copy_of(mlp).eval()
    x, y = plain.all_inputs(floats, forget)
    x.requires_grad_()
    F.cross_entropy(original(x), y).backward()

    def nearest(inputs: torch.Tensor) -> torch.Tensor:
        logits = original(inputs).detach()
        logits[torch.arange(20), y] = -math.inf
        return logits.argmax(1)

    near = (x + 0.3 * x.grad.sign()).detach()
    expected = nearest(near)
    assert bool((expected != nearest(near.clamp(0, 1))).any()), "clamped, the labels are the same"
    labels = floats.labels.copy()
    labels[floats.rows(forget)] = expected.numpy()
    changed = dataclasses.replace(floats, labels=labels)
    model, seed = plain.copy_of(mlp), plain.method_seed(1, "Boundary Shrink")
    batches = Batches(changed, floats.rows(forget), batch_size=8).epoch(seed, 0)
    plain.train_by_hand(model, plain.sgd(model, 0.01), batches, lambda x, y: F.cross_entropy(model(x), y), {})
    method = get_method("Boundary Shrink", epochs=1, learning_rate=0.01, batch_size=8, radius=0.3)
    outcome = method.forget(mlp, request_20, Context(floats, cpu, seed=1))
    plain.assert_same(outcome.trained.model, model, 1e-6)


def flags(values: np.ndarray) -> Records:
    count = len(values)
    return Records("flags", [f"r{i}" for i in range(count)], np.arange(count) % 2, ("a", "b"), values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.random.default_rng(0).integers(0, 2, (20, 5)), "all features are integers"),
        (np.random.default_rng(0).integers(0, 9, (20, 1, 4, 4)), "all features are integers"),
        (np.c_[np.random.default_rng(0).random((20, 3)), np.arange(20) % 2], "1 of 4 columns"),
        (np.random.default_rng(0).random((20, 5)), ""),
        (np.c_[np.random.default_rng(0).random((20, 3)), np.ones(20)], ""),
    ],
)
def test_discrete_features_are_found(values: np.ndarray, reason: str) -> None:
    found = find_discrete_features(flags(values.astype(np.float32)))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_shrink_refuses_discrete_features(digits: Records, mlp: Trained, cpu: Runtime) -> None:
    """The same digits as black and white pixels: a step of the sign of the gradient is not such a record."""
    assert digits.features is not None
    binary = dataclasses.replace(digits, features=(np.array(digits.features) > 100).astype(np.float32))
    request = ForgetRequest(mlp.split.retain[:3])
    with pytest.raises(RequestError, match=r"no adversarial neighbours: .* x \+ radius \* sign"):
        get_method("Boundary Shrink").forget(mlp, request, Context(binary, cpu))


# ---- Boundary Expand


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_expand_trains_an_extra_class_and_drops_it(
    trained: Trained, digits: Records, threes: ForgetRequest, context: Context
) -> None:
    forget = threes.record_ids.tolist()
    assert len(forget) % 9 != 1
    seed = plain.method_seed(1, "Boundary Expand")
    model = plain.copy_of(trained)
    layer = model.classifier
    d = layer.in_features
    wide = nn.Linear(d, 11)
    generator = torch.Generator().manual_seed(derive(seed, "row"))
    with torch.no_grad():
        wide.weight[:10], wide.bias[:10] = layer.weight, layer.bias
        wide.weight[10] = torch.empty(1, d).uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)[0]
        wide.bias[10] = torch.empty(1).uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)[0]
    model.classifier = wide
    masks = plain.masks_of(trained)
    if "classifier.weight" in masks:
        masks["classifier.weight"] = torch.cat([masks["classifier.weight"], torch.ones(1, d, dtype=torch.bool)])
    optimiser = plain.sgd(model, 0.05)
    for epoch in range(3):
        batches = plain.batches_of(digits, forget, 9, seed, epoch)  # no batch of one record
        plain.train_by_hand(
            model, optimiser, batches, lambda x, y: F.cross_entropy(model(x), torch.full_like(y, 10)), masks
        )
    with torch.no_grad():
        layer.weight.copy_(wide.weight[:10])
        layer.bias.copy_(wide.bias[:10])
    x, _ = plain.all_inputs(digits, forget)
    assert (model.eval()(x).argmax(1) == 10).double().mean() > 0.5, "the extra class was not learned"
    model.classifier = layer
    method = get_method("Boundary Expand", epochs=3, learning_rate=0.05, batch_size=9)
    outcome = method.forget(trained, threes, context)
    plain.assert_same(outcome.trained.model, model, 1e-7)
    assert outcome.trained.model.eval()(x).shape == (len(forget), 10)
    assert outcome.trained.model.classifier.out_features == 10
    before = {name: tensor.shape for name, tensor in trained.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in outcome.trained.model.state_dict().items()} == before


class Scaled(nn.Module):
    """Logits that no linear layer returns as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(x.flatten(1)) * 2
        return logits


def test_expand_needs_a_linear_layer_at_the_end(mlp: Trained, digits: Records, context: Context) -> None:
    assert find_output_layer(mlp.model, digits) == "classifier"
    scaled = dataclasses.replace(mlp, model=Scaled())
    with pytest.raises(RequestError, match="not the output of a linear layer"):
        get_method("Boundary Expand").forget(scaled, forget_class(digits, mlp.split, CLASS), context)


def test_expand_has_no_stopping_rule() -> None:
    with pytest.raises(MethodError, match="widened network"):
        get_method("Boundary Expand", stop="validation")


# ---- UNSIR


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_unsir(trained: Trained, digits: Records, threes: ForgetRequest, context: Context) -> None:
    seed = plain.method_seed(1, "UNSIR")
    retain = [i for i in trained.split.retain.tolist() if i not in set(threes.record_ids.tolist())]
    original = plain.copy_of(trained).eval().requires_grad_(False)
    noise = torch.randn((16, 1, 8, 8), generator=torch.Generator().manual_seed(derive(seed, "noise"))).requires_grad_()
    optimiser = torch.optim.Adam([noise], lr=0.1)
    for _ in range(10):
        loss = -F.cross_entropy(original(noise), torch.full((16,), CLASS)) + 0.1 * (noise**2).sum((1, 2, 3)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    noise = noise.detach()
    parts, labels = [], dict(zip(digits.record_ids.tolist(), digits.labels.tolist(), strict=True))
    for index in [k for k in range(10) if k != CLASS]:
        same = [i for i in retain if labels[i] == index]
        keys = mix(digits.keys[digits.rows(same)], derive(derive(seed, "sample", "retain"), "order", 0))
        parts += [same[i] for i in sorted(np.argsort(keys, kind="stable")[:5])]
    x, y = plain.all_inputs(digits, parts)
    data = Records(
        "by hand",
        [*parts, *(f"noise {i}" for i in range(48))],
        np.concatenate([y.numpy(), np.full(48, CLASS)]),
        digits.class_names,
        torch.cat([x, noise, noise, noise]).numpy(),
    )
    model, masks = plain.copy_of(trained), plain.masks_of(trained)
    impair = torch.optim.Adam(model.parameters(), lr=0.002)
    repair = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(2):
        for number, (adam, ids) in enumerate(((impair, data.record_ids), (repair, parts))):
            batches = plain.batches_of(data, ids, 16, seed, 2 * epoch + number)
            plain.train_by_hand(model, adam, batches, lambda x, y: F.cross_entropy(model(x), y), masks)
    method = get_method(
        "UNSIR", epochs=2, learning_rate=0.002, repair_learning_rate=0.001, batch_size=16, noise_steps=10, copies=3,
        samples_per_class=5,
    )  # fmt: skip
    outcome = method.forget(trained, threes, context)
    plain.assert_same(outcome.trained.model, model, 2e-5)
    assert outcome.cost.trained_records == 160 + 2 * (2 * len(parts) + 48)


def test_unsir_says_in_which_step_the_noise_diverged(
    mlp: Trained, digits: Records, threes: ForgetRequest, context: Context
) -> None:
    with pytest.raises(TrainingError, match=r"the loss of the noise is .* in step 2"):
        get_method("UNSIR", noise_learning_rate=1e25, batch_size=8).forget(mlp, threes, context)


# ---- all of them


@pytest.mark.parametrize("name", ["Boundary Expand", "UNSIR", "Boundary Shrink", "DELETE"])
@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_contract_for_a_class(
    name: str, trained: Trained, threes: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    options = {"UNSIR": {"noise_steps": 3, "copies": 1, "samples_per_class": 5}}.get(name, {})
    contract.check(get_method(name, epochs=2, batch_size=16, **options), trained, threes, context, tmp_path)


@pytest.mark.parametrize("name", ["Boundary Expand", "UNSIR"])
def test_single_records_are_refused(name: str, dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(RequestError, match="can only forget a whole class"):
        get_method(name).forget(dense, request_20, context)


SINGLE = ["RL", "SalUn", "Bad Teacher", "DELETE", "Boundary Shrink"]


@pytest.mark.parametrize(
    ("name", "options"), [(name, {}) for name in SINGLE] + [(SINGLE[i], {"legacy": True}) for i in (1, 2, 4)], ids=str
)
def test_a_single_class_is_refused(
    name: str, options: dict[str, bool], mlp: Trained, digits: Records, cpu: Runtime
) -> None:
    assert digits.features is not None
    one = Records("one", digits.record_ids, np.zeros(len(digits), int), ("zero",), digits.features)
    network = copy.deepcopy(mlp.model)
    network.classifier = nn.Linear(12, 1)
    architecture = {**mlp.provenance.architecture, "classes": 1}
    provenance = dataclasses.replace(mlp.provenance, architecture=architecture)
    trained = dataclasses.replace(mlp, model=network, provenance=provenance)
    with pytest.raises(ExpungeError, match="at least two classes"):
        get_method(name, epochs=1, **options).forget(trained, ForgetRequest(mlp.split.retain[:3]), Context(one, cpu))
