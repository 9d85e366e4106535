"""Confidence during training, against the stored checkpoints of the same training, and the strata made from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge.core.early_checkpoints import unpack_checkpoints
from expunge.core.errors import ConfigError, RequestError
from expunge.data import forget_stratum
from expunge.training import measure_training_confidences


def test_confidences_are_those_of_the_model_after_each_epoch() -> None:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0, limit=300)
    recipe = expunge.Recipe(epochs=3, batch_size=64, keep_epochs=(1, 2), rewind=0.0)
    network = expunge.architecture("mlp", records, split, widths=(16,))
    runtime = expunge.Runtime("cpu")
    trained = expunge.train(records, split, network, recipe=recipe, seed=5, runtime=runtime)
    states = [*unpack_checkpoints(trained.state["early_checkpoints"]).values(), trained.model.state_dict()]
    rows = np.sort(records.rows(split.train))
    expected = np.zeros(len(rows))
    for state in states:
        model = network.build(0)
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(records.features[rows])).double().numpy()
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected += (probabilities / probabilities.sum(axis=1, keepdims=True))[
            np.arange(len(rows)), records.labels[rows]
        ]
    found = measure_training_confidences(records, rows[::-1], network, recipe=recipe, seed=5, runtime=runtime)
    assert np.array_equal(found.rows, rows)
    assert found.confidences == pytest.approx(expected / 3, abs=1e-6)
    assert found.epochs == 3
    order = found.smallest_first()
    assert (np.diff(found.confidences[np.searchsorted(rows, order)]) >= 0).all()


def test_mislabelled_records_are_in_the_stratum_of_high_memorisation() -> None:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0)
    planted = expunge.data.plant_canaries(records, split, count=60)
    after = expunge.make_split(planted, seed=0)
    network = expunge.architecture("mlp", planted, after, widths=(32,))
    found = measure_training_confidences(
        planted, planted.rows(after.train), network, recipe=expunge.Recipe(epochs=5), runtime=expunge.Runtime("cpu")
    )
    ranking = planted.record_ids[found.smallest_first()]
    high = set(forget_stratum(planted, after, ranking, "high").record_ids.tolist())
    low = set(forget_stratum(planted, after, ranking, "low").record_ids.tolist())
    canaries = set(planted.planted.record_ids.tolist())
    assert len(canaries & high) >= 55
    assert not canaries & low


@pytest.fixture
def toy() -> tuple[Any, Any, list[str]]:
    ids = [f"r{i:02d}" for i in range(11)]
    records = expunge.Records("t", ids, np.zeros(11, dtype=int), ("a",), np.zeros((11, 1), np.float32))
    split = expunge.Split(retain=ids[:10], forget=[], validation=[], test=ids[10:], non_members=[])
    ranking = [f"r{i:02d}" for i in (9, 2, 5, 10, 0, 1, 3, 4, 6, 7, 8)]
    return records, split, ranking


def test_strata_are_thirds_of_the_ranking(toy: tuple[Any, Any, list[str]]) -> None:
    records, split, ranking = toy
    found = {
        name: forget_stratum(records, split, ranking, name).record_ids.tolist() for name in ("high", "middle", "low")
    }
    assert found == {
        "high": ["r00", "r02", "r05", "r09"],
        "middle": ["r01", "r03", "r04"],
        "low": ["r06", "r07", "r08"],
    }
    drawn = forget_stratum(records, split, ranking, "high", count=2, seed=1)
    assert set(drawn.record_ids) < set(found["high"])
    assert drawn.selection == {"by": "memorisation-stratum", "stratum": "high", "count": 2, "seed": 1}
    assert len(forget_stratum(records, split, ranking, "low", fraction=0.1).record_ids) == 1
    held = forget_stratum(records, split, ranking, "low", hold=["r07"])
    assert held.record_ids.tolist() == ["r06", "r08"]


@pytest.mark.parametrize(
    ("stratum", "options", "message"),
    [
        ("lowest", {}, "unknown stratum"),
        ("low", {"count": 4}, "4 records cannot be drawn from the 3"),
        ("low", {"count": 1, "fraction": 0.1}, "either a fraction or a count"),
        ("low", {"fraction": -0.1}, "not between 0 and 1"),
        ("low", {"count": 1.5}, "not an integer"),
    ],
)
def test_bad_strata_are_refused(
    toy: tuple[Any, Any, list[str]], stratum: str, options: dict[str, Any], message: str
) -> None:
    records, split, ranking = toy
    with pytest.raises((RequestError, ConfigError), match=message):
        forget_stratum(records, split, ranking, stratum, **options)


def test_a_ranking_with_a_record_twice_is_refused(toy: tuple[Any, Any, list[str]]) -> None:
    """It would have another third than a third of the records."""
    records, split, ranking = toy
    with pytest.raises(RequestError, match="more than once"):
        forget_stratum(records, split, [*ranking, ranking[0]], "high")


def test_a_ranking_without_a_record_is_refused(toy: tuple[Any, Any, list[str]]) -> None:
    records, split, ranking = toy
    with pytest.raises(RequestError, match="lacks a record"):
        forget_stratum(records, split, ranking[1:], "low")
