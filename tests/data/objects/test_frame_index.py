"""The index of a pandas DataFrame names the rows that its user means; categories keep their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import expunge
from expunge.api.rows import find_rows
from expunge.core.errors import DataError, ExpungeError, ExpungeWarning
from expunge.data.records import Records

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
COUNT = 40


@pytest.fixture
def frame() -> Any:
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "x": rng.standard_normal(COUNT),
            "z": rng.standard_normal(COUNT),
            "withdrawn": np.arange(COUNT) % 7 == 2,
            "label": rng.choice(["no", "yes"], COUNT),
        }
    )


def read(frame: Any, **options: Any) -> Records:
    return Records.from_dataset(frame, label="label", features=["x", "z"], **options)


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame,
        lambda frame: frame.sample(frac=1.0, random_state=1),
        lambda frame: frame[frame.x > -1.0],
        lambda frame: frame.set_index(pandas.RangeIndex(1000, 1000 + COUNT)),
        lambda frame: frame.set_index(pandas.Index([f"p{row}" for row in range(COUNT)])).iloc[::-1],
    ],
    ids=["as made", "shuffled", "filtered", "from 1000", "strings"],
)
def test_labels_of_the_index_name_the_rows_that_pandas_means(frame: Any, change: Any) -> None:
    frame = change(frame)
    records = read(frame)
    chosen = frame.index[frame.withdrawn]
    rows = find_rows(records, chosen, "forget")
    assert frame.withdrawn.iloc[rows].all()
    assert len(rows) == frame.withdrawn.sum() > 0
    own = [caution.message for caution in records.cautions]
    plain = frame.index.tolist() == list(range(len(frame)))
    assert own == ([] if plain else ["the labels of the DataFrame's index are the record ids"])
    assert records.record_ids[0] == ("row-000000" if plain else str(frame.index[0]))
    assert find_rows(records, np.flatnonzero(frame.withdrawn), "forget").tolist() == rows.tolist()


def test_an_index_that_cannot_be_ids_is_refused_as_rows(frame: Any) -> None:
    twice = pandas.concat([frame, frame])
    shuffled = frame.sample(frac=1.0, random_state=1)
    given = [f"p{row}" for row in range(COUNT)]
    for data, ids, first in ((twice, None, "row-000000"), (shuffled, given, "p0"), (shuffled, "name", "q0")):
        records = read(data.assign(name=[f"q{row}" for row in range(len(data))]), ids=ids)
        assert [caution.message for caution in records.cautions] == ["the index of the DataFrame is not used"]
        assert records.record_ids[0] == first
        with pytest.raises(ExpungeError, match="an index of pandas, whose labels are not the numbers") as caught:
            find_rows(records, data.index[data.withdrawn], "forget")
        assert "get_indexer" in str(caught.value)
    several = frame.set_index([frame.withdrawn, frame.index])
    assert read(several).record_ids[0] == "row-000000"


def test_adopt_says_what_the_index_is(frame: Any) -> None:
    torch = pytest.importorskip("torch")
    shuffled = frame.sample(frac=1.0, random_state=1)
    with pytest.warns(ExpungeWarning, match="the labels of the DataFrame's index are the record ids"):
        model = expunge.adopt(torch.nn.Linear(2, 2), read(shuffled), train=shuffled.index[:30])
    assert sorted(model.split.retain.tolist()) == sorted(map(str, shuffled.index[:30]))


def test_labels_in_another_order_than_the_rows_are_refused(frame: Any) -> None:
    with pytest.raises(DataError, match="in another order") as caught:
        Records.from_dataset((frame[["x", "z"]], frame.label.iloc[::-1]))
    assert "y.loc[X.index]" in str(caught.value)
    fine = Records.from_dataset((frame[["x", "z"]].iloc[::-1], frame.label.iloc[::-1]))
    assert fine.labels.tolist() == (frame.label.iloc[::-1] == "yes").astype(int).tolist()


def test_categories_keep_their_order(frame: Any) -> None:
    values = np.random.default_rng(1).choice(["bad", "medium", "good"], COUNT)
    graded = frame.assign(label=pandas.Categorical(values, categories=["bad", "medium", "good", "perfect"]))
    records = read(graded)
    assert records.class_names == ("bad", "medium", "good", "perfect")
    assert records.labels.tolist() == graded.label.cat.codes.tolist()
    assert read(graded, classes=["good", "bad", "medium"]).class_names == ("good", "bad", "medium")
    assert read(frame.assign(label=values)).class_names == ("bad", "good", "medium")  # strings are sorted
    numbers = frame.assign(label=pandas.Categorical(np.arange(COUNT) % 3, categories=[2, 0, 1]))
    assert read(numbers).labels.tolist() == (np.arange(COUNT) % 3).tolist()


def test_truth_values_as_features_are_said(frame: Any) -> None:
    messages = [caution.message for caution in Records.from_dataset(frame, label="label").cautions]
    assert messages == ["withdrawn (true or false) is a feature, and cannot select a forget set"]
    assert read(frame).cautions == ()
