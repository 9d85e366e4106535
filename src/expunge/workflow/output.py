"""Directories of results: what may be written over, and writing them whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import FileError
from expunge.core.files import PathLike, staged_directory

if TYPE_CHECKING:
    from expunge.experiments.config.run_config import RunConfig

#: What a directory of results holds, beside the directory `state`.
FILES = (
    "details.json",
    "mask.safetensors",
    "model.safetensors",
    "outcome.json",
    "report.html",
    "scores.json",
    "split.json",
    "trained.json",
)


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where the results of a command lie.

    Attributes:
        directory: the directory.
        files: names of the files in it, sorted.
    """

    directory: Path
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "files": list(self.files)}


def check_output(output: PathLike, inputs: Iterable[str] = ()) -> None:
    """Raise unless results can be written to `output`: it is new, empty, or holds an earlier result and nothing else.

    Args:
        output: the directory, which results replace whole.
        inputs: files that the run reads; none of them may lie in it.

    Raises:
        FileError: something of the user's would be lost, or the directory cannot be made.
    """
    path = Path(output)
    for name in inputs:
        if path.resolve() in Path(name).resolve().parents:
            raise FileError(
                f"holds {Path(name).name}, which this run reads; its results would replace it",
                where=path,
                hint="choose another output directory (--output)",
            )
    if path.exists():
        strange = _strange(path)
        if strange is not None:
            raise FileError(
                f"is there already, and is not the result of an earlier run ({strange})",
                where=path,
                hint="choose another output directory (--output), or empty this one",
            )
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise FileError unless a file or directory can be made at `path`, missing directories above it included."""
    above = next(at for at in (path.absolute().parent, *path.absolute().parent.parents) if at.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise FileError("cannot be made: no directory may be written there", where=path, hint=f"see {above}")


def _strange(path: Path) -> str | None:
    """What is in `path` that no command of expunge writes, or None."""
    if not path.is_dir():
        return "it is a file"
    entries = sorted(entry.name for entry in path.iterdir())
    for name in entries:
        if name == "state" and (path / name).is_dir():
            other = [entry.name for entry in (path / name).iterdir() if entry.suffix != ".safetensors"]
            if other:
                return f"it holds state/{min(other)}"
        elif name not in FILES:
            return f"it holds {name}"
    if entries and "trained.json" not in entries:
        return "it holds no trained.json"
    return None


def input_files(config: RunConfig) -> list[str]:
    """The files that a configuration names."""
    forget = {} if config.forget is None else config.forget.model_dump()
    named = [config.split.file, config.model.weights, config.model.mask, forget.get("file"), forget.get("hold")]
    return [name for name in named if isinstance(name, str) and name != "zeros"]


def export(directories: Iterable[Path], output: PathLike, finish: Callable[[Path], None] | None = None) -> RunPaths:
    """Copy the files of finished stages into one directory, which appears whole.

    Args:
        directories: of the stages.
        output: the directory; see `check_output`.
        finish: called with the directory before it takes its place, to add to it.

    Raises:
        FileError: see `check_output`; or the disk is full.
    """
    path = Path(output)
    check_output(path)
    with staged_directory(path) as at:
        for directory in directories:
            _copy(directory, at)
        if finish is not None:
            finish(at)
    files = sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())
    return RunPaths(path, tuple(files))


def _copy(directory: Path, to: Path) -> None:
    """Copy the files of a stage, but its entry.json; the first error is raised as it is (copytree hides it)."""
    for path in sorted(directory.rglob("*")):
        place = to / path.relative_to(directory)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif path.name != "entry.json":
            shutil.copyfile(path, place)
