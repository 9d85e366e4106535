"""Adapted models: the user's own numbers, names and class, behind "tensor in, logits out"."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.data.fields import Field, InputFields
from expunge.models.call import ModelCall, adapt, detect_call, find_call, unadapt

FIELDS = InputFields((Field("words", (4,), "int64"), Field("mask", (4,), "int64")), "mask")


class Pair(NamedTuple):
    hidden: torch.Tensor
    scores: torch.Tensor


class Holder:
    def __init__(self, logits):
        self.logits, self.loss = logits, None


class Tagger(nn.Module):
    def __init__(self, wrap=lambda hidden, logits: {"hidden": hidden, "logits": logits}):
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.head = nn.Linear(5, 3)
        self.wrap = wrap

    def forward(self, words, mask):
        hidden = (self.embed(words) * mask[..., None]).sum(1)
        return self.wrap(hidden, self.head(hidden))


def make_values(count=2):
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 9, (count, 4), generator=generator)
    return {"words": words, "mask": torch.tensor([[1, 1, 1, 0]] * count)}


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda hidden, logits: logits, ""),
        (lambda hidden, logits: {"hidden": hidden, "logits": logits}, "logits"),
        (lambda hidden, logits: {"logits": logits, "again": logits}, "logits"),
        (lambda hidden, logits: {"hidden": hidden, "scores": logits}, "scores"),
        (lambda hidden, logits: (hidden, logits), "1"),
        (lambda hidden, logits: [logits], "0"),
        (lambda hidden, logits: Pair(hidden, logits), "scores"),
        (lambda hidden, logits: Holder(logits), "logits"),
    ],
)
def test_detected_output_gives_the_logits(wrap, output):
    torch.manual_seed(0)
    model, values = Tagger(wrap), make_values()
    call = detect_call(model, FIELDS.probe(2), 3, FIELDS)
    assert call == ModelCall(FIELDS, output)
    assert ModelCall.from_json(call.to_json()) == call
    adapted = adapt(model, call)
    expected = model.head((model.embed(values["words"]) * values["mask"][..., None]).sum(1))
    assert torch.equal(adapted(torch.from_numpy(FIELDS.pack_batch(values))), expected)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda hidden, logits: {"hidden": hidden, "scores": logits[0]}, r"with hidden \(2, 5\), scores \(3,\)"),
        (lambda hidden, logits: {"a": logits, "b": logits}, "several outputs.*: a, b"),
        (lambda hidden, logits: {"logits": hidden}, "wrong number of classes: the model has 5 outputs"),
        (lambda hidden, logits: hidden, "wrong number of classes: the model has 5 outputs"),
        (lambda hidden, logits: None, "returns a NoneType"),
        (lambda hidden, logits: hidden.sum(), "returns a tensor of shape"),
    ],
)
def test_logits_elsewhere_are_refused_with_the_outputs_found(wrap, message):
    with pytest.raises(ModelError, match=message):
        detect_call(Tagger(wrap), FIELDS.probe(2), 3, FIELDS)


def test_inputs_that_the_model_does_not_take_are_refused():
    other = InputFields((*FIELDS.fields, Field("token_type_ids", (4,), "int64")), "mask")
    with pytest.raises(ModelError, match="no input 'token_type_ids'; it takes words, mask"):
        detect_call(Tagger(), other.probe(2), 3, other)
    with pytest.raises(ModelError, match=r"does not accept records of shape \(4,\) int64"):
        detect_call(nn.Linear(4, 3), torch.zeros(2, 4, dtype=torch.int64), 3)


def test_the_copy_keeps_names_class_hooks_and_the_users_own_call():
    model, values = Tagger(), make_values()
    seen = []
    model.head.register_forward_hook(lambda *_: seen.append(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = adapt(model, ModelCall(FIELDS, "logits"))
    assert list(adapted.state_dict()) == list(before)
    assert isinstance(adapted, Tagger)
    assert type(adapted).__name__ == "Tagger"
    assert type(model) is Tagger
    assert adapted is not model
    assert adapted.embed.weight is not model.embed.weight
    out = adapted(**values)
    assert set(out) == {"hidden", "logits"}
    packed = torch.from_numpy(FIELDS.pack_batch(values))
    assert torch.equal(adapted(packed), out["logits"])
    assert len(seen) == 2
    assert type(copy.deepcopy(adapted)) is type(adapted)
    assert type(adapt(Tagger(), ModelCall(FIELDS, "logits"))) is type(adapted)
    assert type(unadapt(adapted)) is Tagger
    assert unadapt(model) is model
    assert find_call(adapted) == ModelCall(FIELDS, "logits")
    assert find_call(model) is None


def test_adapting_again_replaces_the_call():
    model = adapt(Tagger(lambda hidden, logits: (hidden, logits)), ModelCall(FIELDS, "0"))
    assert adapt(model, ModelCall(FIELDS, "0")) is model
    other = adapt(model, ModelCall(FIELDS, "1"))
    assert other(FIELDS.probe(2)).shape == (2, 3)
    assert type(adapt(other, ModelCall())) is Tagger
    plain = nn.Linear(2, 2)
    assert adapt(plain, ModelCall()) is plain


def test_functional_call_vmap_and_gradients_are_those_of_the_user():
    torch.manual_seed(0)
    model, values = Tagger(), make_values(3)
    adapted = adapt(model, ModelCall(FIELDS, "logits"))
    packed, y = torch.from_numpy(FIELDS.pack_batch(values)), torch.tensor([0, 1, 2])
    nn.functional.cross_entropy(model(**values)["logits"], y).backward()
    nn.functional.cross_entropy(adapted(packed), y).backward()
    for (name, one), (other, two) in zip(model.named_parameters(), adapted.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one.grad, two.grad)
    parameters = dict(adapted.named_parameters())

    def loss(weights, x, label):
        logits = torch.func.functional_call(adapted, weights, (x[None],))
        return nn.functional.cross_entropy(logits, label[None])

    rows = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, packed, y)
    assert torch.allclose(rows["head.weight"].mean(0), model.head.weight.grad, atol=1e-6)


def test_a_replaced_forward_is_refused():
    model = Tagger()
    model.forward = lambda words, mask: None
    with pytest.raises(ModelError, match="replaces the forward of its class"):
        adapt(model, ModelCall(FIELDS, "logits"))


def test_a_call_that_does_not_fit_says_what_was_returned():
    with pytest.raises(ModelError, match=r"no output 'scores' but a dict with hidden \(2, 5\), logits"):
        adapt(Tagger(), ModelCall(FIELDS, "scores"))(FIELDS.probe(2))
    with pytest.raises(ModelError, match="a name or the number"):
        ModelCall(output="a b")
    with pytest.raises(ModelError, match="cannot be read"):
        ModelCall.from_json({"output": "logits"})
