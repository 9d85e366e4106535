"""Poisoned images: exactly the pixels of the patch change, labels are the target's, splits and hashes know it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import expunge
from expunge.core.errors import ConfigError, DataError, ExpungeError, RequestError
from expunge.core.split import Split
from expunge.data import Records, Trigger, forget_planted, plant_backdoor, plant_canaries, select_forget
from expunge.data.planting.backdoor import find_trigger
from expunge.data.planting.plant import remove_planted


def make(shape: tuple[int, ...] = (3, 9, 10), dtype: Any = np.uint8, count: int = 60, **more: Any) -> Records:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 200, (count, *shape))
    return Records(
        "images", [f"r{i:03d}" for i in rng.permutation(count)], np.arange(count) % 3, ("ant", "bee", "cow"),
        features.astype(np.uint8) if dtype == np.uint8 else (features / 255).astype(np.float32), **more,
    )  # fmt: skip


def split_of(records: Records) -> Split:
    return expunge.make_split(records, seed=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_trigger_changes_exactly_the_pixels_that_it_says(dtype: Any) -> None:
    records = make(dtype=dtype)
    before = records.features.copy()
    planted = plant_backdoor(records, split_of(records), count=20, size=3, row=1, column=-4, target="bee")
    assert np.array_equal(records.features, before)  # the caller's records are untouched
    assert np.array_equal(planted.features[:60], before)
    bases = [records.record_ids.tolist().index(name) for name in planted.planted.base_ids]
    white = 255 if dtype == np.uint8 else before.max()
    for row, base in zip(planted.features[60:], before[bases], strict=True):
        for channel in range(3):
            for y in range(9):
                for x in range(10):
                    inside = 1 <= y < 4 and 6 <= x < 9
                    assert row[channel, y, x] == (white if inside else base[channel, y, x])
    assert planted.labels[60:].tolist() == [1] * 20
    assert planted.record_ids[60:].tolist() == [f"{name}~backdoor" for name in planted.planted.base_ids]


def test_the_patch_is_by_default_where_the_released_code_has_it() -> None:
    records = make((1, 28, 28))
    planted = plant_backdoor(records, split_of(records), count=2)
    changed = (planted.features[60:] != records.features[records.rows(planted.planted.base_ids)]).any(axis=(0, 1))
    expected = np.zeros((28, 28), dtype=bool)
    expected[-6:-2, -6:-2] = True
    assert np.array_equal(changed, expected)
    assert find_trigger(planted) == Trigger(22, 22, 4, 255, 0)
    assert find_trigger(records) is None


def test_poisoned_records_replace_the_clean_ones_in_training_only() -> None:
    records = make()
    split = split_of(records)
    planted = plant_backdoor(records, split, fraction=0.25, size=2)
    after = split_of(planted)
    count = round(0.25 * len(split.retain))
    assert len(planted.planted.record_ids) == count
    assert after.counts() == split.counts()
    for part in ("validation", "test", "non_members"):
        assert np.array_equal(getattr(after, part), getattr(split, part))
    assert set(after.retain) == (set(split.retain) - set(planted.planted.base_ids)) | set(planted.planted.record_ids)
    assert after.origin["planted"]["by"] == "backdoor"
    assert after.origin["planted"]["patch"] == {"row": 5, "column": 6, "size": 2, "fill": 255}
    assert after.hash != split.hash
    assert after.base_hash != split.base_hash
    assert planted.hash != records.hash


def test_the_request_forgets_the_poisoned_records() -> None:
    records = make()
    planted = plant_backdoor(records, split_of(records), count=5, size=2, target=2)
    request = select_forget(planted, split_of(planted), {"by": "backdoor", "count": 5, "size": 2, "target": 2})
    assert np.array_equal(request.record_ids, planted.planted.record_ids)
    assert request.selection["target"] == {"index": 2, "name": "cow"}
    assert np.array_equal(forget_planted(planted, split_of(planted)).record_ids, request.record_ids)
    assert not np.isin(request.record_ids, request.apply(split_of(planted)).retain).any()


def test_the_draw_depends_on_ids_and_seed_only() -> None:
    records = make()
    split = split_of(records)
    order = np.random.default_rng(1).permutation(60)
    shuffled = Records(
        "images", records.record_ids[order], records.labels[order], records.class_names, records.features[order]
    )
    chosen = set(plant_backdoor(records, split, count=10, size=2).planted.base_ids)
    assert set(plant_backdoor(shuffled, split, count=10, size=2).planted.base_ids) == chosen
    assert set(plant_backdoor(records, split, count=4, size=2).planted.base_ids) < chosen
    assert set(plant_backdoor(records, split, count=10, size=2, seed=1).planted.base_ids) != chosen
    held = sorted(chosen)[:3]
    assert not set(held) & set(plant_backdoor(records, split, count=10, size=2, hold=held).planted.base_ids)


def test_everything_that_belongs_to_a_record_goes_with_it() -> None:
    subjects = [f"s{i // 4}" for i in range(60)]
    columns = {"ward": np.arange(60) % 5}
    records = make(subject_ids=subjects, columns=columns, partition=["train"] * 50 + ["test"] * 10)
    planted = plant_backdoor(records, split_of(records), count=6, size=2)
    bases = records.rows(planted.planted.base_ids)
    assert planted.subject_ids[60:].tolist() == [subjects[base] for base in bases]
    assert planted.columns["ward"][60:].tolist() == (bases % 5).tolist()
    assert set(planted.partition[60:]) == {"train"}
    clean = remove_planted(planted)
    assert clean.hash == records.hash
    assert clean.subject_ids.tolist() == subjects
    assert clean.planted is None
    assert remove_planted(records) is records


def test_no_poisoned_record_records_the_trigger_only() -> None:
    records = make()
    planted = plant_backdoor(records, split_of(records), count=0, size=2)
    assert planted.hash == records.hash
    assert find_trigger(planted) is not None
    assert split_of(planted).hash == split_of(records).hash


def test_a_saved_split_is_used_with_and_without_the_planted_records(tmp_path: Any) -> None:
    from expunge.data.splitting import load_or_make_split

    records = make()
    split = split_of(records)
    planted = plant_backdoor(records, split, count=5, size=2)
    split.save(tmp_path / "clean.json")
    split_of(planted).save(tmp_path / "planted.json")
    for name in ("clean", "planted"):
        assert load_or_make_split(planted, {"file": str(tmp_path / f"{name}.json")}).hash == split_of(planted).hash
    with pytest.raises(DataError, match="no such record"):
        load_or_make_split(records, {"file": str(tmp_path / "planted.json")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a fraction or a count"),
        ({"count": 3, "fraction": 0.1}, "either a fraction or a count"),
        ({"count": 1000}, "cannot be drawn"),
        ({"fraction": 1.5}, "not between 0 and 1"),
        ({"count": 3, "size": 0}, "not inside"),
        ({"count": 3, "size": 11}, "not inside"),
        ({"count": 3, "size": 2, "row": 8}, "not inside"),
        ({"count": 3, "size": 2, "column": -11}, "not inside"),
        ({"count": 3, "size": 2, "target": "wasp"}, "no class 'wasp'"),
        ({"count": 3, "size": 2, "target": 3}, "no class 3"),
        ({"count": 3, "size": 2, "fill": 256}, "from 0 to 255"),
        ({"count": 3, "size": 2, "fill": 0.5}, "from 0 to 255"),
        ({"count": 3, "size": 2, "fill": float("nan")}, "not a finite number"),
        ({"count": 3, "size": 2, "fill": "white"}, "not a finite number"),
        ({"count": 3, "size": 2, "fill": 10**400}, "not a finite number"),
        ({"fraction": "0.1", "size": 2}, "not a finite number"),
        ({"fraction": float("nan"), "size": 2}, "not a finite number"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    records = make()
    with pytest.raises(RequestError, match=message):
        plant_backdoor(records, split_of(records), **options)


@pytest.mark.parametrize(("size", "row", "column"), [(6, 1, 2), (7, 0, 1), (8, 0, 0), (9, 0, 0)])
def test_the_default_place_has_the_margin_that_the_patch_leaves(size: int, row: int, column: int) -> None:
    records = make()
    assert records.input_shape[1:] == (9, 10)
    planted = plant_backdoor(records, split_of(records), count=3, size=size)
    assert planted.planted is not None
    patch = planted.planted.options["patch"]
    assert (patch["row"], patch["column"]) == (row, column)


def test_a_value_beyond_float32_is_refused() -> None:
    records = make((3, 10, 10), np.float32)
    with pytest.raises(RequestError, match="no float32 number"):
        plant_backdoor(records, split_of(records), count=3, size=2, fill=1e300)


def test_an_invisible_patch_is_refused() -> None:
    records = make()
    black = Records("b", records.record_ids, records.labels, records.class_names, np.zeros_like(records.features))
    with pytest.raises(RequestError, match="changes no pixel"):
        plant_backdoor(black, split_of(records), count=3, size=2, fill=0)


def test_records_without_pixels_are_refused() -> None:
    table = make((7,), np.float32)
    with pytest.raises(RequestError, match="a patch needs images"):
        plant_backdoor(table, split_of(table), count=3)
    streamed = Records("s", table.record_ids, table.labels, table.class_names,
                       stream=[(np.zeros((3, 8, 8), np.float32), int(label)) for label in table.labels])  # fmt: skip
    with pytest.raises(RequestError, match="streamed"):
        plant_backdoor(streamed, split_of(streamed), count=3)


def test_one_planting_at_a_time() -> None:
    records = make()
    planted = plant_canaries(records, split_of(records), count=3)
    with pytest.raises(DataError, match="canaries already"):
        plant_backdoor(planted, split_of(planted), count=3, size=2)
    with pytest.raises(DataError, match="canaries already"):
        plant_canaries(planted, split_of(planted), count=3)


def test_a_forget_set_that_was_not_planted_is_refused() -> None:
    records = make()
    with pytest.raises(RequestError, match="nothing was planted"):
        forget_planted(records, split_of(records))
    with pytest.raises(ConfigError, match="nothing was planted"):
        select_forget(records, split_of(records), {"by": "backdoor", "count": 3})
    planted = plant_canaries(records, split_of(records), count=3)
    with pytest.raises(ConfigError, match="canaries was planted"):
        select_forget(planted, split_of(planted), {"by": "backdoor", "count": 3})


@pytest.mark.parametrize(
    "selection",
    [
        {"by": "backdoor"},
        {"by": "backdoor", "count": 3, "fraction": 0.5},
        {"by": "backdoor", "count": -1},
        {"by": "backdoor", "count": "many"},
        {"by": "backdoor", "fraction": 2},
        {"by": "backdoor", "count": 3, "size": 0},
        {"by": "backdoor", "count": 3, "size": 1.5},
        {"by": "backdoor", "count": 3, "target": [1]},
        {"by": "backdoor", "count": 3, "fill": "white"},
        {"by": "backdoor", "count": 3, "fill": float("inf")},
        {"by": "backdoor", "fraction": float("nan")},
        {"by": "backdoor", "count": 3, "copies": 2},
        {"by": "canaries"},
        {"by": "canaries", "count": True},
        {"by": "look-alikes", "count": 3, "copies": -1},
        {"by": "look-alikes", "count": 3, "change": "blur"},
        {"by": "look-alikes", "count": 3, "change": "shift", "distance": 0.1},
        {"by": "look-alikes", "count": 3, "pixels": 2},
        {"by": "look-alikes", "count": 3, "change": "shift", "pixels": 0},
        {"by": "memorisation-stratum"},
        {"by": "memorisation-stratum", "stratum": "lowest"},
        {"by": "memorisation-stratum", "stratum": ["low"]},
    ],
)
def test_a_selection_is_checked_before_there_are_records(selection: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        expunge.data.check_selection(selection)
    assert isinstance(caught.value, ExpungeError)
    assert caught.value.where
