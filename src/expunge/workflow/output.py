"""Directories of results: check what they may replace, and write them completely or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError, FileError
from expunge.core.files import PathLike, read_run_file, staged_directory
from expunge.core.reading.file_names import check_directory_name
from expunge.core.show import repr_fields
from expunge.core.split import PLANTINGS
from expunge.core.trust import trusting

if TYPE_CHECKING:
    from expunge.experiments.config.run_config import RunConfig

#: Files in a directory of results; it may also contain the directory `state`.
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
#: Sections that determine a request, if the files that they name are the same.
_OF_REQUEST = ("data", "split", "forget", "seed")


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """The results of a command.

    Attributes:
        directory: the directory.
        files: names of the files in it, sorted.
    """

    directory: Path
    files: tuple[str, ...]

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "files": list(self.files)}


def check_output(output: PathLike, inputs: Iterable[str] = ()) -> None:
    """Check that results can be written to `output`: it is new, empty, or contains only an earlier result.

    Args:
        output: the directory; results replace it as a whole.
        inputs: files that the run reads; none of them may be in it.

    Raises:
        FileError: a file of the user would be lost, or the directory cannot be created.
    """
    path = check_directory_name(output)
    check_name(path)
    for name in inputs:
        if path.resolve() in Path(name).resolve().parents:
            raise FileError(
                f"contains {Path(name).name}, which this run reads; its results would replace it",
                where=path,
                hint="choose another output directory (--output)",
            )
    if path.exists():
        reason = _find_foreign_file(path)
        if reason is not None:
            raise FileError(
                f"exists and is not the result of an earlier run ({reason})",
                where=path,
                hint="choose another output directory (--output), or empty this one",
            )
    check_writable(path)


def check_name(path: Path) -> None:
    """Raise FileError if the system cannot have a file or directory of this name: it is too long, or has a null."""
    try:
        os.lstat(path.absolute())
    except (FileNotFoundError, NotADirectoryError):
        longest = os.pathconf("/", "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        for part in path.absolute().parts:  # a missing parent hides that a later part is too long
            size = len(os.fsencode(part))
            if size > longest:
                raise FileError(
                    f"cannot be created: a name has {size} bytes, and the system allows {longest}",
                    where=f"{str(path)[:80]}...",
                    hint="choose a shorter name",
                ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(
            f"cannot be created ({reason})", where=f"{str(path)[:80]}...", hint="choose another name"
        ) from error


def check_writable(path: Path) -> None:
    """Raise FileError unless a file or directory, and its missing parents, can be created at `path`."""
    check_name(path)
    parent = next(at for at in (path.absolute().parent, *path.absolute().parent.parents) if at.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FileError("cannot be created: its directory is not writable", where=path, hint=f"see {parent}")


def _find_foreign_file(path: Path) -> str | None:
    """Why `path` was not written by expunge, or None."""
    if not path.is_dir():
        return "it is a file"
    entries = sorted(entry.name for entry in path.iterdir())
    for name in entries:
        if name == "state" and (path / name).is_dir():
            other = [entry.name for entry in (path / name).iterdir() if entry.suffix != ".safetensors"]
            if other:
                return f"it contains state/{min(other)}"
        elif name not in FILES:
            return f"it contains {name}"
    if entries and "trained.json" not in entries:
        return "it has no trained.json"
    return None


def list_input_files(config: RunConfig) -> list[str]:
    """List the files that a configuration names."""
    forget = {} if config.forget is None else config.forget.model_dump()
    start = None if config.model.initial is None else config.model.initial.file
    named = [config.split.file, config.model.weights, config.model.mask, start, forget.get("file"), forget.get("hold")]
    return [name for name in named if isinstance(name, str) and name != "zeros"]


def write_results_directory(
    directories: Iterable[Path], output: PathLike, add_files: Callable[[Path], None] | None = None
) -> RunPaths:
    """Copy the files of finished stages into one directory, which is written completely or not at all.

    Args:
        directories: of the stages.
        output: the directory; see `check_output`.
        add_files: called with a temporary directory before it is renamed to `output`, to add files to it.

    Raises:
        FileError: see `check_output`; or the disk is full.
    """
    path = Path(output)
    check_output(path)
    with staged_directory(path) as staged:
        for directory in directories:
            _copy_files(directory, staged)
        if add_files is not None:
            add_files(staged)
    files = sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file())
    return RunPaths(path, tuple(files))


def _copy_files(directory: Path, to: Path) -> None:
    """Copy the files of a stage except entry.json; the first error is raised unchanged (copytree would wrap it)."""
    for path in sorted(directory.rglob("*")):
        target = to / path.relative_to(directory)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif path.name != "entry.json":
            shutil.copyfile(path, target)


@dataclasses.dataclass(frozen=True)
class EarlierResult:
    """What an output directory has from an earlier `forget`.

    Attributes:
        directory: the directory.
        method: the registered name.
        request: the hash of the request; empty: not recorded.
        weights: the hash of the weights.
        date: when it was written, by its file.
        configuration: of that run; empty: not recorded.
    """

    directory: Path
    method: str
    request: str
    weights: str
    date: str
    configuration: Mapping[str, Any]

    __repr__ = repr_fields

    def describe(self) -> str:
        """Method, beginning of the hash of the request, and date."""
        return f"{self.method}, request {self.request[:12] or 'not recorded'}, {self.date}"

    def refuse(self, what: str) -> None:
        """Raise FileError: the directory has the result of another method or request.

        Args:
            what: `method` or `request`.
        """
        raise FileError(
            f"has the result of another {what} ({self.describe()})",
            where=self.directory,
            hint="choose another directory (--output), or replace that result (--overwrite); finished stages are kept",
        )


def find_earlier(output: PathLike) -> EarlierResult | None:
    """Read what an output directory has from an earlier `forget`; None: nothing that can be read.

    Args:
        output: the directory.

    >>> from expunge.workflow.output import find_earlier
    >>> find_earlier("nowhere") is None
    True
    """
    path = Path(output) / "outcome.json"
    with contextlib.suppress(ExpungeError, OSError):
        body = read_run_file(path, "expunge.outcome", 2)
        written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).date().isoformat()
        return EarlierResult(
            Path(output),
            str(body["method"]["name"]),
            str(body["request"].get("hash", "")),
            str(body.get("hashes", {}).get("weights", "")),
            written,
            body.get("configuration") or {},
        )
    return None


def check_earlier(earlier: EarlierResult, config: RunConfig) -> None:
    """Raise FileError if an earlier result is of another method or request, as far as this is known before the run.

    Args:
        earlier: see `find_earlier`.
        config: has the sections `forget` and `method`.
    """
    assert config.method is not None
    assert config.forget is not None
    named = str((earlier.configuration.get("method") or {}).get("name", earlier.method))
    if ":" not in named + config.method.name and named.casefold() != config.method.name.casefold():
        earlier.refuse("method")
    sections = config.model_dump(mode="json")
    if all(earlier.configuration.get(name) == sections[name] for name in _OF_REQUEST):
        return
    from expunge.data.selection import RANKED

    from .inputs import read_records, read_request, read_split

    if config.forget.by in (*RANKED, *PLANTINGS) or config.forget.ranked is not None:  # known after training
        return
    found = ""
    with contextlib.suppress(ExpungeError), trusting(config.trust):  # the checks of the run report it
        records = read_records(config)
        found = read_request(config, records, read_split(config, records)).hash
    if found and earlier.request and found != earlier.request:
        earlier.refuse("request")


def check_replaced(earlier: EarlierResult, outcome: Mapping[str, Any], *, overwrite: bool) -> str:
    """Return what is said of a result that is replaced; empty if the new one is the same.

    Args:
        earlier: see `find_earlier`.
        outcome: the body of the new outcome.json.
        overwrite: whether it may be that of another method or request.

    Raises:
        FileError: it is that of another method or request, and may not be replaced.
    """
    other_method = outcome["method"]["name"] != earlier.method
    other_request = bool(earlier.request) and outcome["request"].get("hash") != earlier.request
    if (other_method or other_request) and not overwrite:
        earlier.refuse("method" if other_method else "request")
    if not (other_method or other_request) and outcome.get("hashes", {}).get("weights") == earlier.weights:
        return ""
    return earlier.describe()
