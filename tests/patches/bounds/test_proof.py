from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.patches.bounds.dual_ascent import RowSystem
from expunge.patches.bounds.proof import Proof, count_dtype, round_multipliers
from expunge.patches.bounds.solve import SolveOptions, compute_bounds
from expunge.patches.network.regions import Box, compute_patterns
from expunge.patches.network.rounding import bound_execution_error
from expunge.patches.network.trace import trace


def multipliers(points, classes, atoms, fraction, seed):
    """Random multipliers, of which a given fraction is not zero."""
    draws = np.random.default_rng(seed)
    table = draws.exponential(size=(points, classes, atoms)) * 10 ** draws.uniform(-3, 3, (points, classes, 1))
    return torch.from_numpy(table * (draws.random(table.shape) < fraction))


@settings(max_examples=60, deadline=None)
@given(
    points=st.integers(0, 4), classes=st.integers(1, 4), atoms=st.sampled_from([1, 5, 254, 255, 256, 511, 1400]),
    fraction=st.sampled_from([0.0, 0.003, 0.05, 1.0]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_a_proof_gives_back_what_it_keeps(points, classes, atoms, fraction, seed):
    """Also over gaps of several hundred atoms, and at the multiples of 255."""
    table = multipliers(points, classes, atoms, fraction, seed)
    proof = Proof.compress(table)
    found = proof.dense(atoms)
    assert torch.equal(found, round_multipliers(table))
    most = table.amax(2, keepdim=True).clamp(min=1e-30)
    kept = table > 1e-3 * most
    assert not found[~kept].any()
    assert (((found - table) / most).abs()[kept] < 1.6e-5).all()
    rough = Proof.compress(table, least=0.1).dense(atoms)
    assert torch.equal(rough, round_multipliers(table, 0.1))
    kept = table > 0.1 * most
    assert torch.equal(rough > 0, kept)
    assert (((rough / most).sqrt() - (table / most).sqrt()).abs()[kept] < 0.501 / 255).all()
    assert int(proof.count.sum()) == len(proof.level) == int((proof.gap < 255).sum())
    assert proof.bytes_per_point * points == pytest.approx(proof.count.size * 6 + len(proof.gap) + len(proof.level))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), fraction=st.sampled_from([0.0, 0.01, 0.3]))
def test_taking_and_joining_points(seed, fraction):
    table = multipliers(5, 3, 600, fraction, seed)
    table[2] = 0
    proof = Proof.compress(table)
    rows = np.random.default_rng(seed).integers(0, 5, 4)
    assert torch.equal(proof.take(rows).dense(600), proof.dense(600)[rows])
    both = Proof.join([proof.take(np.arange(2)), proof.take(np.arange(2, 5))])
    assert torch.equal(both.dense(600), proof.dense(600))
    assert proof.take(np.zeros(0, np.int64)).dense(600).shape == (0, 3, 600)


def test_counts_fit_rows_of_any_size():
    assert count_dtype(32_767) is np.uint16
    assert count_dtype(32_768) is np.uint32


def test_rows_that_do_not_determine_the_shift_are_short_and_stay_below():
    """The point's largest bound is the same as without dropping anything, and other rows have fewer entries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    network, box = trace(model, (20,)), Box.of((20,))
    logits, bits = compute_patterns(network, torch.rand(6, 20, generator=torch.Generator().manual_seed(0)))
    target = logits.argsort(1)[:, -2]
    short = compute_bounds(network, bits, target, box, SolveOptions())
    long = compute_bounds(network, bits, target, box, SolveOptions(correction="li2025"))  # keeps every row whole
    assert torch.equal(short.value.amax(1), long.value.amax(1))
    deciding = long.value == long.value.amax(1, keepdim=True)
    assert (short.value <= short.value.amax(1, keepdim=True)).all()
    assert np.array_equal(short.proof.count[deciding.numpy()], long.proof.count[deciding.numpy()])
    assert short.proof.count.sum() < 0.7 * long.proof.count.sum()
    slack = bound_execution_error(network, bits, box.low, box.high).margins
    system = RowSystem(network, bits, target, box, slack, torch.float64)
    value = system.evaluate(torch.arange(6), short.proof.dense(64))
    mine = torch.ones_like(deciding)
    mine[torch.arange(6), target] = False
    assert (value[mine] <= short.value[mine]).all(), "the stored multipliers prove what was used"
