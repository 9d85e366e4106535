"""VGG-16 with BatchNorm and a single linear classifier."""

from __future__ import annotations

import torch
from torch import nn

from expunge.models.architecture import register_model

from .layers import check_image_shape, init_kaiming_fan_out

#: Output channels of the 3x3 convolutions, a stage each; a 2x2 max-pool ends every stage.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@register_model("vgg16-bn", title="VGG-16 with BatchNorm")
class VGG16BN(nn.Module):
    """VGG-16 with BatchNorm [Simonyan2015]_ for small images: 13 convolutions, average pool, one linear layer 512 -> K.

    The single linear classifier is that of the code of [Jia2023] (docs/references.md). Convolutions (with bias) start
    from the Kaiming normal distribution (fan out), the classifier from N(0, 0.01^2).

    Args:
        input_shape: `C x H x W`, at least 32 x 32.
        classes: number of classes K.
        normalise: applied first.

    .. [Simonyan2015] Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition, 2015.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, normalise: nn.Module) -> None:
        super().__init__()
        before, _, _ = check_image_shape("vgg16-bn", input_shape, least=32)
        self.normalise = normalise
        layers: list[nn.Module] = []
        for stage in _STAGES:
            for after in stage:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)
        init_kaiming_fan_out(self)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N x C x H x W` to `N x K` logits."""
        logits: torch.Tensor = self.classifier(self.features(self.normalise(x)).mean(dim=(2, 3)))
        return logits
