"""Small networks of every supported layer."""

from __future__ import annotations

import importlib

import torch
from torch import nn
from torch.nn import functional

architecture = importlib.import_module("expunge.models.architecture")


class Odd(nn.Module):
    """Functional calls, padded pools, grouped and dilated convolution, LeakyReLU, slices, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=2, dilation=2)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, stride=2)
        self.last = nn.Linear(4 * 2 * 2 + 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.leaky_relu(self.first(x), 0.1)
        z = functional.max_pool2d(functional.relu(self.second(y)), 3, 2, 1)
        pooled = functional.adaptive_avg_pool2d(y, 1)[:, :, 0, 0]
        return (
            functional.linear(torch.cat([z.view(x.size(0), -1), pooled], 1), self.last.weight, self.last.bias) * 2 - 1
        )


class Adaptive(nn.Module):
    """Adaptive average pooling to several places, by windows of 3 x 3, beside the mean that one place is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.last = nn.Linear(3 * 3 * 3 + 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        places = functional.adaptive_avg_pool2d(y, 3).flatten(1)
        return self.last(torch.cat([places, functional.adaptive_avg_pool2d(y, 1).flatten(1)], 1))


class Residual(nn.Module):
    """1-D: BatchNorm, a residual sum, average pooling with padding, permute, zero padding, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm1d(2)
        self.last = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([[0.5], [2.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x / self.scale)) + x)
        y = functional.avg_pool1d(y, 3, 2, 1)
        y = functional.max_pool1d(y, 2)
        y = functional.pad(y, (0, 0, 1, 1)).permute(0, 2, 1)[:, ::1]
        return self.last(y.mean(1))


def scrambled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with BatchNorm statistics and scales away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 1.5),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
            ):  # fmt: skip
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network by name, and the shape of its records."""
    torch.manual_seed(3)
    own = {"odd": (Odd, (2, 8, 8)), "residual": (Residual, (2, 10)), "adaptive": (Adaptive, (2, 9, 9))}
    if name in own:
        kind, shape = own[name]
        return scrambled(kind()), shape
    known = {
        "mlp": ("mlp", {"widths": (12,)}, (6,)),
        "mlp-two": ("mlp", {"widths": (5, 4)}, (3,)),
        "mlp-deep": ("mlp", {"widths": (10, 8), "batch_norm": True}, (6,)),
        "small-cnn": ("small-cnn", {"widths": (3, 4)}, (1, 6, 6)),
        "cnn1d": ("cnn1d", {"widths": (3, 4), "kernel": 3}, (2, 12)),
        "resnet20": ("resnet20", {"depth": 8, "width": 1}, (1, 6, 6)),
    }[name]
    normalisation = importlib.import_module("expunge.data.records").Normalisation
    channels = known[2][0]
    constants = normalisation((0.4,) * channels, (0.3,) * channels)
    return scrambled(architecture.Architecture(known[0], known[1], known[2], 4, constants).build(1)), known[2]


NETWORKS = ("mlp", "mlp-deep", "small-cnn", "cnn1d", "resnet20", "odd", "residual", "adaptive")
