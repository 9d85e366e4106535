"""The layers of a shrunk network say the sizes that their tensors have."""

from __future__ import annotations

import pytest
import torch
from sparse_toys import EASY, randomised
from torch import nn

from expunge.models.architecture import Architecture
from expunge.sparsity import Rule, make_mask, shrink


@pytest.mark.parametrize("name", ["small-cnn", "resnet20"])
def test_attributes_of_layers_are_those_of_their_weights(name: str) -> None:
    shape = (1, 8, 8)
    model = randomised(Architecture(name, EASY.get(name, {}), shape, 3))
    mask, _ = make_mask(model, Rule("filter-l2", "filter", "layer", sparsity=0.5), input_shape=shape)
    small = shrink(model, mask, shape).model
    smaller = 0
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            smaller += module.out_channels
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert {len(module.weight), len(module.bias), len(module.running_mean)} == {module.num_features}
    before = sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    assert 0 < smaller < before
    assert torch.isfinite(small(torch.zeros(2, *shape))).all()
