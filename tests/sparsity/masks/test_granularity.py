"""Granularity x scope: counts, patterns, coupled channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.models.architecture import Architecture
from expunge.sparsity import Rule, find_channels, get_granularity, make_mask, rule_of
from expunge.sparsity.channels.groups import find_kept_units
from expunge.sparsity.masks.allocation import Pool, allocate
from expunge.sparsity.masks.granularity import GRANULARITIES, Granularity, obeys_pattern, register_granularity


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0, 0.99), st.integers(0, 9))
def test_counts_are_exact_in_every_scope(sizes, sparsity, seed):
    rng = np.random.default_rng(seed)
    pools = {
        str(i): Pool(torch.from_numpy(rng.integers(0, 3, n).astype(float)), float(rng.uniform(0.1, 1)))
        for i, n in enumerate(sizes)
    }
    total = sum(sizes)
    for scope in ("global", "erk"):
        kept = sum(int(a.sum()) for a in allocate(scope, pools, sparsity).values())
        assert kept == total - round(sparsity * total)
    for (_, pool), kept in zip(pools.items(), allocate("layer", pools, sparsity).values(), strict=True):
        n = len(pool.scores)
        assert int(kept.sum()) == n - round(sparsity * n)
        if 0 < int(kept.sum()) < n:
            assert float(pool.scores[kept].min()) >= float(pool.scores[~kept].max())


def test_erk_densities_follow_the_formula_and_never_exceed_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 80), nn.ReLU(), nn.Linear(80, 4))
    mask, _ = make_mask(model, Rule("magnitude", "weight", "erk", ("linear",), 0.8))
    got = mask.layer_density()
    factors = {"0.weight": 150 / 5000, "2.weight": 130 / 4000, "4.weight": 84 / 320}
    assert got["4.weight"] == 1.0
    assert got["0.weight"] / got["2.weight"] == pytest.approx(factors["0.weight"] / factors["2.weight"], rel=1e-3)
    assert mask.kept_count == mask.total - round(0.8 * mask.total)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_patterns_keep_the_n_largest_of_every_group(n, m):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5))
    mask, scores = make_mask(model, Rule("magnitude", f"{n}:{m}", "global", ("conv", "linear")))
    assert mask.provenance.scope == "group"
    assert mask.sparsity == pytest.approx(1 - n / m)
    for name, kept in mask.kept.items():
        assert obeys_pattern(kept, n, m)
        groups = scores[name].movedim(1, -1).reshape(-1, m)
        kept_groups = kept.movedim(1, -1).reshape(-1, m)
        brute = torch.zeros_like(kept_groups)
        for row, group in enumerate(groups):
            brute[row, sorted(range(m), key=lambda j: float(group[j]))[m - n :]] = True
        assert torch.equal(kept_groups, brute)
    assert not obeys_pattern(torch.ones(3, 8, dtype=torch.bool), n, m)


def test_patterns_leave_out_layers_that_do_not_divide():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    mask, _ = make_mask(model, Rule("magnitude", "2:4"))
    assert list(mask.kept) == ["2.weight"]
    assert mask.provenance.details["left_out"] == ["0.weight"]
    with pytest.raises(MaskError, match="no layer has an input axis"):
        make_mask(nn.Conv2d(3, 8, 3), Rule("magnitude", "2:4"))
    with pytest.raises(MaskError, match=r"sparsity 0\.5 and no other"):
        make_mask(model, Rule("magnitude", "2:4", sparsity=0.9))
    with pytest.raises(ConfigError, match="0 < n < m"):
        get_granularity("4:4")
    with pytest.raises(ConfigError, match="2:4"):
        get_granularity("filters")


def is_unused(model, shape, channels, unit):
    """Whether a unit is complete: with its rows, scales and shifts at zero, the network's output does not depend on the
    columns that read the unit."""
    copied = Architecture("resnet20", {"depth": 8, "width": 4}, shape, 3).build(0).eval()
    copied.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parameters = dict(copied.named_parameters())
        for name, axis in channels.output_axes().items():
            parameters[name][torch.from_numpy(axis == unit)] = 0.0
        before = copied(torch.randn(4, *shape, generator=generator))
        for (name, dim), axis in channels.axes.items():
            if dim == 1:
                index = torch.from_numpy(np.flatnonzero(axis == unit))
                parameters[name].index_add_(1, index, torch.randn(parameters[name].index_select(1, index).shape))
        after = copied(torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)))
    return torch.allclose(before, after, atol=1e-6)


def test_option_a_units_are_complete():
    """Option-A ResNet: where the rows, scales and shifts of a unit are 0, the layers that read it get exact zeros."""
    shape = (1, 8, 8)
    model = Architecture("resnet20", {"depth": 8, "width": 4}, shape, 3).build(1).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
                module.running_mean.normal_()
    channels = find_channels(model, shape)
    assert all(is_unused(model, shape, channels, unit) for unit in range(channels.units))


def test_a_unit_is_minimal_and_masks_are_whole_units():
    """Residual partners share units at the option-A offset; masks prune rows, scales and shifts together."""
    shape = (1, 8, 8)
    model = Architecture("resnet20", {"depth": 8, "width": 4}, shape, 3).build(0)
    channels = find_channels(model, shape)
    first, second = channels.axes["conv1.weight", 0], channels.axes["stages.1.0.conv2.weight", 0]
    assert second[2:6].tolist() == first.tolist()  # 8 channels: 2 zeros, the 4 old ones, 2 zeros
    assert len(set(second.tolist())) == 8
    mask, _ = make_mask(model, Rule("filter-l2", "filter", "layer", sparsity=0.5), input_shape=shape)
    for name in ("stages.1.0.conv2.weight", "stages.1.0.bn2.weight", "stages.1.0.bn2.bias"):
        rows = mask.kept[name].reshape(8, -1)
        assert torch.equal(rows.any(1), rows.all(1))
        assert torch.equal(rows.any(1), mask.kept["stages.1.0.bn2.bias"])
    kept = find_kept_units(channels, dict(mask.kept))
    assert kept.mean() == pytest.approx(0.5)


def test_impossible_combinations_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(MaskError, match="scores channels"):
        make_mask(model, Rule("FPGM", "weight", layers=("linear",)))
    with pytest.raises(MaskError, match="has no conv layer"):
        make_mask(model, Rule("magnitude"))
    with pytest.raises(ConfigError, match="did you mean 'global'"):
        make_mask(model, Rule("magnitude", scope="globall", layers=("linear",)))
    with pytest.raises(MaskError, match="loses every weight"):
        make_mask(model, Rule("magnitude", layers=("linear",), sparsity=0.98))
    with pytest.raises(MaskError, match="fraction in"):
        make_mask(model, Rule("magnitude", layers=("linear",), sparsity=1.0))

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(MaskError, match="cannot be traced"):
        make_mask(Branching(), Rule("magnitude", "filter", layers=("linear",)), input_shape=(4,))
    with pytest.raises(MaskError, match="reach the output"):
        make_mask(nn.Sequential(nn.Linear(4, 3)), Rule("magnitude", "filter", layers=("linear",)), input_shape=(4,))


def test_the_rule_is_read_from_provenance():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    for rule in (
        Rule("magnitude", "weight", "erk", ("linear",), 0.5),
        Rule("magnitude", "2:4", "global", ("linear",), 0.5),
    ):
        mask, _ = make_mask(model, rule)
        assert rule_of(mask) == rule


def test_a_granularity_without_its_own_count_is_refused_unless_it_counts_weights() -> None:
    class Rows(Granularity):
        pass

    with GRANULARITIES.temporary(), pytest.raises(ConfigError, match="ranks rows but does not define `count`"):
        register_granularity("rows", unit_name="rows")(Rows)
