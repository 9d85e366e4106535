"""Seeds: orders are permutations that removals keep, draws are uniform, global state is restored."""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from expunge.core.seeds import derive, epoch_order, global_rng, mix, numpy_generator, record_keys, torch_generator

ids = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


def test_golden_values() -> None:
    digest = hashlib.sha256(b"7\x1forder\x1f3").digest()[:8]
    assert derive(7, "order", 3) == int.from_bytes(digest, "little") // 2
    key = int.from_bytes(hashlib.blake2b(b"r1", digest_size=8).digest(), "little")
    assert record_keys(["r1"]).tolist() == [key]
    # SplitMix64's published first outputs for the seed 0 and 1234567
    assert mix(np.array([0], np.uint64), 0).tolist() == [0xE220A8397B1DCDAF]
    assert mix(np.array([1234567], np.uint64), 0).tolist() == [6457827717110365317]


def test_derived_seeds_differ_by_purpose_and_fit_63_bits() -> None:
    seeds = {derive(s, label, n) for s in range(20) for label in ("order", "noise") for n in range(20)}
    assert len(seeds) == 800
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(1, "ab", "c") != derive(1, "a", "bc")


@settings(max_examples=60, deadline=None)
@given(ids, st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_order_is_a_permutation(names: list[str], seed: int, epoch: int) -> None:
    order = epoch_order(record_keys(names), seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(names)))


@settings(max_examples=100, deadline=None)
@given(ids, st.data(), st.integers(0, 2**40), st.integers(0, 200))
def test_removing_records_leaves_the_order_of_the_others(
    names: list[str], data: st.DataObject, seed: int, epoch: int
) -> None:
    gone = data.draw(st.sets(st.sampled_from(names)))
    stay = [n for n in names if n not in gone]
    full = [names[i] for i in epoch_order(record_keys(names), seed, epoch)]
    rest = [stay[i] for i in epoch_order(record_keys(stay), seed, epoch)]
    assert rest == [n for n in full if n not in gone]


@settings(max_examples=40, deadline=None)
@given(ids, st.randoms(use_true_random=False), st.integers(0, 50))
def test_the_given_order_does_not_matter(names: list[str], random: object, epoch: int) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a = [names[i] for i in epoch_order(record_keys(names), 5, epoch)]
    b = [shuffled[i] for i in epoch_order(record_keys(shuffled), 5, epoch)]
    assert a == b


def test_orders_are_even() -> None:
    """Every record is as likely at every place, over epochs and over seeds (chi-square, 0.1 %)."""
    keys = record_keys([f"r{i}" for i in range(10)])
    for orders in (
        [epoch_order(keys, 3, e) for e in range(2000)],
        [epoch_order(keys, s, 0) for s in range(2000)],
    ):
        counts = np.zeros((10, 10))
        for order in orders:
            counts[order, np.arange(10)] += 1
        for row in counts:
            assert stats.chisquare(row).pvalue > 1e-4
    firsts = np.array([epoch_order(keys, 3, e)[0] for e in range(2000)])
    pairs = np.histogram2d(firsts[:-1], firsts[1:], bins=10)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-3, "consecutive epochs are not independent"


def test_mixed_keys_are_uniform() -> None:
    values = mix(record_keys([str(i) for i in range(20000)]), 1, 2) / 2.0**64
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_mix_leaves_its_argument_alone() -> None:
    keys = record_keys(["a", "b"])
    before = keys.copy()
    mix(keys, 3)
    assert (keys == before).all()


def test_generators_are_reproducible() -> None:
    assert numpy_generator(1, "x").random() == numpy_generator(1, "x").random() != numpy_generator(1, "y").random()
    draws = [torch.rand(1, generator=torch_generator(1, label)).item() for label in ("x", "x", "y")]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="accelerators are seeded too")
def test_global_rng_seeds_only_the_generators_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws are those after `torch.manual_seed`, which takes milliseconds for accelerators that may be there."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "epoch"))
        expected = torch.rand(2)
    monkeypatch.setattr(torch, "manual_seed", None)
    with global_rng(0, "epoch"):
        assert torch.equal(torch.rand(2), expected)


def test_global_rng_restores_the_callers_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with global_rng(9, "dropout"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with global_rng(9, "dropout"):
        assert torch.equal(torch.rand(3), inside)
    torch.manual_seed(0)
    with contextlib.suppress(RuntimeError), global_rng(9):
        torch.rand(1)
        raise RuntimeError
    assert torch.equal(torch.rand(3), expected)
