"""Methods that do not need D_r, or D_f, run without it: the records are not there, or raise when they are read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import DataError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime


def keep(records: Records, ids: Any) -> Records:
    """The records with the given ids alone."""
    rows = np.sort(records.rows(ids))
    assert records.features is not None
    return Records(
        records.name, records.record_ids[rows], records.labels[rows], records.class_names, records.features[rows]
    )


FORGET_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("GA", {}),
    ("DELETE", {}),
    ("Boundary Shrink", {}),
    ("Boundary Expand", {}),
    ("GA", {"saliency": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), FORGET_ONLY, ids=[f"{n}-{o}" for n, o in FORGET_ONLY])
@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_without_the_retain_set(
    name: str, options: dict[str, Any], model: str, request: pytest.FixtureRequest, digits: Records, cpu: Runtime
) -> None:
    """The records of D_f alone are passed; the result is that with all records, bit for bit."""
    trained = request.getfixturevalue(model)
    asked = forget_class(digits, trained.split, 3)
    method = get_method(name, epochs=2, batch_size=16, **options)
    whole = method.forget(trained, asked, Context(digits, cpu, seed=1))
    alone = keep(digits, asked.record_ids)
    found = method.forget(trained, asked, Context(alone, cpu, seed=1))
    assert found.trained.hash == whole.trained.hash != trained.hash


def test_other_methods_need_it(dense: Trained, digits: Records, cpu: Runtime) -> None:
    """Control of the test above: they ask for records that are not there."""
    asked = forget_class(digits, dense.split, 3)
    alone = Context(keep(digits, asked.record_ids), cpu)
    for name in ("FT", "RL", "NegGrad+", "SCRUB", "Bad Teacher", "SalUn", "MSG", "Fanchuan", "EU-k", "UNSIR"):
        with pytest.raises(DataError, match="no such record"):
            get_method(name, epochs=1).forget(dense, asked, alone)


class Withheld:
    """A stream that raises when certain records are read."""

    def __init__(self, records: Records, hidden: set[str]) -> None:
        self.records, self.hidden = records, hidden

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if str(self.records.record_ids[index]) in self.hidden:
            raise AssertionError("a forgotten record was read")
        assert self.records.features is not None
        return np.array(self.records.features[index]), int(self.records.labels[index])


@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_unsir_without_the_features_of_the_forget_set(
    model: str, request: pytest.FixtureRequest, digits: Records, cpu: Runtime
) -> None:
    trained = request.getfixturevalue(model)
    asked = forget_class(digits, trained.split, 3)
    stream = Withheld(digits, set(asked.record_ids.tolist()))
    records = dataclasses.replace(digits, features=None, stream=stream)
    options = {"batch_size": 16, "noise_steps": 5, "copies": 2, "samples_per_class": 6}
    found = get_method("UNSIR", **options).forget(trained, asked, Context(records, cpu, seed=1))
    whole = get_method("UNSIR", **options).forget(trained, asked, Context(digits, cpu, seed=1))
    assert found.trained.hash == whole.trained.hash != trained.hash
    with pytest.raises(DataError, match="a forgotten record was read"):  # control
        get_method("GA").forget(trained, asked, Context(records, cpu))


def test_cf_k_and_eu_k_do_not_read_the_forget_set(dense: Trained, digits: Records, cpu: Runtime) -> None:
    ids = np.sort(dense.split.retain)[20:40]  # the shape of a record is that of the first in the stream
    stream = Withheld(digits, set(ids.tolist()))
    records = dataclasses.replace(digits, features=None, stream=stream)
    for name in ("FT", "CF-k", "EU-k"):
        get_method(name, epochs=1, batch_size=64).forget(dense, ForgetRequest(ids), Context(records, cpu))


def test_the_split_still_names_the_withheld_records(digits_split: Split, digits: Records, dense: Trained) -> None:
    """Only the features are withheld: the split says which records there are, and the outcome moves them."""
    asked = forget_class(digits, digits_split, 3)
    outcome = get_method("DELETE", epochs=1).forget(dense, asked, Context(keep(digits, asked.record_ids)))
    assert set(outcome.trained.split.forget.tolist()) == set(asked.record_ids.tolist())
    assert len(outcome.trained.split.retain) == len(digits_split.retain) - len(asked.record_ids)
