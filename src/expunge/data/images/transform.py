"""The declared transform of images: size, channels and scale, computed by Pillow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.core.show import repr_fields

#: Modes of 8 bits a channel that Pillow converts to grey or to red, green and blue without guessing a scale.
_CONVERTED = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
_MODES = {1: "L", 3: "RGB"}
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
_LARGEST = 10_000


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """What is done with each image, in this order: channels, resize, crop, scale.

    Attributes:
        channels: 1 (grey) or 3 (red, green, blue): images of other modes are converted. None: the images are used as
            they are, and must all be grey or all be in colour.
        resize: a number: the shorter side becomes so long, and the longer one in proportion; or height and width.
        crop: height and width of the middle of the image that is used.
        interpolation: of `resize`: `bilinear`, `bicubic`, `nearest` or `lanczos`.
        mean, std: a number for each channel: pixels x of 0..255 become (x / 255 - mean) / std, float32. Without them,
            images stay uint8.
    """

    channels: int | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    __repr__ = repr_fields

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> ImageTransform:
        """Make the transform of a configuration.

        Raises:
            ConfigError: a key is unknown, or a value is wrong.

        Example:
            >>> ImageTransform.from_options({"resize": 256, "crop": 224, "channels": 3}).crop
            (224, 224)
        """
        given = dict(options or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"images have no transform {name!r}", hint=unknown_name_hint(name, known))
        channels = given.get("channels")
        if channels not in (None, *_MODES):
            raise ConfigError(f"images have 1 or 3 channels, not {channels!r}", where="transform.channels")
        interpolation = given.get("interpolation", "bilinear")
        if interpolation not in _INTERPOLATIONS:
            hint = unknown_name_hint(interpolation, _INTERPOLATIONS)
            raise ConfigError(f"unknown interpolation {interpolation!r}", where="transform.interpolation", hint=hint)
        resize = _read_size("resize", given.get("resize"))
        crop = _read_size("crop", given.get("crop"))
        mean, std = (_read_numbers(name, given.get(name), channels) for name in ("mean", "std"))
        if bool(mean) != bool(std) or any(value <= 0 for value in std):
            raise ConfigError("mean and std are given together, and std is above 0", where="transform.std")
        pair = (crop, crop) if isinstance(crop, int) else crop
        return cls(channels, resize, pair, interpolation, mean, std)

    def find_size(self, width: int, height: int, where: object) -> tuple[int, int]:
        """Height and width of an image after the transform.

        Raises:
            DataError: the crop is larger than the image.
        """
        height, width = self._resized(width, height)
        if self.crop is None:
            return height, width
        if self.crop[0] > height or self.crop[1] > width:
            raise DataError(
                f"is {height} x {width} pixels (height x width) before the crop of {self.crop[0]} x {self.crop[1]}",
                where=where,
                hint="add a resize to the transform, or make the crop smaller",
            )
        return self.crop

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if not isinstance(self.resize, int):
            return self.resize
        short, long = min(width, height), max(width, height)
        other = max(1, int(self.resize * long / short))
        return (self.resize, other) if height <= width else (other, self.resize)

    def count_channels(self, mode: str, where: object) -> int:
        """Number of channels of an image after the transform.

        Raises:
            DataError: the mode of the image cannot be used, or only with declared channels.
        """
        if mode not in _CONVERTED:
            raise DataError(
                f"the image has the mode {mode!r}: more than 8 bits a channel", where=where, hint="store it with 8 bits"
            )
        if self.channels is not None:
            return self.channels
        for channels, wanted in _MODES.items():
            if mode == wanted:
                return channels
        raise DataError(
            f"the image has the mode {mode!r}, neither grey ('L') nor in colour ('RGB')",
            where=where,
            hint="declare transform: {channels: 3}, or 1, and it is converted",
        )

    def apply(self, image: Any, where: object) -> NDArray[Any]:
        """Decode and transform a Pillow image.

        Returns:
            `C x H x W`, contiguous; uint8, or float32 if there are `mean` and `std`.

        Raises:
            DataError: the image cannot be used.
            OSError, ValueError, SyntaxError: Pillow cannot decode it.
        """
        from PIL import Image

        channels = self.count_channels(image.mode, where)
        height, width = self.find_size(image.width, image.height, where)
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        resized = self._resized(image.width, image.height)
        if (image.height, image.width) != resized:
            image = image.resize((resized[1], resized[0]), Image.Resampling[self.interpolation.upper()])
        if (image.height, image.width) != (height, width):
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        array = np.asarray(image, dtype=np.uint8)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if not self.mean:
            return np.ascontiguousarray(array)
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        if len(mean) != len(array):
            raise DataError(f"has {len(array)} channels; mean and std have {len(mean)} numbers", where=where)
        return np.ascontiguousarray((array.astype(np.float32) / np.float32(255) - mean) / std)


def _read_size(name: str, value: Any) -> int | tuple[int, int] | None:
    """A size: one integer, or height and width."""
    if value is None:
        return None
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(numbers) not in (1, 2) or not all(type(n) is int and 1 <= n <= _LARGEST for n in numbers):
        raise ConfigError(
            f"is {value!r}; it is an integer, or [height, width], of 1 to {_LARGEST:,}", where=f"transform.{name}"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _read_numbers(name: str, value: Any, channels: int | None) -> tuple[float, ...]:
    if value is None:
        return ()
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    finite = all(isinstance(n, (int, float)) and not isinstance(n, bool) and np.isfinite(n) for n in numbers)
    if not finite or (channels is not None and len(numbers) != channels):
        raise ConfigError(f"is {value!r}; it has one number for each channel", where=f"transform.{name}")
    return tuple(map(float, numbers))
