"""A model that was trained elsewhere, and its adoption."""

from __future__ import annotations

import pytest
import torch
from own_networks import SmallNet, make_mlp, train_own
from torch import nn

import expunge
from expunge.api import AdoptedModel
from expunge.data.records import Records

TRAIN, TEST, POOL = range(300), range(300, 390), range(390, 440)


@pytest.fixture(scope="session")
def own_mlp(digits: Records) -> nn.Module:
    torch.manual_seed(1)
    return train_own(make_mlp(), digits, TRAIN)


@pytest.fixture(scope="session")
def own_cnn(digits: Records) -> nn.Module:
    torch.manual_seed(2)
    return train_own(SmallNet(), digits, TRAIN)


@pytest.fixture(scope="session")
def adopted(own_mlp: nn.Module, digits: Records) -> AdoptedModel:
    """The perceptron with its factory and a recipe."""
    recipe = expunge.get_recipe("one-cycle", epochs=2, batch_size=64)
    return expunge.adopt(
        own_mlp, digits, train=TRAIN, test=TEST, non_members=POOL, factory=make_mlp, recipe=recipe
    )  # fmt: skip
