"""What an earlier mask prunes stays pruned, whatever the new scores say: weights, channels and patterns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.sparsity import Rule, find_channels, make_mask
from expunge.sparsity.channels.groups import find_kept_units

SHAPE = (3, 6, 6)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


def reverse_scores(model: nn.Module, kept: dict[str, torch.Tensor]) -> nn.Module:
    """The network with weights of which the pruned ones are by far the largest."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter[~kept[name]] += 100.0
    return model


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_pruned_channels_stay_pruned(scope):
    rule = Rule("filter-l2", "filter", scope, ("conv",))
    first, _ = make_mask(network(0), rule, input_shape=SHAPE, sparsity=0.25)
    model = reverse_scores(network(1), dict(first.kept))
    second, _ = make_mask(model, rule, input_shape=SHAPE, sparsity=0.5, within=first)
    channels = find_channels(model, SHAPE)
    before, after = (find_kept_units(channels, dict(mask.kept)) for mask in (first, second))
    assert (~before).sum() == 4
    assert (~after).sum() == 8
    assert not (after & ~before).any()
    free, _ = make_mask(model, rule, input_shape=SHAPE, sparsity=0.5)  # without it, the large ones are kept
    assert (find_kept_units(channels, dict(free.kept)) & ~before).any()


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_pruned_weights_stay_pruned(scope):
    rule = Rule("magnitude", "weight", scope, ("conv", "linear"))
    first, _ = make_mask(network(0), rule, sparsity=0.3)
    model = reverse_scores(network(1), dict(first.kept))
    second, _ = make_mask(model, rule, sparsity=0.6, within=first)
    for name, kept in second.kept.items():
        assert not (kept & ~first.kept[name]).any()
    sizes = [kept.numel() for kept in second.kept.values()] if scope == "layer" else [second.total]
    assert second.kept_count == sum(size - round(0.6 * size) for size in sizes)
    free, _ = make_mask(model, rule, sparsity=0.6)
    assert any((kept & ~first.kept[name]).any() for name, kept in free.kept.items())


def test_the_kept_weights_are_ranked_among_themselves():
    """In one layer: after the pruned ones, the smallest of the others go first."""
    rule = Rule("magnitude", "weight", "global", ("linear",))
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 6))
    first, _ = make_mask(model, Rule("random", "weight", "global", ("linear",)), sparsity=0.4, seed=3)
    second, _ = make_mask(model, rule, sparsity=0.7, within=first)
    values = model[0].weight.detach().abs()
    others = values[first.kept["0.weight"]].sort(descending=True).values[:18]
    assert second.kept_count == 18
    assert set(values[second.kept["0.weight"]].tolist()) == set(others.tolist())


def test_pruned_weights_of_a_pattern_stay_pruned():
    rule = Rule("magnitude", "2:4", "global", ("linear",))
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(16, 6))
    first, _ = make_mask(model, Rule("magnitude", "3:4", "global", ("linear",)))
    reversed_model = reverse_scores(nn.Sequential(nn.Linear(16, 6)), dict(first.kept))
    second, _ = make_mask(reversed_model, rule, within=first)
    assert not (second.kept["0.weight"] & ~first.kept["0.weight"]).any()
    assert (second.kept["0.weight"].reshape(6, 4, 4).sum(2) == 2).all()


def test_a_group_of_a_pattern_that_has_fewer_weights_left_keeps_only_those():
    torch.manual_seed(2)
    first, _ = make_mask(nn.Sequential(nn.Linear(16, 6)), Rule("magnitude", "1:4", "global", ("linear",)))
    second, _ = make_mask(
        nn.Sequential(nn.Linear(16, 6)), Rule("magnitude", "2:4", "global", ("linear",)), within=first
    )
    assert torch.equal(second.kept["0.weight"], first.kept["0.weight"])
