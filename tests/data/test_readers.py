"""Readers of file formats on tiny files, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.core.errors import DataError
from expunge.data.reading.readers import read_binary_records, read_idx, read_mosaic, read_mosaics, read_npz


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def mosaic(path: Path, images: np.ndarray) -> None:
    """`N x side x side x 3` images, pasted one by one."""
    side = images.shape[1]
    sheet = Image.new("RGB", (100 * side, side * (len(images) // 100)))
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (i % 100 * side, i // 100 * side))
    sheet.save(path, lossless=True)


@pytest.mark.parametrize(("channels", "suffix"), [(3, "webp"), (1, "webp"), (1, "png")])
def test_mosaic(tmp_path: Path, channels: int, suffix: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 5, 5, 3), dtype=np.uint8)
    if channels == 1:
        images[...] = images[..., :1]
    mosaic(tmp_path / f"a.{suffix}", images)
    mosaic(tmp_path / f"b.{suffix}", images[:100])
    wanted = images.transpose(0, 3, 1, 2)[:, :channels]
    np.testing.assert_array_equal(read_mosaic(tmp_path / f"a.{suffix}", 5, channels), wanted)
    both = read_mosaics([tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"], 5, channels)
    np.testing.assert_array_equal(both, np.concatenate([wanted, wanted[:100]]))
    assert both.flags.c_contiguous


def test_damaged_mosaic(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    mosaic(path, np.random.default_rng(0).integers(0, 256, (100, 6, 6, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.webp.*800 wide"):
        read_mosaic(path, 8, 3)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.webp: is not a complete image"):
            read_mosaic(path, 6, 3)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=3), cut=st.integers(1, 20), packed=st.booleans())
def test_idx(tmp_path_factory: pytest.TempPathFactory, shape: list[int], cut: int, packed: bool) -> None:
    path = tmp_path_factory.mktemp("idx") / ("a-ubyte.gz" if packed else "a-ubyte")
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = idx_bytes(array)
    pack = gzip.compress if packed else bytes
    path.write_bytes(pack(data))
    np.testing.assert_array_equal(read_idx(path), array)
    for damaged in (pack(data[: max(0, len(data) - cut)]), pack(data)[:-cut], pack(data + b"x"), b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="a-ubyte"):
            read_idx(path)


def test_idx_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for code, kind in ((0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")):
        path.write_bytes(idx_bytes(np.asarray([[1, -2], [300, 4]], dtype=kind), code))
        got = read_idx(path)
        np.testing.assert_array_equal(got, [[1, -2], [300, 4]])
        assert got.dtype.isnative
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(path)


def test_binary_records(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(12)))
    np.testing.assert_array_equal(read_binary_records(path, 4), np.arange(12).reshape(3, 4))
    for bad in (b"", b"12345"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"a\.bin"):
            read_binary_records(path, 4)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(500), y=np.asarray(["a", "b"]))
    assert sorted(read_npz(path)) == ["x", "y"]
    with pytest.raises(DataError, match=r"'z'[\s\S]*x, y"):
        read_npz(path, ["x", "z"])
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-30], whole[:200] + b"\0" * 200 + whole[400:], b"not a zip at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.npz"):
            read_npz(path)
    np.savez(path, x=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="never loaded"):
        read_npz(path)
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(DataError, match="single array"):
        read_npz(path)
