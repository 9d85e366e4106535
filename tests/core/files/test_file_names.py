"""Paths of files to write: what has no name, is a directory, or ends like another format is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from expunge.core.errors import FileError
from expunge.core.files import staged_directory, staged_file, write_text
from expunge.core.reading.file_names import FORMATS, add_to_name, check_directory_name, check_file_name, check_format
from expunge.training import Context


@pytest.mark.parametrize("path", [".", "..", "/", "", "here/..", "here"])
def test_a_directory_in_the_place_of_a_file(path: str, workplace: Path) -> None:
    Path("here").mkdir()
    for refuse in (check_file_name, lambda p: check_format(p, "HTML"), lambda p: add_to_name(p, ".x")):
        with pytest.raises(FileError, match="is a directory, not a file"):
            refuse(path)
    with pytest.raises(FileError, match="is a directory"), staged_file(path):
        pass
    with pytest.raises(FileError, match="is a directory"):
        write_text(path, "text")
    assert os.listdir() == ["here"]


@pytest.mark.parametrize("path", [".", "..", "/", "here/.."])
def test_a_directory_without_a_name_is_not_replaced(path: str, workplace: Path) -> None:
    Path("here").mkdir()
    with pytest.raises(FileError, match="cannot be replaced as a whole"), staged_directory(path):
        pass
    with pytest.raises(FileError):
        check_directory_name(path)
    assert os.listdir() == ["here"]


def test_a_checkpoint_is_a_file(digits: object, workplace: Path) -> None:
    with pytest.raises(FileError, match=r"^\.: is a directory, not a file"):
        Context(digits, checkpoint=Path("."))  # type: ignore[arg-type]
    assert Context(digits, checkpoint="a.ckpt").for_part("x").checkpoint == Path("a.ckpt.x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "refused", "better"),
    [
        ("HTML", "r.pdf", "r.html"), ("HTML", "out/r.PNG", "r.html"), ("HTML", "r.json", "r.html"),
        ("safetensors", "w.pt", "w.safetensors"), ("safetensors", "w.v1.bin", "w.v1.safetensors"),
        ("safetensors", "w.onnx", "w.safetensors"), ("safetensors", "w.pth", "w.safetensors"),
        ("SVG", "f.png", "f.svg"), ("JSON", "s.csv", "s.json"), ("JSON", "s.html", "s.json"),
    ],
)  # fmt: skip
def test_a_name_of_another_format(format: str, refused: str, better: str) -> None:
    with pytest.raises(FileError, match=f"written as {format}, not as") as caught:
        check_format(refused, format)
    assert caught.value.hint == f"name it {better}"


@pytest.mark.parametrize("format", FORMATS)
def test_other_names_are_allowed(format: str) -> None:
    for name in ("name", "name.v2", "name.backup", "résumé.2026", *(f"name{end}" for end in FORMATS[format])):
        assert check_format(name, format) == Path(name)
    assert check_format("a" * 300, format).name == "a" * 300
