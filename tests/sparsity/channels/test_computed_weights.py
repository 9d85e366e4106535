"""Layers whose weight is computed from other parameters cannot be pruned: an error, not a layer that stays dense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from expunge.core.errors import MaskError
from expunge.models import describe_model
from expunge.sparsity import Rule, make_mask, mask_from_zeros, prunable_weights
from expunge.sparsity.channels.groups import find_channels

COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "legacy weight_norm": weight_norm,
    "legacy spectral_norm": spectral_norm,
    "pruning hook": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_no_mask_names_them(change: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), change(nn.Linear(6, 5)), nn.Linear(5, 3))
    for act in (
        lambda: prunable_weights(model, ["linear"]),
        lambda: make_mask(model, Rule(layers=("linear",), sparsity=0.5)),
        lambda: mask_from_zeros(model, ("linear",)),
    ):
        with pytest.raises(MaskError, match=r"^2\.weight: the weight is computed from other parameters"):
            act()
    with pytest.raises(MaskError, match="no conv layer"):
        prunable_weights(model, ["conv"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_layer_types_can_be_pruned() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), parametrizations.weight_norm(nn.Linear(144, 3)))
    assert list(prunable_weights(model, ["conv"])) == ["0.weight"]
    findings = describe_model(model, (1, 8, 8), 3).findings
    assert [f.level for f in findings if "parametrisations compute 2.weight" in f.message] == ["warning"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "orthogonal", "legacy spectral_norm"])
def test_channels_that_they_read_are_not_removed(name: str) -> None:
    """The columns of a computed weight cannot be cut, so the channels before it are pinned."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), COMPUTED[name](nn.Linear(8, 3)))
    with pytest.raises(MaskError, match=r"the weight is computed|unsupported operation"):
        make_mask(model, Rule("magnitude", "filter", layers=("linear",), sparsity=0.5), input_shape=(4,))
    model = nn.Sequential(nn.Conv1d(1, 8, 1), nn.ReLU(), nn.Flatten(), COMPUTED[name](nn.Linear(32, 3)))
    channels = find_channels(model, (1, 4))
    assert channels.units == 0
