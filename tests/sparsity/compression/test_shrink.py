"""Physically smaller networks give the outputs of the masked network, or are refused."""

from __future__ import annotations

import pytest
import torch
from sparse_toys import EASY, SHAPES, randomised
from torch import nn

from expunge.core.errors import FileError, MaskError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models.architecture import Architecture, model_names
from expunge.sparsity import Rule, load_small_model, make_mask, save_small_model, shrink
from expunge.sparsity.compression import shrink as physical


@pytest.mark.parametrize("name", model_names())
def test_every_reference_architecture(name):
    shape = SHAPES.get(name, (3, 32, 32))
    blueprint = Architecture(name, EASY.get(name, {}), shape, 5)
    model = randomised(blueprint)
    layers = ("linear",) if name == "mlp" else ("conv", "linear")
    mask, _ = make_mask(model, Rule("magnitude", "filter", "layer", layers, 0.5), input_shape=shape)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = shrink(model, mask, shape)
    assert small.difference <= 1e-5 * max(1.0, small.scale)
    assert small.parameters_after < 0.6 * small.parameters_before
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = torch.randn(3, *shape)  # the smaller network can be trained
    small.model.train()
    small.model(x).sum().backward()


def test_option_a_network_with_batchnorm_mlp_round_trip(tmp_path):
    for name, options, shape in (
        ("resnet20", {"depth": 8, "width": 6}, (3, 16, 16)),
        ("mlp", {"batch_norm": True}, (7,)),
    ):
        blueprint = Architecture(name, options, shape, 4)
        model = randomised(blueprint)
        layers = ("linear",) if name == "mlp" else ("conv",)
        mask, _ = make_mask(model, Rule("magnitude", "filter", "global", layers, 0.3), input_shape=shape)
        small = shrink(model, mask, shape)
        none = as_ids(())
        trained = Trained(model, mask, Split(none, none, none, none, none), Provenance(blueprint.to_json()))
        path = tmp_path / f"{name}.safetensors"
        save_small_model(small, trained, path)
        loaded = load_small_model(path)
        x = torch.randn(5, *shape)
        mask.apply_(model)
        assert torch.equal(loaded(x), small.model(x))
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(FileError):
            load_small_model(path)


def test_what_cannot_be_removed_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    rule = Rule("magnitude", "weight", layers=("linear",), sparsity=0.2)
    mask, _ = make_mask(model, rule)
    with pytest.raises(MaskError, match="no coupled channel"):
        shrink(model, mask, (4,))
    other = Mask({"0.weight": torch.ones(5, 4, dtype=torch.bool)}, MaskProvenance("magnitude"))
    with pytest.raises(MaskError, match="another architecture"):
        shrink(model, other, (4,))
    # a sigmoid maps 0 to 1/2, so its channels are pinned
    curved = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))
    with pytest.raises(MaskError, match="unsupported operation"):
        make_mask(curved, Rule("magnitude", "filter", layers=("linear",)), input_shape=(4,))


def test_a_wrong_removal_is_caught_by_the_check():
    """Negative control: a forward with a fixed reshape, and one that depends on the number of channels."""

    class FixedReshape(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).view(-1, 4 * 36))

    class CountsChannels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean(dim=(2, 3))
            return self.fc(x) * x.shape[1]

    for model, words in ((FixedReshape(), "cannot be run"), (CountsChannels(), "differs|unsupported operation")):
        mask, _ = make_mask(model, Rule("magnitude", "filter", sparsity=0.5), input_shape=(1, 8, 8))
        with pytest.raises(MaskError, match=words):
            shrink(model, mask, (1, 8, 8))


def small_cnn() -> tuple[nn.Module, Mask, tuple[int, ...]]:
    blueprint = Architecture("small-cnn", {"widths": (6, 8)}, (1, 8, 8), 5)
    model = randomised(blueprint)
    mask, _ = make_mask(model, Rule("magnitude", "filter", "layer", ("conv",), 0.5), input_shape=(1, 8, 8))
    return model, mask, (1, 8, 8)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e-3])
def test_a_removal_that_gives_other_numbers_is_refused(monkeypatch, wrong):
    """NaN and infinity are refused, and so is a difference of 1e-3."""
    model, mask, shape = small_cnn()

    def off(*arguments):
        small = cut(*arguments)
        last = [module for module in small.modules() if isinstance(module, nn.Linear)][-1]
        last.bias = nn.Parameter(last.bias + wrong)
        return small

    cut = physical.cut_tensors
    monkeypatch.setattr(physical, "cut_tensors", off)
    with pytest.raises(MaskError, match="it is not returned"):
        shrink(model, mask, shape)
    monkeypatch.undo()
    with torch.no_grad():
        model.classifier.bias.fill_(wrong)
    if wrong != 1e-3:
        with pytest.raises(MaskError, match="not finite"):
            shrink(model, mask, shape)


def test_the_given_inputs_are_checked_too(monkeypatch):
    """A network that is wrong only far from the random inputs is refused if such a record is among the inputs."""
    model, mask, shape = small_cnn()

    class WrongFarAway(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + (x.amax() > 50).float()

    cut = physical.cut_tensors
    monkeypatch.setattr(physical, "cut_tensors", lambda *arguments: WrongFarAway(cut(*arguments)))
    far = torch.full((1, *shape), 60.0)
    assert shrink(model, mask, shape).difference <= 1e-5 * max(1.0, shrink(model, mask, shape).scale)
    with pytest.raises(MaskError, match="it is not returned"):
        shrink(model, mask, shape, inputs=far)


@pytest.mark.parametrize(("out", "groups"), [(8, 4), (4, 4), (8, 2), (12, 4)])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_grouped_convolutions_that_are_not_cut_keep_their_groups(out, groups, dimensions):
    """A channel multiplier (out > in = groups) has one input channel per group, as a depthwise convolution has."""
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
    shape = (1, *[6] * dimensions)
    grouped = conv(4, out, 3, groups=groups)
    body = [conv(1, 8, 1), nn.ReLU(), conv(8, 4, 1), nn.Sigmoid(), grouped, nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(out * 4**dimensions, 3))
    mask, _ = make_mask(model, Rule("magnitude", "filter", layers=("conv",), sparsity=0.5), input_shape=shape)
    small = shrink(model, mask, shape)
    layers = dict(small.model.named_modules())
    assert (layers["4"].groups, layers["4"].in_channels, layers["4"].out_channels) == (groups, 4, out)
    assert layers["0"].out_channels == layers["2"].in_channels < 8
    mask.apply_(model)
    x = torch.randn(3, *shape)
    assert torch.allclose(small.model(x), model(x), atol=1e-5)


def test_a_depthwise_convolution_is_cut_with_its_input():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(32, 3))
    mask, _ = make_mask(model, Rule("magnitude", "filter", layers=("conv",), sparsity=0.5), input_shape=(1, 6, 6))
    layers = dict(shrink(model, mask, (1, 6, 6)).model.named_modules())
    assert layers["2"].groups == layers["2"].in_channels == layers["2"].out_channels == layers["0"].out_channels < 8
