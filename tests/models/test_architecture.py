"""Architectures: names, options, JSON, and which input constants they get."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, ModelError
from expunge.core.split import Split
from expunge.core.trained import plain_state
from expunge.data.records import Normalisation, Records
from expunge.models import Architecture, architecture, register_model


def make_records(features: np.ndarray, published: Normalisation | None = None) -> Records:
    ids = [f"r{i:03d}" for i in range(len(features))]
    labels = np.arange(len(features)) % 3
    return Records("made", ids, labels, ("a", "b", "c"), features=features, normalisation=published)  # type: ignore[arg-type]


def make_split(records: Records, train: int) -> Split:
    ids = records.record_ids
    return Split(retain=ids[:train], forget=ids[:0], validation=ids[:0], test=ids[train:], non_members=ids[:0])


@pytest.fixture
def records() -> Records:
    features = np.random.default_rng(0).normal(3.0, 2.0, (40, 5)).astype(np.float32)
    return make_records(features)


def test_shape_and_classes_come_from_the_records(records: Records) -> None:
    arch = architecture("mlp", records, widths=[7])
    assert (arch.input_shape, arch.classes, arch.options["widths"]) == ((5,), 3, (7,))
    assert arch.options["batch_norm"] is False
    assert arch.build()(torch.zeros(2, 5)).shape == (2, 3)


def test_json_rebuilds_the_same_bits(records: Records) -> None:
    arch = architecture("mlp", records, make_split(records, 30), widths=[7])
    body = json.loads(json.dumps(arch.to_json()))
    again = Architecture.from_json(body)
    assert again == arch
    assert again.hash == arch.hash
    first, second = plain_state(arch.build(4)), plain_state(again.build(4))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_hash_tells_architectures_apart(records: Records) -> None:
    base = architecture("mlp", records)
    others = [
        architecture("mlp", records, widths=[64]),
        architecture("mlp", records, make_split(records, 30)),
        dataclasses.replace(base, classes=4),
        dataclasses.replace(base, input_shape=(6,)),
    ]
    assert len({base.hash, *(other.hash for other in others)}) == 5
    assert base.hash == Architecture("mlp", {"widths": [64, 64]}, (5,), 3).hash, "a default that is spelt out"


def test_auto_takes_published_then_measured_then_none(records: Records) -> None:
    published = Normalisation((0.5,) * 5, (2.0,) * 5)
    with_constants = dataclasses.replace(records, normalisation=published)
    split = make_split(records, 30)
    assert architecture("mlp", with_constants, split).normalisation == published
    measured = architecture("mlp", records, split)
    assert measured.normalisation is not None
    assert measured.normalisation.origin == "training records"
    assert measured.to_json()["normalisation_from"] == "training records"
    assert architecture("mlp", records).normalisation is None
    assert architecture("mlp", with_constants, split, normalise="none").normalisation is None
    assert architecture("mlp", with_constants, split, normalise="training") == measured


def test_constants_are_measured_on_training_records_and_again_on_those_retained(records: Records) -> None:
    split = make_split(records, 30)
    forgotten = split.move_to_forget(records.record_ids[:10])
    original = architecture("mlp", records, forgotten)
    assert original == architecture("mlp", records, split), "D is retain and forget together"
    retrained = original.remeasure_normalisation(records, forgotten.retain)
    assert records.features is not None
    for arch, rows in ((original, slice(0, 30)), (retrained, slice(10, 30))):
        assert arch.normalisation is not None
        assert arch.normalisation.origin == "training records"
        direct = records.features[rows].astype(np.float64)
        np.testing.assert_allclose(arch.normalisation.mean, direct.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(arch.normalisation.std, direct.std(axis=0), rtol=1e-6)
    published = dataclasses.replace(original, normalisation=Normalisation((0.0,) * 5, (1.0,) * 5))
    assert published.remeasure_normalisation(records, forgotten.retain) == published
    plain = dataclasses.replace(original, normalisation=None)
    assert plain.remeasure_normalisation(records, forgotten.retain) == plain


def test_constants_that_cannot_be_had(records: Records) -> None:
    with pytest.raises(ModelError, match="no published"):
        architecture("mlp", records, normalise="published")
    with pytest.raises(ModelError, match="needs a split"):
        architecture("mlp", records, normalise="training")
    with pytest.raises(ConfigError, match="did you mean 'training'"):
        architecture("mlp", records, normalise="trainin")
    with pytest.raises(ModelError, match="no training records"):
        architecture("mlp", records, make_split(records, 0), normalise="training")


def test_unknown_names_get_the_nearest_one(records: Records) -> None:
    with pytest.raises(ModelError, match=r"did you mean 'resnet18'"):
        architecture("resnet-18", records)
    with pytest.raises(ConfigError, match=r"no option 'width'.*\n.*did you mean 'widths'"):
        architecture("mlp", records, width=[3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": None}, "has no name"),
        ({"classes": None}, "cannot be read"),
        ({"classes": 0}, "0 classes"),
        ({"input_shape": []}, "cannot be an input"),
        ({"input_shape": ["x"]}, "cannot be read"),
        ({"normalisation": {"mean": [0.0]}}, "cannot be read"),
        ({"name": "resnet1"}, "unknown model"),
    ],
)
def test_damaged_json(records: Records, change: dict, says: str) -> None:
    body = {**architecture("mlp", records).to_json(), **change}
    with pytest.raises(ModelError, match=says):
        Architecture.from_json(body)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ModelError, match="has no name, input_shape, classes"):
        Architecture.from_json({})


def test_a_name_is_registered_only_once() -> None:
    with pytest.raises(ConfigError, match=r"registered already, by expunge\.models\.architectures\.mlp"):
        register_model("mlp")(torch.nn.Linear)


def test_float64_as_the_default_type_changes_nothing(records: Records) -> None:
    arch = architecture("mlp", records, make_split(records, 30))
    torch.set_default_dtype(torch.float64)
    try:
        model = arch.build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in plain_state(model).values()} == {torch.float32}
