"""ResNet-18 for small images."""

from __future__ import annotations

import torch
from torch import nn

from expunge.models.architecture import register_model

from .layers import check_image_shape, check_positive_ints, init_kaiming_fan_out


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut (1x1 convolution and BatchNorm where the shape changes).

    Args:
        before, after: input and output channels.
        stride: stride of the first convolution and of the shortcut.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x before x H x W` to `N x after x H/stride x W/stride`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


@register_model("resnet18", title="ResNet-18")
class ResNet18(nn.Module):
    """ResNet-18 [He2016]_ with the stem for small images: 3x3, stride 1, no max-pool (as in [Jia2023]).

    Four stages of two blocks, 1, 2, 4 and 8 times `width` channels; global average pool; one linear layer. Convolutions
    start from the Kaiming normal distribution (fan out). Parameters are named as in the usual ImageNet implementation
    (`conv1`, `layer1.0.conv1`, ..., `fc`).

    Args:
        input_shape: `C x H x W`.
        classes: number of classes K.
        normalise: applied first.
        width: channels of the first stage.

    .. [He2016] He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, normalise: nn.Module, width: int = 64) -> None:
        super().__init__()
        channels, _, _ = check_image_shape("resnet18", input_shape)
        (width,) = check_positive_ints("resnet18", "width", (width,))
        self.normalise = normalise
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, classes)
        init_kaiming_fan_out(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        x = torch.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
