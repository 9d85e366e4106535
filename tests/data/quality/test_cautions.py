"""Cautions: what looks wrong in records is named by `check`, in the notes of scores, and in the report."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError
from expunge.data import Records, load_records
from expunge.data.quality import check_items, find_cautions
from expunge.data.quality.cautions import find_random_items
from expunge.data.records import Caution


def make(shape: tuple[int, ...] = (3,), labels: Any = (0, 1, 0, 1), names: Any = ("x", "y"), **more: Any) -> Records:
    count = len(labels)
    dtype = more.pop("dtype", np.float32)
    ids = more.pop("record_ids", [f"r{i}" for i in range(count)])
    features = np.arange(count * int(np.prod(shape)), dtype=np.int64).reshape(count, *shape) % 200
    values = features.astype(dtype) if dtype == np.uint8 else (features / 200).astype(dtype)
    return Records("s", ids, list(labels), tuple(names), values, **more)


def messages(records: Records) -> str:
    return "\n".join(caution.message for caution in find_cautions(records))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([1, 2, 3, 4] * 3, "1 of 5 classes has no record: 0"),
        ([0, 1, 7] * 4, "5 of 8 classes have no record: 2, 3, 4, 5, 6"),
        ([0, 1, 2] * 4, ""),
    ],
)
def test_classes_without_records(tmp_path: Path, labels: list[int], says: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, features=np.arange(24.0).reshape(12, 2), labels=labels)
    assert messages(load_records("npz", path=str(path))) == says


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((32, 32, 3), np.uint8, "32 channels of 32 x 3"),
        ((32, 32, 3), np.float32, "32 channels of 32 x 3"),
        ((28, 30, 1), np.uint8, "28 channels of 30 x 1"),
        ((16, 16, 4), np.float32, "16 channels of 16 x 4"),
        ((32, 3, 32), np.uint8, "axes exchanged"),
        ((28, 28), np.uint8, "28 channels of 28 steps"),
        ((28, 28), np.float32, "28 channels of 28 steps"),
        ((3, 32, 32), np.uint8, ""),
        ((1, 8, 8), np.float32, ""),
        ((9, 128), np.float32, ""),
        ((3, 3, 3), np.uint8, ""),
        ((784,), np.uint8, ""),
    ],
)
def test_images_in_another_layout(shape: tuple[int, ...], dtype: Any, says: str) -> None:
    found = messages(make(shape, dtype=dtype))
    assert says in found
    assert bool(found) == bool(says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": ("cat", "Cat ")}, "names of 2 classes are nearly the same"),
        ({"names": ("1", "01")}, "names of 2 classes are nearly the same"),
        ({"names": ("1", "1.0")}, "names of 2 classes are nearly the same"),
        ({"names": ("good", "NaN")}, "class 'NaN' looks like a missing label"),
        ({"subject_ids": ["ada", "nan", "nan", "bob"]}, "2 records have the subject id 'nan'"),
        ({"record_ids": ["a", " b", "c", "d"]}, "1 record id begin or end with a blank"),
        ({"cautions": (Caution("as the source says"),)}, "as the source says"),
    ],
)
def test_names_and_values(change: dict[str, Any], says: str) -> None:
    assert says in messages(make(**change))
    assert make(**{**change, "names": ("cat", "dog")}).hash  # they are no errors


def test_zeros_and_ones_that_are_no_image() -> None:
    records = Records("s", ["a", "b"], [0, 1], ("x", "y"), np.eye(2, dtype=np.uint8))
    assert "divided by 255" in messages(records)
    assert messages(Records("s", ["a", "b"], [0, 1], ("x", "y"), np.eye(2, dtype=np.float32))) == ""


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.float64])
def test_images_of_another_type_are_not_divided(tmp_path: Path, dtype: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 6, 6))
    path = tmp_path / "a.npz"
    np.savez(path, features=images.astype(dtype), labels=np.arange(20) % 2)
    assert "not divided by 255" in messages(load_records("npz", path=str(path)))
    np.savez(path, features=images.astype(np.uint8), labels=np.arange(20) % 2)
    assert messages(load_records("npz", path=str(path))) == ""
    np.savez(path, features=images / 255, labels=np.arange(20) % 2)
    assert messages(load_records("npz", path=str(path))) == ""


def test_cautions_are_not_part_of_the_hash() -> None:
    assert make(cautions=(Caution("x"),)).hash == make().hash


def test_items_of_memory_are_not_read_again() -> None:
    assert check_items(make(), np.arange(4)) == 0


def test_items_of_a_stream_are_read_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Noted(list[Any]):
        def __getitem__(self, row: Any) -> Any:
            read.append(row)
            return super().__getitem__(row)

    items = Noted((np.full(2, float(i)), i % 2) for i in range(20))
    records = Records("s", [f"r{i}" for i in range(20)], [i % 2 for i in range(20)], ("x", "y"), stream=items)
    assert records.input_shape == (2,)
    read.clear()
    assert check_items(records, np.asarray([3, 5, 5, 4])) == 3
    assert read == [3, 4, 5]
    monkeypatch.setattr("expunge.data.quality.streams.MOST_ITEMS", 4)
    assert check_items(records, np.arange(20)) == 4
    items[19] = (np.zeros(3), 1)
    with pytest.raises(DataError, match="s: r19: has the shape"):
        check_items(records, np.arange(20))


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "own"])
def test_items_that_are_drawn_are_noticed(source: str) -> None:
    generator = np.random.default_rng(0)
    draw: dict[str, Callable[[], float]] = {
        "torch": lambda: float(torch.rand(())),
        "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 (a dataset of a user may use it)
        "python": random.random,
        "own": lambda: float(generator.random()),
    }

    class Data:
        def __init__(self, strength: float) -> None:
            self.strength, self.targets = strength, [row % 2 for row in range(6)]

        def __len__(self) -> int:
            return 6

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return torch.full((3,), float(row)) + self.strength * draw[source](), row % 2

    for strength, found in ((0.0, 0), (0.5, 1)):
        records = Records.from_dataset(Data(strength))
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        messages = [caution.message for caution in find_random_items(records)]
        assert messages == ["the items of the dataset differ from reading to reading: it augments them itself"] * found
        if source != "own":  # the generators of the process are as they were
            assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
            assert torch.equal(before[2], torch.get_rng_state())
        assert set(find_random_items(records)) <= set(find_cautions(records))
