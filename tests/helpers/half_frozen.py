"""A network of one frozen and one trained layer; its options say where the frozen weights come from."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.models.architecture import register_model
from expunge.training import Recipe

RECIPE = Recipe(name="test", epochs=2, batch_size=64, learning_rate=0.1)
FROZEN = {"backbone.weight", "backbone.bias"}


def register() -> None:
    """Register the network `half-frozen`."""

    @register_model("half-frozen")
    class HalfFrozen(nn.Module):
        """A frozen layer, and a trained one."""

        def __init__(self, input_shape, classes, normalise, file="", fixed=False, frozen=True):
            super().__init__()
            self.normalise = normalise
            self.backbone = nn.Linear(64, 16)
            self.head = nn.Linear(16, classes)
            if fixed:
                generator = torch.Generator().manual_seed(5)
                self.backbone.weight.data = torch.randn(16, 64, generator=generator) / 8
                self.backbone.bias.data = torch.randn(16, generator=generator) / 8
            if file:
                self.load_state_dict(load_file(file), strict=False)
            self.backbone.requires_grad_(not frozen)

        def forward(self, x):
            return self.head(torch.relu(self.backbone(self.normalise(x).flatten(1))))


def network(digits: Records, **options: object) -> Architecture:
    more = {"initial": options.pop("initial")} if "initial" in options else {}
    return Architecture("half-frozen", options, digits.input_shape, digits.classes, **more)


def values(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters()}


def frozen_kept(before: Trained, after: Trained) -> bool:
    old, new = values(before), values(after)
    return all(torch.equal(old[name], new[name]) for name in FROZEN)
