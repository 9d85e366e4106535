"""Copies of D_f: exact ones against a count of bytes, near ones against distances in float64 between all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import FileError
from expunge.data import Records
from expunge.data.quality import Copies, count_copies, describe_copies
from expunge.data.quality.copies import NEAR


def make(features: np.ndarray, stream: bool = False) -> Records:
    count = len(features)
    ids = [f"r{i:05d}" for i in range(count)]
    labels = (np.arange(count) % 2).tolist()
    if stream:
        return Records("s", ids, labels, ("x", "y"), stream=[(features[i], labels[i]) for i in range(count)])
    return Records("s", ids, labels, ("x", "y"), features)


def planted(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """600 random records: 0..59 are D_f, 60..499 retained, 500..599 non-members; some are copies of D_f."""
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        features = rng.integers(0, 256, (600, *shape)).astype(np.uint8)
    else:
        units = 10.0 ** (np.arange(shape[0]) % 5).reshape(-1, *[1] * (len(shape) - 1))
        features = (units * rng.standard_normal((600, *shape))).astype(np.float32)
    features[100] = features[0]  # exact: 2 copies of record 0, 1 of record 1 in each part
    features[101] = features[0]
    features[102] = features[1]
    features[500] = features[1]
    scale = features[60:500].astype(np.float64).std(axis=(0, *range(2, features.ndim)), keepdims=True)[0]
    noise = 0.01 * scale * rng.standard_normal((4, *shape))
    for row, source, change in ((103, 2, 0), (104, 3, 1), (105, 3, 2), (501, 4, 3)):
        changed = features[source] + (np.rint(100 * noise[change]).clip(-2, 2) if dtype == np.uint8 else noise[change])
        features[row] = (changed.clip(0, 255) if dtype == np.uint8 else changed).astype(dtype)
    return features, {"retain": np.arange(60, 500), "non_members": np.arange(500, 600)}


def brute_force(features: np.ndarray, forget: np.ndarray, rows: np.ndarray, distance: float) -> tuple[int, ...]:
    """The four counts of a part, from all pairs."""
    retain = features[60:500].astype(np.float64)
    axes = (0, *range(2, features.ndim))
    scaled = (features - retain.mean(axis=axes, keepdims=True)) / retain.std(axis=axes, keepdims=True)
    flat = scaled.reshape(len(features), -1)
    distances = np.sqrt(((flat[forget][:, None] - flat[rows][None]) ** 2).sum(axis=2))
    equal = (
        features.reshape(len(features), -1)[forget][:, None] == features.reshape(len(features), -1)[rows][None]
    ).all(axis=2)
    near = distances <= distance
    exact, copies = equal.any(axis=1), equal.any(axis=0)
    return (
        int(exact.sum()), int(copies.sum()), int((near.any(axis=1) & ~exact).sum()),
        int((near.any(axis=0) & ~copies).sum()),
    )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((12,), np.float32), ((3, 6, 6), np.uint8), ((2, 40), np.float32), ((200,), np.float32), ((2,), np.float32)],
)
@pytest.mark.filterwarnings("error")
def test_against_all_pairs(shape: tuple[int, ...], dtype: Any, stream: bool) -> None:
    features, parts = planted(shape, dtype)
    forget = np.arange(60)
    copies = count_copies(make(features, stream), forget, parts)
    for name, rows in parts.items():
        found = copies.parts[name]
        expected = brute_force(features, forget, rows, copies.distance)
        assert (found.exact, found.exact_copies, found.near, found.near_copies) == expected, name
    retain, others = copies.parts["retain"], copies.parts["non_members"]
    assert (retain.exact, retain.exact_copies) == (2, 3)
    assert (others.exact, others.exact_copies) == (1, 1)
    if len(shape) > 1 or shape[0] > 2:  # records of two numbers are near each other by chance
        assert (retain.near, retain.near_copies) == (2, 3)
        assert (others.near, others.near_copies) == (1, 1)
        assert copies.usual < 0.02


@pytest.mark.parametrize("width", [2, 3, 6])
def test_near_by_chance_is_as_frequent_as_documented(width: int) -> None:
    """Independent records: the fraction with a near copy is about ln 2 * NEAR^d, and `usual` says so."""
    features = np.random.default_rng(1).uniform(size=(3000, width)).astype(np.float32)
    copies = count_copies(make(features), np.arange(1000), {"retain": np.arange(1000, 3000)})
    expected = np.log(2) * NEAR**width
    found = copies.parts["retain"].near / 1000
    assert abs(found - expected) < 0.4 * expected + 0.004
    assert abs(copies.usual - expected) < 0.4 * expected + 0.02


def test_tight_clusters_far_apart() -> None:
    """Distances a hundred thousand times smaller than the records themselves."""
    rng = np.random.default_rng(3)
    features = np.repeat([[0.0, 0.0], [1.0, -1.0]], 300, axis=0) + 1e-5 * rng.standard_normal((600, 2))
    forget, rows = np.arange(60), np.arange(60, 500)
    copies = count_copies(make(features.astype(np.float32)), forget, {"retain": rows})
    found = copies.parts["retain"]
    expected = brute_force(features.astype(np.float32), forget, rows, copies.distance)
    assert (found.exact, found.exact_copies, found.near, found.near_copies) == expected
    assert found.near > 0


def test_zeros_of_both_signs_are_equal_and_labels_do_not_matter() -> None:
    features = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    features[0, 0], features[11] = 0.0, features[0]
    features[11, 0] = -0.0
    copies = count_copies(make(features), np.arange(5), {"retain": np.arange(5, 40)})
    assert copies.parts["retain"].exact == 1
    assert make(features).labels[0] != make(features).labels[11]


def test_degenerate_data() -> None:
    same = count_copies(make(np.zeros((30, 4), np.float32)), np.arange(5), {"retain": np.arange(5, 30)})
    assert (same.parts["retain"].exact, same.parts["retain"].exact_copies, same.parts["retain"].near) == (5, 25, 0)
    assert same.distance == 0
    few = count_copies(make(np.zeros((3, 4), np.float32)), np.arange(1), {"retain": np.arange(1, 2), "non_members": []})
    assert few.parts["retain"].exact == 1
    assert not count_copies(make(np.eye(4, dtype=np.float32)), [], {"retain": np.arange(4)}).found


def test_large_sets_are_drawn_and_exact_copies_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.data.quality.copies.MOST_FORGET", 10)
    monkeypatch.setattr("expunge.data.quality.copies.MOST_RECORDS", 50)
    features, parts = planted((12,), np.float32)
    copies = count_copies(make(features), np.arange(60), parts)
    assert (copies.forget, copies.compared) == (60, 10)
    assert copies.parts["retain"].compared == 50
    assert (copies.parts["retain"].exact, copies.parts["retain"].exact_copies) == (2, 3)


def test_text_and_json() -> None:
    features, parts = planted((12,), np.float32)
    copies = count_copies(make(features), np.arange(60), parts)
    assert Copies.from_json(copies.to_json()) == copies
    first, second = describe_copies(copies)
    assert "2 of 60 have an exact copy (3 copies there)" in first
    assert "2 of 60 have a near copy (3 there" in first
    assert first.endswith("in the retain set")
    assert "1 of 60 have an exact copy (1 copy there)" in second
    assert second.endswith("in the non-member pool")
    for damaged in ({}, {**copies.to_json(), "parts": 3}, {**copies.to_json(), "parts": {"retain": {"exact": None}}}):
        with pytest.raises(FileError, match=r"about\.copies"):
            Copies.from_json(damaged)


@pytest.mark.realdata
def test_the_sms_collection_has_400_exact_copies(real_data: Path) -> None:
    import re
    import zlib

    from expunge.data import forget_random, make_split

    path = real_data / "sms_spam" / "SMSSpamCollection"
    if not path.is_file():
        pytest.skip("no sms_spam in EXPUNGE_DATA")
    texts = [line.split("\t", 1)[1] for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    assert len(texts) - len(set(texts)) == 403
    features = np.zeros((len(texts), 2048), np.float32)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+|\S", text):
            features[row, zlib.crc32(word.encode()) % 2048] += 1
    records = make(features)
    split = make_split(records, seed=0)
    after = forget_random(records, split, fraction=0.1, seed=0).apply(split)
    forget = records.rows(after.forget)
    parts = {"retain": records.rows(after.retain), "non_members": records.rows(after.non_members)}
    copies = count_copies(records, forget, parts)
    for name, rows in parts.items():
        wanted, there = [texts[i] for i in forget], [texts[i] for i in rows]
        exact = sum(text in set(there) for text in wanted)
        assert exact > 0
        assert copies.parts[name].exact >= exact  # texts with the same words in another order are equal too
        assert copies.parts[name].exact <= 1.15 * exact + 1
