"""The call in an architecture: absent for ordinary networks, recorded for named and integer inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import ModelError
from expunge.core.trained import find_running_tensors
from expunge.data.fields import Field, InputFields
from expunge.models import Architecture, check_trainable, describe_model, live, register_model
from expunge.models.architecture import MODELS
from expunge.models.call import ModelCall

TOKENS = np.arange(24).reshape(6, 4) % 9


class Words(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, classes)

    def forward(self, words):
        return {"hidden": self.embed(words), "scores": self.head(self.norm(self.embed(words).mean(1)))}


def make_records(features=TOKENS, fields=None):
    return expunge.Records("toy", list("abcdef"), [0, 1, 2] * 2, ("x", "y", "z"), features, fields=fields)


def test_ordinary_architectures_have_no_call():
    body = Architecture("mlp", {}, (4,), 3).to_json()
    assert "call" not in body
    assert Architecture.from_json(body).call is None


@pytest.mark.parametrize("fields", [None, InputFields((Field("words", (4,), "int64"),))])
def test_integer_records_have_their_call_recorded(fields):
    records = make_records(fields=fields)
    network = expunge.architecture(live.register_factory(lambda: Words(), title="words"), records)
    assert network.call.output == "scores"
    assert network.call.fields.names == ("" if fields is None else "words",)
    again = Architecture.from_json(network.to_json())
    assert again == network
    assert again.hash == network.hash
    model = again.build(1)
    assert model(torch.from_numpy(TOKENS)).shape == (6, 3)
    check_trainable(model, records.input_shape, 3)
    assert find_running_tensors(model, records.input_shape) == (
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    )  # fmt: skip
    facts = describe_model(model, records)
    assert facts.usable, facts.findings
    assert facts.output_width == 3


def test_a_registered_network_of_tokens():
    @register_model("words-only")
    class WordsOnly(nn.Module):
        """Mean of embeddings."""

        def __init__(self, input_shape, classes, normalise, words=9):
            super().__init__()
            self.embed = nn.Embedding(words, 5)
            self.head = nn.Linear(5, classes)

        def forward(self, x):
            return self.head(self.embed(x).mean(1))

    try:
        records = make_records()
        network = expunge.architecture("words-only", records)
        assert network.call == ModelCall(InputFields((Field("", (4,), "int64"),)))
        assert network.build(0)(torch.from_numpy(TOKENS)).shape == (6, 3)
        with pytest.raises(ModelError, match="integer inputs are not normalised"):
            expunge.architecture("words-only", records, expunge.make_split(records), normalise="training")
    finally:
        MODELS.remove("words-only")


def test_a_factory_that_returns_a_mapping_is_adapted_without_fields():
    name = live.register_factory(lambda: TwoOutputs(4, 3), title="two-outputs")
    network = expunge.architecture(name, make_records(np.zeros((6, 4), dtype=np.float32)))
    assert network.call is None
    assert network.build(0)(torch.zeros(5, 4)).shape == (5, 3)


class TwoOutputs(nn.Linear):
    def forward(self, x):
        return {"hidden": x, "logits": super().forward(x)}


def test_wrong_calls_are_refused():
    call = ModelCall(InputFields((Field("x", (5,), "int64"),)))
    with pytest.raises(ModelError, match=r"the inputs take \(5,\), not \(4,\)"):
        Architecture("mlp", {}, (4,), 3, call=call)
    name = live.register_factory(lambda: Words(), title="words")
    fields = InputFields((Field("words", (4,), "int64"),))
    with pytest.raises(ModelError, match="no output 'logits' but a dict with hidden"):
        Architecture(name, {}, (4,), 3, call=ModelCall(fields, "logits")).build(0)
    body = {**Architecture("mlp", {}, (4,), 3).to_json(), "call": {"fields": [], "output": ""}}
    with pytest.raises(ModelError, match="cannot be read"):
        Architecture.from_json(body)
