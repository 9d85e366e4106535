"""Augmentation of whole batches on their device.

The augmentation of a record in an epoch is drawn from hash(seed, epoch, record id). It depends neither on the batch nor
on the other records, so removing records does not change the augmentation of the others.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.core.seeds import derive, mix
from expunge.core.show import repr_fields

#: Black pixels on each side before the random crop, as in the recipe of [Jia2023] (RandomCrop(32, padding=4)).
PADDING = 4


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn for a record: a crop of the padded image, a horizontal flip, both, or neither."""

    crop: bool
    flip: bool
    summary: str


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(False, False, "no augmentation"),
    "flip": Augmentation(False, True, "horizontal flip with probability 1/2"),
    "crop": Augmentation(True, False, f"a random window of the image with {PADDING} black pixels around it"),
    "crop-flip": Augmentation(True, True, "crop, then flip ([Jia2023], for CIFAR)"),
}


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws for `N` records.

    Attributes:
        down, right: upper left corner of the window in the padded image, `N` integers in 0 .. 2 * PADDING.
        mirror: `N` booleans, True for a flipped image.
    """

    down: torch.Tensor
    right: torch.Tensor
    mirror: torch.Tensor

    __repr__ = repr_fields

    def to(self, device: torch.device) -> Draws:
        """Return the same draws on a device."""
        return Draws(self.down.to(device), self.right.to(device), self.mirror.to(device))

    def take(self, where: slice) -> Draws:
        """Return the draws of some records."""
        return Draws(self.down[where], self.right[where], self.mirror[where])


def get_augmentation(name: str) -> Augmentation:
    """Return a registered augmentation.

    Raises:
        ConfigError: no augmentation has this name.
    """
    if name not in AUGMENTATIONS:
        raise ConfigError(f"unknown augmentation {name!r}", hint=unknown_name_hint(name, AUGMENTATIONS))
    return AUGMENTATIONS[name]


def draw_augmentation(keys: NDArray[np.uint64], seed: int, epoch: int, chosen: Augmentation) -> Draws:
    """Draw the augmentation of every record key (`expunge.core.seeds.record_keys`) in one epoch.

    Of the 64 bits of hash(seed, epoch, key), bits 0-15 give the row, bits 16-31 the column and the highest bit the
    flip.
    """
    bits = mix(keys, derive(seed, "augmentation", epoch))
    low = np.uint64(0xFFFF)
    positions = np.uint64(2 * PADDING + 1)
    middle = np.full(len(keys), PADDING, dtype=np.int64)
    down = ((bits & low) * positions >> np.uint64(16)).astype(np.int64) if chosen.crop else middle
    right = (((bits >> np.uint64(16)) & low) * positions >> np.uint64(16)).astype(np.int64) if chosen.crop else middle
    mirror = (bits >> np.uint64(63)).astype(bool) if chosen.flip else np.zeros(len(keys), dtype=bool)
    return Draws(torch.from_numpy(down), torch.from_numpy(right), torch.from_numpy(mirror))


def crop_and_flip(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Crop and flip each image, in one gather.

    Args:
        images: `B x C x H x W`, any type.
        draws: `B` draws on the same device.

    Returns:
        `B x C x H x W`, the same type; pixels outside the image are 0.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    rows = draws.down[:, None] + torch.arange(height, device=images.device)
    unflipped = torch.arange(width, device=images.device).expand(batch, width)
    columns = draws.right[:, None] + torch.where(draws.mirror[:, None], width - 1 - unflipped, unflipped)
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).reshape(batch, 1, height * width)
    flat = padded.reshape(batch, channels, -1)
    return flat.gather(2, index.expand(batch, channels, height * width)).view(batch, channels, height, width)


def check_shape(shape: tuple[int, ...], name: str, where: str) -> None:
    """Raise DataError if records of this shape (without the batch axis) do not fit the augmentation `name`."""
    if get_augmentation(name) != AUGMENTATIONS["none"] and len(shape) != 3:
        raise DataError(
            f"augmentation {name!r} is for images (C x H x W); the records have the shape {tuple(shape)}",
            where=where,
            hint="use augmentation 'none'",
        )


def to_input(batch: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
    """Convert a batch to the input of a model: float32, `uint8` divided by 255; optionally channels-last if 4-D.

    int64 (tokens) stays as it is.
    """
    if batch.dtype == torch.int64:
        return batch
    if channels_last and batch.dim() == 4:
        out = batch.to(torch.float32, memory_format=torch.channels_last)
    else:
        out = batch.to(torch.float32)
    return out.div_(255) if batch.dtype == torch.uint8 else out
