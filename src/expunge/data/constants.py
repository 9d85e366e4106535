"""Published normalisation statistics and class names of public image sets.

The statistics are means and standard deviations of the channels of the training images, in [0, 1]. CIFAR: the code of
[Jia2023]; MNIST and Fashion-MNIST: the values in common use.
"""

from __future__ import annotations

from .records import Normalisation

PUBLISHED: dict[str, Normalisation] = {
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalisation((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": Normalisation((0.1307,), (0.3081,)),
    "fashion-mnist": Normalisation((0.2860,), (0.3530,)),
}

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
