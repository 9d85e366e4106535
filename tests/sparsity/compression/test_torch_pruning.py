"""Torch-Pruning as the engine of physical removal: the same tensors as our own, bit for bit, or a refusal."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sparse_toys import EASY, SHAPES, shaken
from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models.architecture import Architecture, model_names
from expunge.sparsity import Rule, find_channels, load_small, make_mask, save_small, shrink
from expunge.sparsity.channels.groups import expand
from expunge.sparsity.compression import torch_pruning as engine

pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
OPTION_A = "resnet20"


def halved(name: str) -> tuple[Architecture, nn.Module, Mask]:
    """A reference network and a mask of half of its coupled channels, pool by pool."""
    shape = SHAPES.get(name, (3, 32, 32))
    blueprint = Architecture(name, EASY.get(name, {}), shape, 5)
    model = shaken(blueprint)
    layers = ("linear",) if name == "mlp" else ("conv", "linear")
    mask, _ = make_mask(model, Rule("magnitude", "filter", "layer", layers, 0.5), input_shape=shape)
    return blueprint, model, mask


@pytest.mark.parametrize("name", [name for name in model_names() if name != OPTION_A])
def test_both_engines_cut_alike(name):
    blueprint, model, mask = halved(name)
    ours = shrink(model, mask, blueprint.input_shape)
    theirs = shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    assert type(theirs.model) is type(model)
    assert not theirs.model.training
    assert theirs.difference <= 1e-5 * max(1.0, theirs.scale)
    assert theirs.parameters_after == ours.parameters_after < ours.parameters_before
    expected = ours.model.state_dict()
    assert expected.keys() == theirs.model.state_dict().keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in theirs.model.state_dict().items())
    theirs.model.train()
    theirs.model(torch.randn(3, *blueprint.input_shape)).sum().backward()


def test_option_a_shortcuts_are_refused_with_the_layer():
    blueprint, model, mask = halved(OPTION_A)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(MaskError, match=r"couples other channels.*8 of 16") as caught:
        shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    assert "stages.1.0" in str(caught.value.where)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert shrink(model, mask, blueprint.input_shape).difference <= 1e-5


def test_option_a_network_cut_inside_its_blocks_only():
    """Channels that meet no shortcut are coupled as Torch-Pruning thinks."""
    blueprint, model, _ = halved(OPTION_A)
    channels = find_channels(model, blueprint.input_shape)
    alive, ranked = np.ones(channels.units, dtype=bool), np.zeros(channels.units, dtype=bool)
    for producers, units in channels.pools(("conv",)).items():
        ranked[units] = True
        if "+" not in producers:
            alive[units[::2]] = False
    mask = Mask(expand(channels, alive, ranked), MaskProvenance("magnitude", "layer", "filter", ("conv",)))
    small = shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    assert small.difference <= 1e-5 * max(1.0, small.scale)
    assert small.parameters_after < 0.6 * small.parameters_before


def test_a_file_of_it_is_read_like_any_other(tmp_path):
    blueprint, model, mask = halved("small-cnn")
    small = shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    none = as_ids(())
    trained = Trained(model, mask, Split(none, none, none, none, none), Provenance(blueprint.to_json()))
    save_small(small, trained, tmp_path / "small.safetensors")
    x = torch.randn(4, *blueprint.input_shape)
    assert torch.allclose(load_small(tmp_path / "small.safetensors")(x), small.model(x), atol=1e-6)


def test_frozen_parameters_stay_frozen():
    blueprint, model, mask = halved("lenet5")
    flags = {name: number % 2 == 0 for number, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    small = shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    assert {name: parameter.requires_grad for name, parameter in small.model.named_parameters()} == flags


def test_refusals(monkeypatch):
    blueprint, model, mask = halved("lenet5")
    with pytest.raises(MaskError, match="unknown engine 'torch_pruning'"):
        shrink(model, mask, blueprint.input_shape, engine="torch_pruning")

    def another_channel(model, gone, input_shape):
        """A removal of the right size that takes the first channels, whatever was asked for."""
        return remove(model, {name: range(len(rows)) for name, rows in gone.items()}, input_shape)

    remove = engine.remove
    monkeypatch.setattr(engine, "remove", another_channel)
    with pytest.raises(MaskError, match="leaves other values"):
        shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
    monkeypatch.undo()

    class Turned(nn.Module):
        """A forward whose graph autograd does not see whole."""

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                x = torch.relu(self.one(x))
            return self.two(x)

    hidden = Turned()
    cut, _ = make_mask(hidden, Rule("magnitude", "filter", "layer", ("linear",), 0.5), input_shape=(6,))
    with pytest.raises(MaskError, match="Torch-Pruning"):
        shrink(hidden, cut, (6,), engine="torch-pruning")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MaskError, match="not installed"):
        shrink(model, mask, blueprint.input_shape, engine="torch-pruning")
