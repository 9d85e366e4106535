"""Files are whole or absent, whatever happens on the way; pickles are refused; damage is named."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expunge.core import files
from expunge.core.errors import FileError
from expunge.core.files import (
    read_json,
    read_tensors,
    refuse_pickle,
    staged_directory,
    staged_file,
    write_json,
    write_tensors,
    write_text,
)
from expunge.core.hashing import hash_tensor


def left(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


# ---- whole or absent


def half_file(path: Path, error: type[BaseException]) -> None:
    with staged_file(path) as temporary:
        temporary.write_text("half")
        raise error


def half_directory(path: Path, error: type[BaseException]) -> None:
    with staged_directory(path) as temporary:
        (temporary / "y").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    for half in (half_file, half_directory):
        with pytest.raises(error):
            half(tmp_path / "a", error)
    assert left(tmp_path) == []


def test_a_failing_block_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with staged_directory(tmp_path / "d") as d:
        (d / "x").write_text("old")
    with pytest.raises(ValueError):
        half_file(tmp_path / "a.txt", ValueError)
    with pytest.raises(ValueError):
        half_directory(tmp_path / "d", ValueError)
    assert left(tmp_path) == ["a.txt", "d"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert left(tmp_path / "d") == ["x"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("x", "y"):
        with staged_directory(tmp_path / "deep" / "d") as d:
            assert left(d) == []
            (d / name).write_text(name)
    assert left(tmp_path / "deep" / "d") == ["y"]
    assert left(tmp_path / "deep") == ["d"]


def test_a_failing_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged_directory(tmp_path / "d") as d:
        (d / "x").write_text("old")
    real, calls = Path.replace, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(FileError, match="Input/output error"), staged_directory(tmp_path / "d") as d:
        (d / "x").write_text("new")
    assert left(tmp_path) == ["d"]
    assert (tmp_path / "d" / "x").read_text() == "old"


def write_some(path: Path) -> None:
    write_tensors(path, {"a": torch.rand(64, 1024)})


def write_much_text(path: Path) -> None:
    write_json(path, "k", 1, {"text": "x" * 200_000})


@pytest.mark.parametrize("write", [write_some, write_much_text])
def test_full_disk_at_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileError, match="the disk is full; nothing was written") as caught:
        write(tmp_path / "a")
    assert caught.value.hint
    assert left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_full_disk_while_writing_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FileError, match="disk is full"):
        write_json(tmp_path / "a.json", "k", 1, {})
    assert left(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a tiny file system")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tiny file system: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("write", [write_some, write_much_text])
def test_really_full_disk(tiny_disk: Path, write: Any) -> None:
    write_text(tiny_disk / "a", "old")
    with pytest.raises(FileError, match="the disk is full; nothing was written"):
        write(tiny_disk / "a")
    with pytest.raises(FileError, match="the disk is full"), staged_directory(tiny_disk / "d") as d:
        write(d / "a")
    assert left(tiny_disk) == ["a"]
    assert (tiny_disk / "a").read_text() == "old"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir" / "full").mkdir(parents=True)
    for path in (tmp_path / "file" / "below", tmp_path / "dir", tmp_path / ("n" * 300)):
        for write in (write_some, write_much_text):
            with pytest.raises(FileError) as caught:
                write(path)
            assert str(path) in str(caught.value)
    assert left(tmp_path) == ["dir", "file"]


# ---- JSON


def test_json_round_trip(tmp_path: Path) -> None:
    body = {"n": np.int64(3), "v": np.arange(3), "p": Path("x"), "t": "é", "f": 0.1 + 0.2}
    write_json(tmp_path / "a.json", "k", 2, body)
    expected = {"kind": "k", "schema_version": 2, "n": 3, "v": [0, 1, 2], "p": "x", "t": "é", "f": 0.1 + 0.2}
    assert read_json(tmp_path / "a.json", "k", 2) == expected
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", "k", 1, {"x": float("nan")})
    assert left(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "is None, not 'k'"),
        (b'{"kind": "other"}', "is 'other', not 'k'"),
        (b'{"kind": "k", "schema_version": 9}', "schema_version 9; this release reads 1"),
        (b'{"kind": "k"}', "schema_version None"),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FileError, match=r"a\.json") as caught:
        read_json(tmp_path / "a.json", "k", 1)
    assert message in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_tensors, refuse_pickle, lambda p: read_json(p, "k", 1)):
        with pytest.raises(FileError, match="no such file"):
            read(tmp_path / "none")
        with pytest.raises(FileError, match="cannot be read"):
            read(tmp_path)


# ---- tensors

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def test_tensors_round_trip_bit_for_bit(tmp_path: Path) -> None:
    tensors = {str(d): torch.tensor([[0, 1], [1, 0]]).to(d) for d in DTYPES}
    tensors["odd"] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45])
    tensors["scalar"], tensors["empty"] = torch.tensor(3), torch.zeros(0, 4)
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["last"] = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors["grad"] = torch.ones(2, requires_grad=True)
    write_tensors(tmp_path / "t", tensors, {"note": "x", "n": 1})
    found, metadata = read_tensors(tmp_path / "t")
    assert metadata == {"note": "x", "n": 1}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert hash_tensor(found[name]) == hash_tensor(tensor), name


def test_tied_and_overlapping_tensors(tmp_path: Path) -> None:
    base = torch.rand(4, 4)
    tensors = {"a": base, "b": base, "first_row": base[0], "turned": base.t(), "other": base.clone()}
    write_tensors(tmp_path / "t", tensors)
    found, metadata = read_tensors(tmp_path / "t")
    assert metadata == {}
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert len({found[n].data_ptr() for n in ("a", "first_row", "turned", "other")}) == 4
    assert (tmp_path / "t").stat().st_size < 4 * 16 * 4 + 800


def test_truncated_anywhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.rand(8, 8)}, {"x": 1})
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"t\.safetensors.*is not a complete safetensors file"):
            read_tensors(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(FileError):
        read_tensors(path)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"aliases": 3}', '{"aliases": {"b": "gone"}}', '{"aliases": [1]}'])
def test_damaged_metadata_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.zeros(1)}, str(tmp_path / "t"), metadata={"expunge": text})
    with pytest.raises(FileError, match="metadata"):
        read_tensors(tmp_path / "t")


def test_files_of_others_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(tmp_path / "t"))
    assert read_tensors(tmp_path / "t")[1] == {}
    save_file({"a": torch.zeros(1)}, str(tmp_path / "t"), metadata={"format": "pt"})
    assert read_tensors(tmp_path / "t")[1] == {}


class Bomb:
    """Would leave a mark if anybody opened it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_never_opened(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "p").write_bytes(pickle.dumps({"w": Bomb(tmp_path / "mark")}, protocol=protocol))
    with pytest.raises(FileError, match="pickle" if protocol >= 2 else "not a complete safetensors"):
        read_tensors(tmp_path / "p")
    assert not (tmp_path / "mark").exists()


def test_torch_archives_are_refused_with_a_way_out(tmp_path: Path) -> None:
    for old in (True, False):
        torch.save({"w": torch.zeros(2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=not old)
        with pytest.raises(FileError, match="is a pickle") as caught:
            read_tensors(tmp_path / "m.pt")
        assert "weights_only=True" in str(caught.value.hint)
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(2))
    (tmp_path / "m.npz").write_bytes(buffer.getvalue())
    with pytest.raises(FileError):
        read_tensors(tmp_path / "m.npz")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19280, 66176])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """The first bytes of a safetensors file are a length: 640 is `80 02`, as in a pickle; 19280 is `PK`."""
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode().ljust(length)
    path = tmp_path / "t"
    path.write_bytes(length.to_bytes(8, "little") + text + b"\x00\x00\x80\x3f")
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")
    assert read_tensors(path)[0]["a"].tolist() == [1.0]
