"""Hostile files of arrays: npz, CSV, IDX, CIFAR, images, safetensors; see `hostile_files`."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile_files import (
    CASES,
    GIGA,
    cifar,
    hostile,
    idx,
    mosaic,
    npz,
    pipe,
    records,
    sparse,
    table,
    tensors,
    text_file,
)

# ---- npz


def npy(shape: tuple[int, ...], kind: str, data: bytes = b"", header: str | None = None) -> bytes:
    """An npy file whose header may declare anything."""
    text = (header or f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}").encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


LABELS = npy((3,), "<i8", np.arange(3, dtype="<i8").tobytes())


def archive(members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], object]:
    def write(at: Path) -> None:
        import warnings

        with warnings.catch_warnings(), zipfile.ZipFile(at / "a.npz", "w", packing) as file:
            warnings.simplefilter("ignore")  # a duplicate name
            for name, data in members:
                file.writestr(name, data)

    return write


def _bomb(at: Path) -> None:
    """300 MiB of zeros in 300 kB."""
    with zipfile.ZipFile(at / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("labels.npy", LABELS)
        with file.open("features.npy", "w") as member:
            member.write(npy((3, 100 * 2**20), "|u1"))
            for _ in range(300):
                member.write(bytes(2**20))


def _lie(at: Path) -> None:
    """The directory declares 192 bytes; the stream holds 64 MiB."""
    content = npy((3, 8), "<f8")
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packed.compress(content) + packed.compress(b"\1" * 2**26) + packed.flush()
    archive([("labels.npy", LABELS), ("features.npy", content + bytes(192))])(at)
    old = (at / "a.npz").read_bytes()
    with zipfile.ZipFile(io.BytesIO(old)) as file:
        entry = file.getinfo("features.npy")
    start = entry.header_offset + 30 + len("features.npy")
    directory = bytearray(old[start + entry.compress_size :])
    local = bytearray(old[:start])
    struct.pack_into("<I", local, entry.header_offset + 18, len(stream))
    at_entry = directory.index(b"features.npy") - 46
    struct.pack_into("<I", directory, at_entry + 20, len(stream))
    end = directory.index(b"PK\x05\x06")
    struct.pack_into("<I", directory, end + 16, start + len(stream))
    (at / "a.npz").write_bytes(bytes(local) + stream + bytes(directory))


FEATURES = npy((3, 2), "<f4", bytes(24))
hostile("npz", "a header that declares 4 TB", npz, "DataError", "bytes; the limit is")(
    archive([("features.npy", npy((3, 2**39), "<f8")), ("labels.npy", LABELS)])
)
hostile("npz", "300 kB that expand to 300 MiB", npz, "DataError", "expands to .* bytes; the limit is")(_bomb)
hostile("npz", "an entry that holds more than it declares", npz, "DataError", "not a complete npz file")(_lie)
hostile("npz", "Python objects (a pickle)", npz, "DataError", "never loaded")(
    archive([("features.npy", npy((3,), "|O", pickle.dumps([1, 2, 3]))), ("labels.npy", LABELS)])
)
hostile("npz", "a header nested 4,000 deep", npz, "DataError", "not a complete npz file")(
    archive([("features.npy", npy((), "", header="(" * 4000 + ")" * 4000)), ("labels.npy", LABELS)])
)
hostile("npz", "strings of 500 M characters", npz, "DataError", "bytes; the limit is")(
    archive([("features.npy", npy((3, 1000), "<U500000000")), ("labels.npy", LABELS)])
)
hostile("npz", "a shape below 0", npz, "DataError", "shape")(
    archive([("features.npy", npy((-3, 2), "<f4", bytes(24))), ("labels.npy", LABELS)])
)
hostile("npz", "an array named twice", npz, "DataError", "'features' is a duplicate")(
    archive([("features.npy", FEATURES), ("features.npy", FEATURES), ("labels.npy", LABELS)])
)
hostile("npz", "entries packed by bzip2", npz, "DataError", "numpy does not use")(
    archive([("features.npy", FEATURES), ("labels.npy", LABELS)], zipfile.ZIP_BZIP2)
)
hostile("npz", "labels up to 2^62 (as many class names)", npz, "DataError", "is not one of 0 to 99999")(
    archive([("features.npy", FEATURES), ("labels.npy", npy((3,), "<i8", np.asarray([0, 1, 2**62]).tobytes()))])
)
hostile(
    "npz", "10^9 records without numbers, in 400 bytes", npz, "DataError", "limit is|hold no numbers|different lengths"
)(archive([("features.npy", npy((GIGA, 0), "<f4")), ("labels.npy", LABELS)]))
hostile(
    "npz",
    "class names of invalid code points",
    records("npz", path="a.npz", class_names="names"),
    "DataError",
    "invalid code points",
)(archive([("features.npy", FEATURES), ("labels.npy", LABELS), ("names.npy", npy((3,), "<U1", b"\xff" * 12))]))
hostile("npz", "a directory of 40 MB", npz, "DataError", "its zip directory has")(
    lambda at: (at / "a.npz").write_bytes(
        b"PK\x03\x04" + bytes(40_000_000) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 39_000_000, 1000, 0)
    )
)

# ---- CSV

hostile("CSV", "a field of 1 MB", table, "DataError", "cannot be read as CSV")(
    text_file("a.csv", f'who,x,label\n"{"a" * 10**6}",1,0\n')
)
hostile("CSV", "200,000 columns", table, "DataError", "at most 100,000")(
    text_file("a.csv", ",".join(f"c{i}" for i in range(200_000)) + "\n")
)
hostile("CSV", "a duplicate column", table, "DataError", "'x' is a duplicate")(text_file("a.csv", "who,x,x,label\n"))
hostile("CSV", "a file of 10 TB", table, "DataError", "bytes; the limit is")(sparse("a.csv", 10**13))
hostile("CSV", "a record id of 100 kB", table, "DataError", "100,000 characters")(
    text_file("a.csv", f"who,x,label\n{'a' * 10**5},1,0\nb,1,1\n")
)
hostile("CSV", "10,000 columns, none of which the options name", table, "ConfigError", "has no column")(
    text_file("a.csv", ",".join(f"c{i}" for i in range(10_000)) + "\n")
)

# ---- IDX


def idx_files(images: bytes, suffix: str = "") -> Callable[[Path], object]:
    labels = struct.pack(">HBBI", 0, 8, 1, 3) + bytes(3)

    def write(at: Path) -> None:
        for part in ("train", "t10k"):
            (at / f"{part}-images-idx3-ubyte{suffix}").write_bytes(images)
            (at / f"{part}-labels-idx1-ubyte").write_bytes(labels)

    return write


def _gzip_bomb() -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, 300, 1024, 1024))
        for _ in range(300):
            file.write(bytes(2**20))
    return out.getvalue()


WIDE = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)
hostile("IDX", "a header that declares 10^28 bytes", idx, "DataError", "has 10 bytes of values")(
    idx_files(WIDE + bytes(10))
)
hostile("IDX", "the same, in gzip", idx, "DataError", "bytes; the limit is")(
    idx_files(gzip.compress(WIDE + bytes(10)), ".gz")
)
hostile("IDX", "gzip of 300 kB that expands to 300 MiB", idx, "DataError", "expands to .* the limit is")(
    lambda at: idx_files(_gzip_bomb(), ".gz")(at)
)
hostile("IDX", "gzip of 64 MiB behind a header of 3 images", idx, "DataError", "more bytes of values")(
    lambda at: idx_files(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 3, 4, 4) + bytes(2**26), 1), ".gz")(at)
)
hostile("IDX", "255 dimensions", idx, "DataError", "255 dimensions")(
    idx_files(b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"a")
)
hostile("IDX", "dimensions 0 x 4 G x 4 G x 4 G", idx, "DataError", "shape|wanted")(
    idx_files(struct.pack(">HBB4I", 0, 8, 4, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1))
)

# ---- CIFAR


def _cifar(at: Path) -> None:
    (at / "batches.meta.txt").write_text("".join(f"c{i}\n" for i in range(10)))
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (at / name).write_bytes(bytes(3073))


hostile("CIFAR", "a batch of 10 TB", cifar, "DataError", "bytes; the limit is")(
    lambda at: (_cifar(at), sparse("data_batch_3.bin", 10**13)(at))
)
hostile("CIFAR", "class names of 1 TB", cifar, "DataError", "bytes; the limit is")(
    lambda at: (_cifar(at), sparse("batches.meta.txt", 10**12)(at))
)

# ---- images


def _png(width: int, height: int) -> bytes:
    """A PNG that declares its size and holds ten bytes of pixels."""
    chunks = (b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(10)), b"IEND")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def images(data: bytes) -> Callable[[Path], object]:
    def write(at: Path) -> None:
        for part in ("train", "test"):
            (at / f"{part}-0.webp").write_bytes(data)
        np.savez(at / "labels.npz", train_labels=[0], test_labels=[0], class_names=["a"])

    return write


hostile(
    "image", "2,800 x 50,000 pixels in 100 bytes", mosaic, "DataError", "expands to 420,000,000 bytes; the limit is"
)(images(_png(2800, 50_000)))
hostile("image", "60,000 x 60,000 pixels in 100 bytes", mosaic, "DataError", "more pixels than are read")(
    images(_png(60_000, 60_000))
)
hostile("image", "PostScript named `.webp`", mosaic, "DataError", "is not a complete image file")(
    images(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(made) (w) file closefile\n%%EOF\n")
)

# ---- safetensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], object]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    whole = struct.pack("<Q", len(text) if length is None else length) + text + data
    return lambda at: (at / "a.safetensors").write_bytes(whole)


def entry(shape: Any, begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


hostile("safetensors", "a header of 2^63 bytes", tensors, "FileError", "not a complete safetensors file")(
    safetensors({}, length=2**63)
)
hostile("safetensors", "tensors that overlap", tensors, "FileError", "offsets overlap")(
    safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24))
)
hostile("safetensors", "a gap between tensors", tensors, "FileError", "leave a gap")(
    safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))
)
hostile("safetensors", "a type that no network has (F8)", tensors, "FileError", "'F8_E4M3' are not read")(
    safetensors({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4))
)
hostile("safetensors", "a shape whose product overflows", tensors, "FileError", "does not take the bytes")(
    safetensors({"a": entry([2**32, 2**32], 0, 16)}, bytes(16))
)
hostile("safetensors", "300 dimensions", tensors, "FileError", "at most 16")(
    safetensors({"a": entry([1] * 300, 0, 4)}, bytes(4))
)
hostile("safetensors", "a name twice", tensors, "FileError", "duplicate key 'a'")(
    safetensors(b'{"a": %s, "a": %s}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2), bytes(4))
)
hostile("safetensors", "a header nested 100,000 deep", tensors, "FileError", "nested deeper than 100")(
    safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
)
hostile("safetensors", "metadata nested 100,000 deep", tensors, "FileError", "nested deeper than 100")(
    safetensors({"__metadata__": {"expunge": "[" * 100_000 + "]" * 100_000}})
)
hostile("safetensors", "metadata with a duplicate key", tensors, "FileError", "duplicate key")(
    safetensors({"__metadata__": {"expunge": '{"kind": "a", "kind": "b"}'}})
)
hostile(
    "safetensors",
    "a second name of a tensor that is not there",
    tensors,
    "FileError",
    "metadata that expunge did not write",
)(safetensors({"__metadata__": {"expunge": '{"aliases": {"a": "b"}}'}}))
hostile("safetensors", "a file of 10 TB", tensors, "FileError", "bytes; the limit is")(
    sparse("a.safetensors", 10**13, struct.pack("<Q", 2) + b"{}")
)
hostile("safetensors", "a pipe in the place of the file", tensors, "FileError", "it is a pipe")(pipe("a.safetensors"))
hostile("safetensors", "a pickle", tensors, "FileError", "is a pickle")(
    lambda at: (at / "a.safetensors").write_bytes(pickle.dumps([1]))
)


def patches(at: Path) -> object:
    from expunge.patches.certificate import load_patches

    return load_patches(at / "a.safetensors")


def network(at: Path) -> object:
    from expunge.patches.certificate import load_network

    return load_network(at / "made")


hostile("safetensors", "a patch set without settings", patches, "FileError", "was not written by expunge")(
    safetensors({"target": entry([1], 0, 4)}, bytes(4))
)


def _network(at: Path) -> None:
    text_file("made/network.json", '{"kind": "expunge.network", "schema_version": 3, "operations": [3]}')(at)
    safetensors({})(at)
    (at / "a.safetensors").rename(at / "made/network.safetensors")


hostile("JSON", "a network whose operations are numbers", network, "FileError", "was not written by expunge")(_network)


def table_lines() -> list[str]:
    """The rows of the table in SECURITY.md."""
    return [f"| {case.format} | {case.name} | `{case.error}` |" for case in CASES]
