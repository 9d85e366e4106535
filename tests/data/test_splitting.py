"""The split maker: complete, disjoint, balanced, independent of the order of rows; whole subjects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, DataError
from expunge.core.split import PARTS, Split
from expunge.data import Records, load_records, make_split

fractions = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.4])


def plain(labels: np.ndarray, **more: object) -> Records:
    count = len(labels)
    ids = [f"n{i}" for i in range(count)]
    names = tuple(str(i) for i in range(6))
    return Records("plain", ids, labels, names, np.zeros((count, 1), np.float32), **more)  # type: ignore[arg-type]


def shuffled(records: Records, seed: int) -> Records:
    order = np.random.default_rng(seed).permutation(len(records))
    take = {k: None if (v := getattr(records, k)) is None else v[order] for k in ("subject_ids", "partition")}
    return Records(
        records.name,
        records.record_ids[order],
        records.labels[order],
        records.class_names,
        records.features[order],
        **take,
    )


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    validation=fractions,
    non_members=fractions,
    test=fractions,
    seed=st.integers(0, 2**40),
)
def test_a_split_is_complete_disjoint_balanced_and_blind_to_order(
    labels: list[int], validation: float, non_members: float, test: float, seed: int
) -> None:
    records = plain(np.asarray(labels))
    options = {"seed": seed, "validation": validation, "non_members": non_members, "test": test}
    try:
        split = make_split(records, **options)
    except DataError:  # so few records that rounding leaves none to train on
        assert len(labels) < 20
        return
    together = np.concatenate([getattr(split, part) for part in PARTS])
    assert sorted(together) == sorted(records.record_ids)
    assert len(split.forget) == 0
    rest = 1 - test
    wanted = {
        "retain": rest * (1 - validation - non_members),
        "validation": rest * validation,
        "non_members": rest * non_members,
        "test": test,
    }
    for label, size in zip(*np.unique(records.labels, return_counts=True), strict=True):
        of_class = set(records.record_ids[records.labels == label])
        for part, share in wanted.items():
            assert abs(len(of_class & set(getattr(split, part))) - share * size) < 1
    for part, share in wanted.items():
        assert abs(len(getattr(split, part)) - share * len(labels)) <= 2
    again = make_split(shuffled(records, seed % 1000), **options)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))
    assert again.hash == split.hash


def test_many_small_classes_do_not_all_round_the_same_way() -> None:
    labels = np.repeat(np.arange(100), 4)
    records = Records(
        "many", [str(i) for i in range(400)], labels, tuple(map(str, range(100))), np.zeros((400, 1), np.float32)
    )
    counts = make_split(records, test=0.2, validation=0.1, non_members=0.1).counts()
    assert abs(counts["validation"] - 32) <= 2
    assert abs(counts["non_members"] - 32) <= 2
    assert abs(counts["test"] - 80) <= 2


def test_seeds_draw_different_splits_and_the_draw_is_even() -> None:
    records = plain(np.zeros(1000, dtype=int))
    one, two = make_split(records, seed=1), make_split(records, seed=2)
    assert one.hash != two.hash
    hits = np.zeros(1000)
    for seed in range(60):
        hits[records.rows(make_split(records, seed=seed, test=0.2).test)] += 1
    # each record: binomial(60, .2); over 1000 records the mean square deviation is 60 * .2 * .8
    assert abs(np.mean((hits - 12) ** 2) / 9.6 - 1) < 0.25


def test_adding_records_of_another_class_moves_few() -> None:
    """The hash order within a class does not see the other classes; only a rounding may differ."""
    base = plain(np.asarray([0] * 50 + [1] * 50))
    more = plain(np.asarray([0] * 50 + [1] * 50 + [2] * 30))
    a, b = make_split(base), make_split(more)
    assert len(set(a.retain) - set(b.retain)) <= 4


def test_the_official_partition_decides_the_test_set() -> None:
    partition = np.asarray(["train"] * 80 + ["test"] * 20)
    records = plain(np.arange(100) % 5, partition=partition)
    split = make_split(records, test=0.9, validation=0.1, non_members=0.2)
    assert set(split.test) == set(records.record_ids[80:])
    assert split.counts() == {"retain": 56, "forget": 0, "validation": 8, "test": 20, "non_members": 16} or (
        abs(split.counts()["validation"] - 8) <= 2
    )
    assert split.origin["test"] == "official"
    strange = plain(np.zeros(2, dtype=int), partition=["train", "dev"])
    with pytest.raises(DataError, match="'dev'"):
        make_split(strange)


@pytest.fixture
def people() -> Records:
    who = np.repeat(np.arange(20), 7).astype(str)
    return plain(np.arange(140) % 6, subject_ids=who)


def test_grouping_keeps_a_subject_in_one_part(people: Records) -> None:
    split = make_split(people, group="subject")
    homes: dict[str, set[str]] = {}
    for part in PARTS:
        for person in people.subject_ids[people.rows(getattr(split, part))]:
            homes.setdefault(str(person), set()).add(part)
    assert len(homes) == 20
    assert all(len(parts) == 1 for parts in homes.values())
    counts = {part: sum(1 for parts in homes.values() if parts == {part}) for part in PARTS}
    assert counts == {"retain": 12, "forget": 0, "validation": 2, "test": 4, "non_members": 2}
    again = make_split(shuffled(people, 4), group="subject")
    assert again.hash == split.hash
    drawn = make_split(people)
    both = np.intersect1d(
        people.subject_ids[people.rows(drawn.retain)], people.subject_ids[people.rows(drawn.validation)]
    )
    assert len(both), "without grouping, subjects are in several parts; grouping prevents that"


def test_removing_a_subject_moves_no_other(people: Records) -> None:
    split = make_split(people, group="subject")
    gone = str(people.subject_ids[people.rows(split.retain[:1])][0])
    stays = people.subject_ids != gone  # 19 subjects round to the same numbers as 20
    fewer = Records(
        "fewer",
        people.record_ids[stays],
        people.labels[stays],
        people.class_names,
        people.features[stays],
        subject_ids=people.subject_ids[stays],
    )
    again = make_split(fewer, group="subject")
    for part in ("validation", "test", "non_members"):
        np.testing.assert_array_equal(getattr(split, part), getattr(again, part))


def test_too_few_subjects(people: Records) -> None:
    few = plain(np.zeros(6, dtype=int), subject_ids=list("aabbcc"))
    with pytest.raises(DataError, match="3 subjects are too few"):
        make_split(few, group="subject")
    four = plain(np.zeros(8, dtype=int), subject_ids=list("aabbccdd"))
    assert make_split(four, group="subject").counts() == {p: 0 if p == "forget" else 2 for p in PARTS}
    with pytest.raises(DataError, match="no subject ids"):
        make_split(plain(np.zeros(6, dtype=int)), group="subject")
    torn = plain(np.zeros(4, dtype=int), subject_ids=list("abab"), partition=["train", "train", "test", "train"])
    with pytest.raises(DataError, match="both parts"):
        make_split(torn, group="subject")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"validation": -0.1}, "validation"),
        ({"test": 1.0}, "test"),
        ({"validation": 0.5, "non_members": 0.5}, "no training records"),
        ({"group": "person"}, "person"),
        ({"non_members": float("nan")}, "non_members"),
    ],
)
def test_bad_options(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_split(plain(np.zeros(50, dtype=int)), **options)


def test_a_split_survives_its_file(tmp_path: object, make_images: Callable[..., Records]) -> None:
    split = make_split(make_images(), seed=3)
    path = f"{tmp_path}/split.json"
    split.save(path)
    back = Split.load(path)
    assert back.hash == split.hash
    assert back.origin == split.origin


def test_a_limit_draws_the_same_records_whatever_their_order_and_leaves_the_rest_out() -> None:
    records = load_records("digits")
    split = make_split(records, limit=600, test=0.2, validation=0.1, non_members=0.1)
    parts = [getattr(split, part) for part in PARTS]
    assert sum(map(len, parts)) == 600
    assert split.origin["limit"] == 600
    other = plain(np.arange(900) % 6)
    assert make_split(shuffled(other, 4), limit=100).hash == make_split(other, limit=100).hash
    assert len(make_split(records, limit=len(records)).retain) == len(make_split(records).retain)
    assert "limit" not in make_split(records).origin
    counts = np.bincount(records.labels[records.rows(np.concatenate(parts))])
    whole = np.bincount(records.labels) * 600 / len(records)
    assert np.abs(counts - whole).max() <= 1
    with pytest.raises(ConfigError, match="limit is 0"):
        make_split(records, limit=0)
    with pytest.raises(ConfigError, match="there are 1797"):
        make_split(records, limit=1798)
