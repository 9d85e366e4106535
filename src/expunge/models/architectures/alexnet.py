"""A small AlexNet: five convolutions and three linear layers with dropout, no BatchNorm."""

from __future__ import annotations

import torch
from torch import nn

from expunge.models.architecture import register_model

from .layers import check_fraction, check_image_shape, check_positive_ints

_CHANNELS = (64, 192, 384, 256, 256)


@register_model("alexnet", title="AlexNet")
class AlexNet(nn.Module):
    """The layout of AlexNet [Krizhevsky2012]_ with 3x3 convolutions, for images of 32 x 32.

    Convolutions of 64 (stride 2), 192, 384, 256 and 256 channels, ReLU; 2x2 max-pool after the first, second and fifth;
    dropout, linear, ReLU, twice; linear to K.

    Args:
        input_shape: `C x H x W`, at least 16 x 16.
        classes: number of classes K.
        normalise: applied first.
        hidden: size of the two hidden linear layers.
        dropout: probability of dropping an activation before each of them, in [0, 1).

    .. [Krizhevsky2012] Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks,
       NeurIPS 2012.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        normalise: nn.Module,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        before, height, width = check_image_shape("alexnet", input_shape, least=16)
        (hidden,) = check_positive_ints("alexnet", "hidden", (hidden,))
        dropout = check_fraction("alexnet", "dropout", dropout)
        self.normalise = normalise
        layers: list[nn.Module] = []
        for number, after in enumerate(_CHANNELS):
            layers += [nn.Conv2d(before, after, 3, stride=2 if number == 0 else 1, padding=1), nn.ReLU()]
            if number in (0, 1, 4):
                layers.append(nn.MaxPool2d(2))
            before = after
        self.features = nn.Sequential(*layers)
        pixels = ((height + 1) // 16) * ((width + 1) // 16)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(before * pixels, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        logits: torch.Tensor = self.classifier(self.features(self.normalise(x)).flatten(1))
        return logits
