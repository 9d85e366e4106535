from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.patches.model import gate_index as near
from expunge.patches.model import rare_bit_index as rare
from expunge.patches.network.execute import compute_atom_values
from expunge.patches.network.trace import trace


def draw(seed, patterns, inputs, units, fraction, doubt):
    """Patterns, bits of inputs (some of them patterns) and which of these bits are sure."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.rand(units, generator=generator) * fraction
    rates = torch.where(torch.rand(units, generator=generator) < 0.5, rates, 1 - rates)
    stored = torch.rand(patterns, units, generator=generator) < rates
    bits = torch.rand(inputs, units, generator=generator) < rates
    copied = torch.randint(patterns, (inputs // 2,), generator=generator)
    bits[: inputs // 2] = stored[copied]
    sure = torch.rand(inputs, units, generator=generator) >= doubt
    return stored.unique(dim=0).float(), bits.float(), sure.float()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16), units=st.integers(1, 40), fraction=st.sampled_from([0.02, 0.1, 0.5]),
    doubt=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)  # fmt: skip
def test_every_pattern_with_the_sure_bits_is_found_once(seed, units, fraction, doubt):
    """Brute force: the runs hold all patterns that agree on the sure bits, none twice, and few others."""
    stored, bits, sure = draw(seed, 200, 20, units, fraction, doubt)
    index = rare.RareBitIndex.of(stored, torch.arange(units))
    rows, first, many, unresolved = index.query(bits, sure)
    named = torch.zeros(len(bits), len(stored), dtype=torch.int64)
    for row, begin, length in zip(rows.tolist(), first.tolist(), many.tolist(), strict=True):
        named[row, index.order[begin : begin + length]] += 1
    assert int(named.max()) <= 1
    named[unresolved] = 1
    agree = ((stored[None] == bits[:, None]) | (sure[:, None] == 0)).all(2)
    assert (named[agree] == 1).all()
    assert len(unresolved) == 0 or doubt > 0.1


def test_inputs_without_unsure_bits_find_one_run_at_most():
    stored, bits, sure = draw(3, 500, 30, 40, 0.1, 0.0)
    index = rare.RareBitIndex.of(stored, torch.arange(40))
    rows, _, many, unresolved = index.query(bits, sure)
    assert len(unresolved) == 0
    asked = rows[many > 0]
    assert set(range(15)) <= set(asked.tolist())  # those are patterns
    assert len(asked.unique()) == len(asked)
    assert float(many.double().mean()) <= 3 * index.expected


@pytest.mark.parametrize(("fraction", "kind"), [(0.03, rare.RareBitIndex), (1.0, near.BlockPairIndex)])
def test_the_index_follows_the_patterns(fraction, kind, monkeypatch):
    """Patterns of mostly common bits are sorted by rare bits, even ones by pairs of blocks; no open gate is missed."""
    monkeypatch.setattr(near, "_FEWEST", 2)
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(12, 72), nn.ReLU(), nn.Linear(72, 3)).eval(), (12,))
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
    stored = draw(5, 3000, 4, 72, fraction, 0.0)[0]
    flips = torch.rand(40, 72, generator=torch.Generator().manual_seed(2)) < 0.02
    stored = torch.cat([stored, ((values > 0) ^ flips).float()]).unique(dim=0)
    blocks = near.make_blocks(network, stored)
    assert isinstance(blocks.index, kind)
    for slope in (3.0, 30.0, 1e4):
        rows, patches, unresolved = near.find_open_pairs(blocks, values, torch.tensor(slope))
        covered = torch.zeros(40, len(stored), dtype=torch.bool)
        covered[rows, patches] = True
        covered[unresolved] = True
        costs = (slope * values.abs()).clamp(max=1)[:, None] * (stored[None] != (values > 0)[:, None].float())
        open_ = costs.sum(2) < 1
        assert not (open_ & ~covered).any()
        assert int(open_.sum()) > 0
        assert slope < 30 or covered.float().mean() < 0.1


@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_positions_of_the_few_true(seed, rows, columns, fraction):
    found = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < fraction
    assert torch.equal(near._find_true(found), found.flatten().nonzero()[:, 0])
