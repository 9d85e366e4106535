"""Torch-Pruning as the backend of physical removal: the same tensors as the backend `slots`, or a refusal."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sparse_toys import EASY, SHAPES, randomised
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models.architecture import Architecture, model_names
from expunge.sparsity import Rule, find_channels, load_small_model, make_mask, save_small_model, shrink
from expunge.sparsity.channels.groups import expand_units
from expunge.sparsity.compression import torch_pruning as backend

pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
OPTION_A = "resnet20"


def halved(name: str) -> tuple[Architecture, nn.Module, Mask]:
    """A reference network and a mask of half of its coupled channels, pool by pool."""
    shape = SHAPES.get(name, (3, 32, 32))
    blueprint = Architecture(name, EASY.get(name, {}), shape, 5)
    model = randomised(blueprint)
    layers = ("linear",) if name == "mlp" else ("conv", "linear")
    mask, _ = make_mask(model, Rule("magnitude", "filter", "layer", layers, 0.5), input_shape=shape)
    return blueprint, model, mask


@pytest.mark.parametrize("name", [name for name in model_names() if name != OPTION_A])
def test_both_backends_give_the_same_tensors(name):
    blueprint, model, mask = halved(name)
    by_slots = shrink(model, mask, blueprint.input_shape)
    by_torch_pruning = shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    assert type(by_torch_pruning.model) is type(model)
    assert not by_torch_pruning.model.training
    assert by_torch_pruning.difference <= 1e-5 * max(1.0, by_torch_pruning.scale)
    assert by_torch_pruning.parameters_after == by_slots.parameters_after < by_slots.parameters_before
    expected = by_slots.model.state_dict()
    assert expected.keys() == by_torch_pruning.model.state_dict().keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in by_torch_pruning.model.state_dict().items())
    by_torch_pruning.model.train()
    by_torch_pruning.model(torch.randn(3, *blueprint.input_shape)).sum().backward()


def test_option_a_shortcuts_are_refused_with_the_layer():
    blueprint, model, mask = halved(OPTION_A)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(MaskError, match=r"couples other channels.*8 of 16") as caught:
        shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    assert "stages.1.0" in str(caught.value.where)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert shrink(model, mask, blueprint.input_shape).difference <= 1e-5


def test_option_a_network_cut_inside_its_blocks_only():
    """Channels that no shortcut reads are coupled in the same way by Torch-Pruning."""
    blueprint, model, _ = halved(OPTION_A)
    channels = find_channels(model, blueprint.input_shape)
    kept, ranked = np.ones(channels.units, dtype=bool), np.zeros(channels.units, dtype=bool)
    for producers, units in channels.pools(("conv",)).items():
        ranked[units] = True
        if "+" not in producers:
            kept[units[::2]] = False
    mask = Mask(expand_units(channels, kept, ranked), MaskProvenance("magnitude", "layer", "filter", ("conv",)))
    small = shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    assert small.difference <= 1e-5 * max(1.0, small.scale)
    assert small.parameters_after < 0.6 * small.parameters_before


def test_its_files_are_read_like_any_other(tmp_path):
    blueprint, model, mask = halved("small-cnn")
    small = shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    none = as_ids(())
    trained = Trained(model, mask, Split(none, none, none, none, none), Provenance(blueprint.to_json()))
    save_small_model(small, trained, tmp_path / "small.safetensors")
    x = torch.randn(4, *blueprint.input_shape)
    assert torch.allclose(load_small_model(tmp_path / "small.safetensors")(x), small.model(x), atol=1e-6)


def test_frozen_parameters_stay_frozen():
    blueprint, model, mask = halved("lenet5")
    flags = {name: number % 2 == 0 for number, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    small = shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    assert {name: parameter.requires_grad for name, parameter in small.model.named_parameters()} == flags


def test_refusals(monkeypatch):
    blueprint, model, mask = halved("lenet5")
    with pytest.raises(MaskError, match="unknown backend 'torch_pruning'"):
        shrink(model, mask, blueprint.input_shape, backend="torch_pruning")

    def another_channel(model, rows, input_shape):
        """Remove the right number of channels, but always the first ones."""
        return remove(model, {name: range(len(removed)) for name, removed in rows.items()}, input_shape)

    remove = backend.remove_channels
    monkeypatch.setattr(backend, "remove_channels", another_channel)
    with pytest.raises(MaskError, match="leaves other values"):
        shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
    monkeypatch.undo()

    class PartlyRecorded(nn.Module):
        """A forward of which autograd records only a part."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                x = torch.relu(self.one(x))
            return self.two(x)

    hidden = PartlyRecorded()
    cut, _ = make_mask(hidden, Rule("magnitude", "filter", "layer", ("linear",), 0.5), input_shape=(6,))
    with pytest.raises(MaskError, match="Torch-Pruning"):
        shrink(hidden, cut, (6,), backend="torch-pruning")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MaskError, match="not installed"):
        shrink(model, mask, blueprint.input_shape, backend="torch-pruning")
