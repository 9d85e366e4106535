"""LeNet-5 with ReLU and max-pooling."""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import ModelError
from expunge.models.architecture import register_model

from .layers import check_image_shape


@register_model("lenet5", title="LeNet-5")
class LeNet5(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels) and linear layers of 120, 84 and K [LeCun1998]_, with ReLU and max-pool.

    Args:
        input_shape: `C x 28 x 28` (padded by 2) or `C x 32 x 32`.
        classes: number of classes K.
        normalise: applied first; the padding that follows is zero, the mean of a normalised channel.

    Raises:
        ModelError: another image size.

    .. [LeCun1998] LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, normalise: nn.Module) -> None:
        super().__init__()
        channels, height, width = check_image_shape("lenet5", input_shape)
        if (height, width) not in ((28, 28), (32, 32)):
            raise ModelError(
                f"lenet5 takes images of 28 x 28 or 32 x 32, the records are {height} x {width}",
                where="lenet5",
                hint="small-cnn takes any size",
            )
        self.normalise = normalise
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=(32 - height) // 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        x = torch.max_pool2d(torch.relu(self.conv1(self.normalise(x))), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        logits: torch.Tensor = self.fc3(torch.relu(self.fc2(x)))
        return logits
