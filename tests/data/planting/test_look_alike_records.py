"""Look-alikes: at the declared distance, found by the count of copies; the control has no copy and the same D_f."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import RequestError
from expunge.data import Records, forget_planted, forget_random, plant_look_alikes
from expunge.data.quality import count_copies
from expunge.data.quality.copies import measure_nearest, measure_usual_distance


def make(shape: tuple[int, ...], dtype: Any = np.float32, count: int = 200) -> Records:
    rng = np.random.default_rng(0)
    features = rng.integers(40, 216, (count, *shape))
    units = 10.0 ** (np.arange(shape[0]) % 3).reshape(-1, *[1] * (len(shape) - 1))
    features = features.astype(np.uint8) if dtype == np.uint8 else (units * features).astype(np.float32)
    return Records("t", [f"r{i:04d}" for i in range(count)], np.arange(count) % 2, ("a", "b"), features)


def scale_by_hand(records: Records, retain: np.ndarray) -> np.ndarray:
    """All records in units of the standard deviation of each channel over the retain set."""
    rows = records.features[retain].astype(np.float64)
    axes = (0, *range(2, rows.ndim))
    return (records.features / rows.std(axis=axes, keepdims=True)).reshape(len(records), -1)


@pytest.mark.parametrize("shape", [(3, 6, 5), (12,)])
def test_copies_are_at_the_declared_distance(shape: tuple[int, ...]) -> None:
    records = make(shape)
    split = expunge.make_split(records)
    retain = records.rows(split.retain)
    points = scale_by_hand(records, retain)[retain]
    distances = np.sqrt(np.square(points[:, None] - points[None]).sum(axis=2))
    np.fill_diagonal(distances, np.inf)
    usual = np.median(distances.min(axis=1))
    measured = measure_usual_distance(records, retain)[0]
    if shape == (12,):
        assert measured == pytest.approx(usual)
    assert usual * (1 - 1e-9) <= measured < 1.2 * usual  # of many numbers, neighbours are found in a projection
    planted = plant_look_alikes(records, split, count=10, copies=3, distance=0.05)
    scaled = scale_by_hand(planted, retain)
    moved = scaled[200:] - scaled[planted.rows(planted.planted.base_ids)]
    assert np.sqrt(np.square(moved).sum(axis=1)) == pytest.approx(np.full(30, 0.05 * measured), rel=1e-3)
    directions = moved / np.sqrt(np.square(moved).sum(axis=1, keepdims=True))
    products = directions @ directions.T
    np.fill_diagonal(products, 0)
    assert np.abs(products).max() < 0.99  # no two copies are moved alike


def test_integers_are_rounded_and_stay_in_range() -> None:
    records = make((1, 8, 8), np.uint8)
    planted = plant_look_alikes(records, expunge.make_split(records), count=10, copies=2, distance=0.15)
    assert planted.features.dtype == np.uint8
    assert (
        (planted.features[200:] != planted.features[planted.rows(planted.planted.base_ids)]).any(axis=(1, 2, 3)).all()
    )


@pytest.mark.parametrize("change", ["noise", "shift"])
def test_planted_copies_are_found_by_the_count_of_copies(change: str) -> None:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0)
    planted = plant_look_alikes(records, split, count=40, copies=2, change=change)
    after = expunge.make_split(planted, seed=0)
    request = forget_planted(planted, after)
    parts = {"retain": planted.rows(request.apply(after).retain)}
    copies = count_copies(planted, planted.rows(request.record_ids), parts).parts["retain"]
    clean = count_copies(
        records, records.rows(request.record_ids), {"retain": records.rows(request.apply(split).retain)}
    )
    if change == "noise":
        assert (copies.exact, copies.near, copies.near_copies) == (0, 40, 80)
        assert clean.parts["retain"].near < 40
    else:  # a shift by one pixel of 8 x 8 pixels is farther than a near copy, so only the control is certain
        assert copies.near >= clean.parts["retain"].near


def test_shifts_are_shifts_and_differ() -> None:
    records = make((2, 7, 6), np.uint8)
    planted = plant_look_alikes(records, expunge.make_split(records), count=5, copies=8, change="shift")
    found: dict[str, set[tuple[int, int]]] = {}
    for row in range(200, 240):
        base = planted.planted.base_ids[row - 200]
        before, after = records.features[records.rows([base])[0]], planted.features[row]
        padded = np.pad(before, ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = {(y, x): padded[:, y : y + 7, x : x + 6] for y in range(3) for x in range(3)}
        offsets = [place for place, window in windows.items() if np.array_equal(window, after)]
        assert len(offsets) == 1
        assert offsets[0] != (1, 1)
        found.setdefault(base, set()).update(offsets)
    assert all(len(offsets) == 8 for offsets in found.values())


def test_the_forget_set_is_that_of_a_random_request_and_copies_stay() -> None:
    records = make((5,))
    split = expunge.make_split(records)
    planted = plant_look_alikes(records, split, count=12, copies=4, seed=7)
    after = expunge.make_split(planted)
    request = forget_planted(planted, after)
    assert np.array_equal(request.record_ids, forget_random(records, split, count=12, seed=7).record_ids)
    assert np.isin(planted.planted.record_ids, request.apply(after).retain).all()
    assert len(after.retain) == len(split.retain) + 48
    assert np.array_equal(planted.labels[200:], records.labels[records.rows(planted.planted.base_ids)])
    control = plant_look_alikes(records, split, count=12, copies=0, seed=7)
    assert control.hash == records.hash
    assert np.array_equal(forget_planted(control, expunge.make_split(control)).record_ids, request.record_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": 0.0}, "not above 0"),
        ({"distance": 1e40}, "at most 100"),
        ({"distance": float("inf")}, "not a finite number"),
        ({"distance": "near"}, "not a finite number"),
        ({"copies": 10**9}, "1000000000 copies"),
        ({"distance": 1e-9}, "would equal the record"),
        ({"change": "shift", "copies": 9}, "there are 8 shifts"),
        ({"change": "shift", "pixels": 6}, "a shift of 6 pixels"),
        ({"copies": -1}, "-1 copies"),
        ({"copies": 1.5}, "not an integer"),
        ({"count": 10_000}, "cannot be drawn"),
    ],
)
def test_bad_copies_are_refused(options: dict[str, Any], message: str) -> None:
    records = make((1, 6, 6), np.uint8)
    with pytest.raises(RequestError, match=message):
        plant_look_alikes(records, expunge.make_split(records), **{"count": 5, **options})


@pytest.mark.parametrize("change", ["noise", "shift"])
def test_planted_copies_are_found_and_are_no_measure_of_what_is_usual(change: str) -> None:
    """However many they are: most records of the retain set are copies in the last case."""
    records = make((1, 6, 6), np.uint8)
    usual, counts = set(), []
    for copies in (0, 1, 8):
        planted = plant_look_alikes(records, expunge.make_split(records), count=60, copies=copies, change=change)
        split = expunge.make_split(planted)
        split = forget_planted(planted, split).apply(split)
        rows = {part: planted.rows(getattr(split, part)) for part in ("forget", "retain")}
        usual.add(measure_usual_distance(planted, rows["retain"])[0])
        counts.append(count_copies(planted, rows["forget"], {"retain": rows["retain"]}).parts["retain"])
    assert len(usual) == 1
    if change == "noise":
        assert [(part.near, part.near_copies) for part in counts] == [(0, 0), (60, 60), (60, 480)]


def test_tables_cannot_be_shifted_and_copies_have_no_usual_distance() -> None:
    table = make((5,))
    with pytest.raises(RequestError, match="only images can be shifted"):
        plant_look_alikes(table, expunge.make_split(table), count=5, change="shift")
    equal = Records("t", table.record_ids, table.labels, ("a", "b"), np.ones((200, 5), np.float32))
    with pytest.raises(RequestError, match="no usual distance"):
        plant_look_alikes(equal, expunge.make_split(equal), count=5)


def test_the_nearest_distance_is_that_of_all_pairs() -> None:
    records = make((2, 4, 3), np.uint8)
    retain = np.arange(50, 200)
    points = scale_by_hand(records, retain)
    rows = np.asarray([3, 60, 199, 0])
    distances = np.sqrt(np.square(points[rows][:, None] - points[retain][None]).sum(axis=2))
    distances[rows[:, None] == retain] = np.inf
    assert measure_nearest(records, rows, retain) == pytest.approx(distances.min(axis=1))
    assert np.isinf(measure_nearest(records, np.asarray([60]), np.asarray([60]))).all()
