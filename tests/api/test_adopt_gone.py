"""Models of which the retain set is gone: what works, what is refused, and a stand-in, in Python."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from own_networks import make_mlp

import expunge
from expunge.core.errors import ConfigError, DataError, MethodError, ModelError, RequestError
from expunge.data.records import Records

FORGET = np.arange(8)
REST = np.arange(8, 300)


def take(records: Records, rows: np.ndarray) -> Records:
    assert records.features is not None
    ids, labels = records.record_ids[rows], records.labels[rows]
    return Records(records.name, ids, labels, records.class_names, records.features[rows])


@pytest.fixture
def left(digits: Records) -> Records:
    """The records of D_f, and 100 for tests; those of D_r are gone."""
    return take(digits, np.concatenate([FORGET, np.arange(300, 400)]))


@pytest.fixture
def whole(own_mlp: torch.nn.Module, digits: Records) -> expunge.api.adopted.AdoptedModel:
    return expunge.adopt(
        own_mlp, digits, train=range(300), test=range(300, 400), factory=make_mlp, recipe={"epochs": 1}
    )


def adopt_left(own_mlp, digits, left, **options):
    gone = digits.record_ids[REST].tolist()
    return expunge.adopt(own_mlp, left, **{"train": range(8), "test": range(8, 108), "gone": gone, **options})


def test_what_does_not_read_the_retain_set_gives_the_same_weights(own_mlp, digits, left, whole):
    model = adopt_left(own_mlp, digits, left)
    assert model.split.retain.tolist() == whole.split.retain.tolist()
    result, expected = model.forget(FORGET, "GA", epochs=2), whole.forget(FORGET, "GA", epochs=2)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor)
    assert result.outcome.to_json()["retain"] == {"absent": True, "stand_in": None}
    scores = result.evaluate()
    assert scores["UA"].value == expected.evaluate()["UA"].value
    assert "RA" in scores.missing


def test_methods_and_check_say_which_methods_work(own_mlp, digits, left):
    model = adopt_left(own_mlp, digits, left, factory=make_mlp, recipe={"epochs": 1})
    for rows in (None, FORGET):
        usable = {row.name for row in model.methods(rows) if row.usable}
        assert {"GA", "PBU"} <= usable
        assert not usable & {"FT", "Retrain", "SCRUB", "l1-sparse"}
    assert model.check("GA", FORGET).usable
    assert "declared to be gone" in model.check("GA", FORGET).text()
    with pytest.raises(MethodError, match="D_r"):
        model.forget(FORGET, "FT")


def test_the_number_of_gone_records_is_enough(own_mlp, digits, left):
    model = adopt_left(own_mlp, digits, left, gone=292)
    assert len(model.split.retain) == 300
    assert model.forget(FORGET, "GA", epochs=1).outcome.cost.passes == pytest.approx(8 / 292)


def test_a_chain_keeps_the_declaration(own_mlp, digits, left):
    first = adopt_left(own_mlp, digits, left).forget(FORGET[:3], "GA", epochs=1)
    second = first.forget(FORGET[3:], "GA", epochs=1)
    assert second.split.retain_absent
    assert len(second.split.forget) == 8
    with pytest.raises(RequestError, match="was forgotten before"):
        second.forget([0], "GA")


def test_a_saved_model_whose_retain_set_is_gone(own_mlp, digits, left, whole, tmp_path):
    expunge.save_trained(whole.trained, tmp_path / "own")
    trained = expunge.load_trained(tmp_path / "own", trust=["own_networks"])
    with pytest.raises(ModelError, match="other data") as caught:
        expunge.adopt(trained, left)
    assert "gone=True" in str(caught.value)
    model = expunge.adopt(trained, left, gone=True)
    assert model.split.retain_absent
    assert model.forget(FORGET, "GA", epochs=1).trained.hash == whole.forget(FORGET, "GA", epochs=1).trained.hash
    for kept, what in ((np.arange(300, 400), "no record that the model was trained on"), (FORGET, "which is in test")):
        with pytest.raises(ModelError, match=what):
            expunge.adopt(trained, take(digits, kept), gone=True)
    with pytest.raises(ConfigError, match="knows its training records"):
        expunge.adopt(trained, left, gone=5)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (0, "gone: is 0"),
        (True, "gone: is a bool"),
        (1.5, "gone: is a float"),
        ([], "names no record"),
        (["x", "x"], "names a record twice"),
    ],
)
def test_wrong_declarations(own_mlp, digits, left, gone, message):
    with pytest.raises(DataError, match=message):
        adopt_left(own_mlp, digits, left, gone=gone)


def test_records_that_are_there_are_not_gone(own_mlp, digits, left):
    with pytest.raises(DataError, match="is in the data, so it is not gone"):
        adopt_left(own_mlp, digits, left, gone=[left.record_ids[3]])
    with pytest.raises(ConfigError, match="cannot be measured"):
        adopt_left(own_mlp, digits, left, normalise="training")
    with pytest.raises(RequestError, match="delete the model instead") as caught:
        adopt_left(own_mlp, digits, left, gone=None).forget(FORGET, "GA")
    assert "adopt(..., gone=...)" in str(caught.value)


def test_a_stand_in_takes_the_place_of_the_retain_set(own_mlp, digits, left, whole):
    model = adopt_left(own_mlp, digits, left)
    public = take(digits, np.arange(400, 480))
    result = model.forget(FORGET, "FT", epochs=2, stand_in=public)
    assert result.outcome.guarantee == "empirical"
    assert result.outcome.to_json()["retain"]["stand_in"]["records"] == 80
    assert result.split.retain_absent
    before = own_mlp.state_dict()
    assert not all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())
    same = model.forget(FORGET, "FT", epochs=2, stand_in=(public.features, public.labels))
    assert same.outcome.to_json()["retain"]["stand_in"]["records"] == 80
    with pytest.raises(RequestError, match="the retain records are there"):
        whole.forget(FORGET, "FT", stand_in=public)
    copied = dataclasses.replace(public, features=np.concatenate([public.features[1:], left.features[:1]]))
    with pytest.raises(RequestError, match="exact cop"):
        model.forget(FORGET, "FT", stand_in=copied)
