"""The check of a model: facts counted by hand, and each finding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from expunge.core.hashing import hash_tensors
from expunge.core.trained import plain_state
from expunge.data.records import Records
from expunge.models import Architecture, ModelFacts, describe_model, model_names

ARCH = Architecture("small-cnn", {"widths": [4, 6]}, (1, 8, 8), 3)


def has_finding(facts: ModelFacts, level: str, text: str) -> bool:
    return any(f.level == level and text in f.message for f in facts.findings)


def test_facts_by_hand() -> None:
    facts = describe_model(ARCH.build(), (1, 8, 8), 3)
    assert facts.prunable == {"conv": 4 * 9 + 4 * 6 * 9, "linear": 18}
    assert facts.parameters == facts.trainable == 4 * 9 + 4 * 6 * 9 + 2 * (4 + 6) + 18 + 3
    assert facts.layers == {"BatchNorm2d": 2, "Conv2d": 2, "Identity": 1, "Linear": 1, "ReLU": 2}
    assert (facts.batch_norm, facts.tracking, facts.dropout, facts.zeros, facts.output_width) == (2, 2, 0, 0, 3)
    assert facts.usable
    assert {f.level for f in facts.findings} == {"ok"}
    json.dumps(facts.to_json())


@pytest.mark.parametrize("name", model_names())
def test_every_network_of_ours_is_usable(name: str) -> None:
    shape = (9, 32) if name == "cnn1d" else (3, 32, 32)
    facts = describe_model(Architecture(name, {"width": 4} if name == "resnet18" else {}, shape, 5).build(), shape, 5)
    assert facts.usable
    assert not [f for f in facts.findings if f.level != "ok"]
    assert (facts.dropout > 0) == (name == "alexnet")


def test_the_model_is_not_touched() -> None:
    model = ARCH.build().train()
    before, state = hash_tensors(plain_state(model)), torch.get_rng_state()
    describe_model(model, (1, 8, 8))
    assert hash_tensors(plain_state(model)) == before
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_records_give_shape_and_classes() -> None:
    features = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    ids = ["a", "b", "c"]
    records = Records("made", ids, np.arange(3), ("x", "y", "z", "w"), features=features)  # type: ignore[arg-type]
    facts = describe_model(ARCH.build(), records)
    assert not facts.usable
    assert has_finding(facts, "error", "wrong number of classes: 3 outputs for 4 classes")
    assert facts.findings[0].level == "error", "errors come first"


def test_a_shape_that_is_not_accepted() -> None:
    facts = describe_model(ARCH.build(), (3, 8, 8), 3)
    assert facts.output_width is None
    assert has_finding(facts, "error", "records of shape (3, 8, 8) are not accepted")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    model = ARCH.build()
    with torch.no_grad():
        model.classifier.weight[0, 0] = bad  # type: ignore[union-attr, index, operator]
    facts = describe_model(model, (1, 8, 8), 3)
    assert facts.non_finite == ("classifier.weight",)
    assert has_finding(facts, "error", "NaN or infinite values in classifier.weight")


def test_a_model_that_is_already_pruned() -> None:
    model = ARCH.build()
    with torch.no_grad():
        model.blocks[1][0].weight[:3] = 0.0  # type: ignore[index, union-attr]
    facts = describe_model(model, (1, 8, 8), 3)
    assert facts.zeros == 3 * 4 * 9
    assert facts.zero_fraction == pytest.approx(108 / 270)
    assert has_finding(facts, "warning", "40.0% of 270 prunable weights are exactly zero: the model is already pruned")
    (hint,) = (found.hint for found in facts.findings if "already pruned" in found.message)
    assert "model.mask=zeros" in hint
    assert 'adopt(..., mask="zeros")' in hint  # the same in Python
    assert facts.usable


def test_the_padding_row_of_an_embedding_is_not_pruned() -> None:
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=0), nn.Flatten(), nn.Linear(32, 3))
    assert describe_model(model, (4,), 3).sparse == {}
    with torch.no_grad():
        model[0].weight[3] = 0
    assert describe_model(model, (4,), 3).sparse == {"0.weight": pytest.approx(0.05)}


def test_pruning_hooks_are_found_until_they_are_removed() -> None:
    model = ARCH.build()
    convolution = model.blocks[0][0]  # type: ignore[index]
    prune.l1_unstructured(convolution, "weight", amount=0.5)
    facts = describe_model(model, (1, 8, 8), 3)
    assert facts.reparametrised == ("blocks.0.0.weight",)
    assert has_finding(facts, "error", "blocks.0.0.weight")
    model(torch.rand(2, 1, 8, 8))  # the masked weight now hangs on the graph; deepcopy refuses it
    assert not describe_model(model, (1, 8, 8), 3).usable
    prune.remove(convolution, "weight")
    facts = describe_model(model, (1, 8, 8), 3)
    assert facts.reparametrised == ()
    assert facts.usable
    assert facts.zeros == 18


def test_parametrisations_are_found() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    assert describe_model(model, (4,), 3).reparametrised == ("0.weight",)


def test_batch_norm_without_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    facts = describe_model(model, (4,), 3)
    assert (facts.batch_norm, facts.tracking) == (1, 0)
    assert has_finding(facts, "warning", "1 of 1 BatchNorm layers have no running statistics")


class Odd(nn.Linear):
    """A linear layer whose output is spoilt in one way."""

    def __init__(self, way: str) -> None:
        super().__init__(4, 3)
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.way == "softmax":
            return y.softmax(dim=1)
        if self.way == "random":
            return y + torch.rand_like(y)
        if self.way == "tuple":
            return y, y  # type: ignore[return-value]
        if self.way == "fails":
            raise RuntimeError
        return y.mean(dim=1)


@pytest.mark.parametrize(
    ("way", "level", "text"),
    [
        ("softmax", "warning", "looks like probabilities"),
        ("random", "warning", "random in eval mode"),
        ("tuple", "error", "for 4 records the model returns tuple"),
        ("mean", "error", "tensor of shape (4,)"),
        ("fails", "error", "not accepted (RuntimeError)"),
    ],
)
def test_odd_outputs(way: str, level: str, text: str) -> None:
    facts = describe_model(Odd(way), (4,), 3)
    assert has_finding(facts, level, text)
    assert facts.usable == (level != "error")


def test_frozen_parameters_other_types_and_nothing_to_prune() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    facts = describe_model(model, (4,), 3)
    assert facts.trainable == 15
    assert has_finding(facts, "warning", "20 parameters are frozen")
    assert has_finding(describe_model(model.requires_grad_(False), (4,), 3), "error", "no parameter is trainable")
    assert has_finding(describe_model(nn.Linear(4, 3).bfloat16(), (4,), 3), "warning", "bfloat16, not float32")
    assert has_finding(describe_model(nn.BatchNorm1d(3), (3,), 3), "warning", "nothing can be pruned")
