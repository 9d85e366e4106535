"""The narrow ResNets of depth 20, 32, 44, 56, ... for small images, with parameter-free shortcuts."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.reading.limits import LAYERS
from expunge.models.architecture import register_model

from .layers import check_image_shape, check_positive_ints, init_kaiming_fan_out


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around an option-A shortcut: every second pixel, new channels zero.

    Args:
        before, after: input and output channels; the new ones are divided before and after the old ones.
        stride: 1 or 2.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.lead = (after - before) // 2
        self.trail = after - before - self.lead

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x before x H x W` to `N x after x ceil(H/stride) x ceil(W/stride)`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.lead or self.trail:
            x = nn.functional.pad(x, (0, 0, 0, 0, self.lead, self.trail))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + x)


@register_model("resnet20", title="ResNet-20")
class ResNet20(nn.Module):
    """ResNet-20 for CIFAR (or depth 32, 44, 56, ... = 6n + 2): three stages of n blocks [He2016]_, section 4.2.

    3x3 stem of `width` channels, stages of 1, 2 and 4 times `width`, option-A shortcuts (no parameters), global average
    pool, one linear layer. Convolutions start from the Kaiming normal distribution (fan out).

    Args:
        input_shape: `C x H x W`.
        classes: number of classes K.
        normalise: applied first.
        depth: 6n + 2.
        width: channels of the first stage.

    Raises:
        ConfigError: `depth` is not 6n + 2, or is above `LAYERS`.

    .. [He2016] He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        normalise: nn.Module,
        depth: int = 20,
        width: int = 16,
    ) -> None:
        super().__init__()
        channels, _, _ = check_image_shape("resnet20", input_shape)
        depth, width = check_positive_ints("resnet20", "depth and width", (depth, width))
        if depth < 8 or depth % 6 != 2:
            raise ConfigError(f"depth of resnet20 is 6n + 2 (8, 20, 32, 44, 56, ...), not {depth}", where="depth")
        if depth > LAYERS:
            raise ConfigError(f"depth of resnet20 is at most {LAYERS:,}, not {str(depth)[:30]}", where="depth")
        self.normalise = normalise
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        before = width
        for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            blocks = [PaddedBlock(before, after, stride)]
            blocks += [PaddedBlock(after, after, 1) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(*blocks))
            before = after
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(before, classes)
        init_kaiming_fan_out(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        x = torch.relu(self.bn1(self.conv1(self.normalise(x))))
        logits: torch.Tensor = self.fc(self.stages(x).mean(dim=(2, 3)))
        return logits
