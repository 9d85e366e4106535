"""A stream of image files: each is decoded when it is read, and no image is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.core.files import open_file
from expunge.core.hashing import hash_json

from .index import DAMAGE, ImageIndex, describe_damage, open_image, stamp
from .transform import ImageTransform


class ImageStream:
    """A map-style dataset of indexed image files.

    Args:
        index: the files.
        labels: `N` class indices.
        transform: what is done with each image.

    Raises:
        DataError: the images differ in size or channels after the transform; the error names two of them.
    """

    def __init__(self, index: ImageIndex, labels: NDArray[np.int64], transform: ImageTransform) -> None:
        self.root, self.paths, self.stamps = str(index.root), index.paths, index.stamps
        self.labels, self.transform = labels, transform
        self.shape = _find_shape(index, transform)
        self.dtype = np.dtype(np.float32 if transform.mean else np.uint8)
        #: Hash of the contents of all files and of the transform.
        self.content_hash = hash_json([index.hash(), repr_options(transform)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[NDArray[Any], int]:
        return self._read(row), int(self.labels[row])

    def read_rows(self, rows: Iterable[int]) -> NDArray[Any]:
        """Decode some images, `B x C x H x W`.

        Raises:
            DataError: a file cannot be decoded, or has changed since it was indexed.
        """
        chosen = [int(row) for row in rows]
        out = np.empty((len(chosen), *self.shape), dtype=self.dtype)
        for position, row in enumerate(chosen):
            out[position] = self._read(row)
        return out

    def _read(self, row: int) -> NDArray[Any]:
        path = os.path.join(self.root, str(self.paths[row]))
        with open_file(path, error=DataError) as file:
            if stamp(os.fstat(file.fileno()))[:2] != tuple(self.stamps[row, :2].tolist()):
                raise DataError("has changed since it was indexed", where=path, hint="load the records again")
            image = open_image(file, path)
            try:
                return self.transform.apply(image, path)
            except DAMAGE as error:
                raise describe_damage(error, path) from error


def repr_options(transform: ImageTransform) -> dict[str, Any]:
    """The options of a transform as JSON values, without those at their defaults."""
    default = ImageTransform()
    return {name: value for name, value in vars(transform).items() if value != getattr(default, name)}


def _find_shape(index: ImageIndex, transform: ImageTransform) -> tuple[int, ...]:
    """The common shape of all images after the transform."""
    kinds: dict[tuple[int, int, str], int] = {}
    for row, (width, height, mode) in enumerate(zip(*index.sizes.T.tolist(), index.modes.tolist(), strict=True)):
        kinds.setdefault((width, height, mode), row)
    first: tuple[tuple[int, ...], int] | None = None
    for (width, height, mode), row in kinds.items():
        where = index.root / str(index.paths[row])
        shape = (transform.count_channels(mode, where), *transform.find_size(width, height, where))
        if first is None:
            first = shape, row
        elif shape != first[0]:
            raise DataError(
                f"is {' x '.join(map(str, shape))} (channels x height x width) after the transform; "
                f"{index.paths[first[1]]} is {' x '.join(map(str, first[0]))}",
                where=where,
                hint="declare one size and mode, such as transform: {resize: [224, 224], channels: 3}",
            )
    assert first is not None
    return first[0]
