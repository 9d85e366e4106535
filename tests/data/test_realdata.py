"""The sources on real data sets: counts, first labels, published statistics, subjects."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from expunge.data import forget_subjects, load_records, make_split

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not Path(os.environ.get("EXPUNGE_DATA", "")).is_dir() or not os.environ.get("EXPUNGE_DATA"),
                       reason="EXPUNGE_DATA names no directory"),
]  # fmt: skip


def need(folder: str) -> None:
    if not (Path(os.environ["EXPUNGE_DATA"]) / folder).is_dir():
        pytest.skip(f"{folder} is not in EXPUNGE_DATA")


@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "first"),
    [
        ("cifar10", "cifar10", 5000, 1000, [6, 9, 9, 4, 1]),
        ("fashion-mnist", "fashion_mnist", 6000, 1000, [9, 0, 0, 3, 0]),
        ("mnist", "mnist", None, None, [5, 0, 4, 1, 9]),
    ],
)
def test_images(name: str, folder: str, train: int | None, test: int | None, first: list[int]) -> None:
    need(folder)
    records = load_records(name)
    assert records.labels[:5].tolist() == first
    for part, size in (("train", train), ("test", test)):
        counts = np.bincount(records.labels[records.partition == part])
        assert len(counts) == 10
        if size is not None:
            assert (counts == size).all()
    pixels = records.features[records.partition == "train"]
    # over all pixels of a channel, from the 256 counts
    for channel, (mean, deviation) in enumerate(
        zip(records.normalisation.mean, records.normalisation.std, strict=True)
    ):
        counts = np.bincount(pixels[:, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        found = (counts * values).sum() / counts.sum()
        assert abs(found - mean) < 6e-4, f"the mean of channel {channel} is {found}"
        spread = np.sqrt((counts * (values - found) ** 2).sum() / counts.sum())
        assert abs(spread - deviation) < 6e-4, f"the deviation of channel {channel} is {spread}"


def test_har() -> None:
    need("har")
    records = load_records("har")
    assert records.features.shape == (10_299, 9, 128)
    assert sorted(map(int, np.unique(records.subject_ids))) == list(range(1, 31))
    split = make_split(records, group="subject")
    people = {
        p: set(records.subject_ids[records.rows(getattr(split, p))])
        for p in ("retain", "validation", "non_members", "test")
    }
    assert sum(map(len, people.values())) == 30
    assert len(set.union(*people.values())) == 30
    person = sorted(people["retain"])[0]
    request = forget_subjects(records, split, [person])
    assert len(request.record_ids) == (records.subject_ids == person).sum()
    # most windows begin with what another window of the same person ends with: the reason to group
    ends: dict[bytes, str] = {}
    for window, who in zip(records.features[:, :, 64:], records.subject_ids, strict=True):
        ends[window.tobytes()] = str(who)
    owners = [ends.get(window.tobytes()) for window in records.features[:, :, :64]]
    shared = [
        owner == who for owner, who in zip(owners, records.subject_ids.tolist(), strict=True) if owner is not None
    ]
    assert len(shared) > 0.9 * len(records)
    assert all(shared)


def test_tables() -> None:
    need("adult")
    need("location30")
    adult = load_records("adult")
    assert adult.features.shape == (48_842, 108)
    assert 0 <= adult.features.min() <= adult.features.max() <= 1.1
    np.testing.assert_allclose(adult.features[:, 6:].sum(axis=1), 8)
    assert round(float(adult.labels.mean()), 2) == 0.24
    location = load_records("location30")
    assert location.features.shape == (5010, 446)
    assert set(np.unique(location.features)) == {0.0, 1.0}
    assert location.classes == 30
