"""What the budget says of points, soft gates, recorded inputs and quotients holds when they are run."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from forging import PLAIN, forged, operation
from test_rounded_sums import numbered, silent

from expunge_check.arithmetic.rational import to_fractions
from expunge_check.budget import GATES
from expunge_check.errors import TooLarge
from expunge_check.limits import BILLION, Limits
from expunge_check.verify import Checker
from test_mutations import rehashed

#: Seconds that a billion of the budget may take on a slow, shared core; README says 0.01 to 0.06.
SLOW = 0.3
POINT = np.asarray([[0.4, 0.6] + [0.5] * 6], np.float32)


def wide():
    """A network of few numbers on disk and half a million in each of its last results."""
    steps = [operation("input", [], [8]), operation("relu", [0], [8], slope=0.0)]
    size = 8
    while size < 2**15:
        size *= 2
        steps.append(operation("concat", [len(steps) - 1] * 2, [size], axis=0))
    steps += [operation("multiply_constant", [len(steps) - 1 + i], [size], {"value": "one"}) for i in range(2)]
    steps.append(operation("slice", [len(steps) - 1], [2], axis=0, start=0, stop=2, step=1))
    return forged(steps, {"one": [1.0]}, np.ones((1, 8)), shift=1.2, inputs=POINT)


@pytest.mark.parametrize("factor", [1.2, 3, 100])
def test_the_changes_of_points_are_replayed_in_batches_that_fit(factor):
    """128 changes at once took 11 times what was reckoned."""
    folder = wide()
    limits = Limits(memory=factor * Checker(folder).budget.memory)
    tracemalloc.start()
    try:
        checker = Checker(folder, limits=limits)
        assert checker.check(POINT).passed
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limits.memory
    assert checker.budget.batch < 128 or factor == 100


def soft(count, correction="constant", **options):
    """Many patches whose gates are all open."""
    steps, tensors = silent(14)
    blank = [[0, 0]]
    target = np.zeros(count, int)
    bits = numbered(count, 14)
    folder = forged(
        steps, tensors, bits, target=target, shift=2.0, gate="soft", claim="real", logits=blank, correction=correction,
        **options,
    )  # fmt: skip
    folder.settings["slope"] = 2.0**-126
    checker = Checker(rehashed(folder))
    base, atoms = checker.network.replay(folder.replay["inputs"])
    patched = checker.patches.apply(base, checker.compute_gates(checker.network, folder.replay["inputs"], atoms))
    folder.replay.update({"base_logits": base.astype(np.float32), "logits": patched.astype(np.float32)})
    return rehashed(folder)


@pytest.mark.parametrize("correction", ["constant", "li2025"])
def test_the_work_of_recorded_inputs_and_points_behind_soft_gates_is_counted(correction):
    """A loop over groups for every record, and one over the patches for every open gate, were not."""
    count = 1500
    folder = soft(count, correction, inputs=np.full((400, 14), 0.5))
    checker = Checker(folder)
    before = checker.budget.spent
    start = time.process_time()
    checker.check_replay()
    assert time.process_time() - start < SLOW * before / BILLION
    start = time.process_time()
    checker.check(np.where(numbered(count, 14), 0.5, 0).astype(np.float32))
    seconds = time.process_time() - start
    assert seconds < SLOW * checker.budget.spent / BILLION
    assert checker.budget.spent > 2 * before
    for limit in (0.99 * before, 0.99 * checker.budget.spent):
        with pytest.raises(TooLarge):
            Checker(folder, limits=Limits(work=limit)).check(np.full((count, 14), 0.5, np.float32))


def test_gates_are_the_largest_of_their_groups(monkeypatch):
    """Beside a plain loop over groups that are not in order, in products of one patch and of all."""
    draws = np.random.default_rng(0)
    folder = soft(40, group=draws.integers(0, 9, 40))
    for most in (1, GATES):
        monkeypatch.setattr("expunge_check.execution.GATES", most)
        checker = Checker(folder)
        atoms = draws.normal(size=(5, 14))
        found = checker.compute_gates(checker.network, np.zeros((5, 14)), atoms)
        slope, bits, group = checker.patches.slope, checker.patches.bits, checker.patches.group
        for record in range(5):
            single = [1 - np.clip(np.where(b, -1, 1) * slope * atoms[record], 0, 1).sum() for b in bits]
            for number in np.unique(group):
                members = np.flatnonzero(group == number)
                assert np.isclose(found[record, members[0]], max(0, *(single[m] for m in members)))
                assert not found[record, members[1:]].any()


def test_the_correction_li2025_is_applied_by_its_formula():
    folder = soft(6, "li2025")
    patches = Checker(folder).patches
    draws = np.random.default_rng(1)
    logits, gates = draws.normal(size=(4, 2)), draws.random((4, 6)) * (draws.random((4, 6)) < 0.5)
    found = patches.apply(logits, gates)
    for row in range(4):
        out = logits[row].copy()
        for p in range(6):
            change = (patches.alpha[p] - 1) * (logits[row] - logits[row, patches.target[p]]) + patches.beta[p]
            out += gates[row, p] * change
        assert np.allclose(found[row], out)


def divided(count):
    """A sum of quotients by different odd numbers of 24 bits."""
    draws = np.random.default_rng(0)
    divisors = 1 + (2 * draws.choice(2**22, count, replace=False) + 1) / 2.0**23
    steps = [
        operation("input", [], [count]), operation("add_constant", [0], [count], {"value": "b"}, sign=1),
        operation("divide_constant", [1], [count], {"value": "d"}), operation("linear", [2], [2], {"weight": "w"}),
        operation("relu", [3], [2], slope=0.0),
    ]  # fmt: skip
    tensors = {"b": draws.random(count), "d": divisors, "w": draws.random((2, count))}
    return forged(steps, tensors, shift=1e6, claim="real", epsilon=0.0)


@pytest.mark.parametrize("count", [4, 30, 100])
def test_the_bits_of_quotients_are_counted(count):
    checker = Checker(divided(count), exact=True)
    logits, _ = checker.network.forms_at_zero(checker.patches.bits)
    bits = max(max(v.denominator.bit_length(), v.numerator.bit_length()) for v in logits.ravel())
    assert bits > 18 * count
    assert bits < checker.budget.bits
    checker.check()
    assert checker.budget.bits < 2 * bits + 400


def test_many_different_divisors_are_refused_and_equal_ones_are_not():
    folder = divided(1200)
    with pytest.raises(TooLarge):
        Checker(folder, exact=True, limits=Limits(work=20 * BILLION))
    folder.tensors["d"][:] = 3.0
    Checker(rehashed(folder), exact=True, limits=Limits(work=20 * BILLION))
    assert Checker(forged(PLAIN), exact=True).budget.bits < 400


def test_counts_of_places_are_divisors_too():
    """An average pool without its padding divides by 201 to 401 places."""
    size = 401
    pool = operation(
        "average_pool", [0], [1, size], kernel=[size], stride=[1], padding=[size // 2], count_padding=False,
        adaptive=False,
    )  # fmt: skip
    steps = [
        operation("input", [], [1, size]), pool, operation("reshape", [1], [size]),
        operation("linear", [2], [2], {"weight": "w"}), operation("relu", [3], [2], slope=0.0),
    ]  # fmt: skip
    folder = forged(steps, {"w": np.ones((2, size))}, shift=1e3, claim="real")
    checker = Checker(folder, exact=True)
    found = checker.network.pull_back(np.ones((1, 2), bool), to_fractions([[1, 0]]), to_fractions(np.zeros((1, 2))))
    bits = max(v.denominator.bit_length() for v in found.ravel())
    assert 400 < bits < checker.budget.bits
