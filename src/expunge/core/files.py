"""Atomic files: written under a temporary name in the same directory, synced, then renamed. Pickle is never used.

JSON files have `kind` and `schema_version`; tensors are safetensors with JSON text in their metadata.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import ExpungeError, FileError
from .hashing import _plain
from .reading.file_names import check_directory_name, check_file_name
from .reading.limits import TEXT_BYTES, ReadLimit
from .reading.run_files import RUN_FILES, check_file
from .reading.strict_json import parse_json
from .reading.tensor_header import check_header

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


def _describe_error(error: OSError, path: Path) -> FileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(
            "the disk is full; nothing was written",
            where=path,
            hint="free some space or choose another output directory, then rerun the command",
        )
    return FileError(f"cannot be written ({error.strerror or error})", where=path)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666))


def _create_beside(path: Path, create: Callable[[Path], None], mark: str = "") -> Path:
    """Create a file or directory with a new, unpredictable name beside `path`; the umask sets its permissions."""
    name = path.name.encode(errors="surrogateescape")[:200].decode(
        errors="ignore"
    )  # longer names have no room for more
    while True:
        temporary = path.with_name(f".{name}.{mark}{os.urandom(6).hex()}")
        with contextlib.suppress(FileExistsError):
            create(temporary)
            return temporary


@contextlib.contextmanager
def staged_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it otherwise.

    The umask of the process sets the permissions of the file.

    Raises:
        FileError: the disk is full or the directory cannot be written.

    Example:
        >>> with staged_file("scores.csv") as temporary:
        ...     _ = temporary.write_text("UA,12.5")
        ...     Path("scores.csv").exists()
        False
        >>> Path("scores.csv").read_text()
        'UA,12.5'
    """
    path = check_file_name(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _create_beside(path, _create_file)
        allowed = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != allowed:  # safetensors replaces the file by its own
                temporary.chmod(allowed)
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise _describe_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(path: PathLike) -> Iterator[Path]:
    """Yield an empty temporary directory; rename it to `path` if the block succeeds, remove it otherwise.

    A directory at `path` is replaced with its contents. The umask of the process sets the permissions.

    Raises:
        FileError: the disk is full or the directory cannot be written.

    Example:
        >>> with staged_directory("run") as temporary:
        ...     _ = (temporary / "a.txt").write_text("1")
        >>> [path.name for path in Path("run").iterdir()]
        ['a.txt']
    """
    path = check_directory_name(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _create_beside(path, os.mkdir)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            old = _create_beside(path, os.mkdir, "old.")
            path.replace(old)
            try:
                temporary.replace(path)
            except OSError:
                old.replace(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
        temporary = None
    except OSError as error:
        raise _describe_error(error, path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(
    path: PathLike,
    kind: str,
    schema_version: int,
    body: Mapping[str, Any],
    *,
    lines: Collection[str] = (),
    compact: bool = False,
) -> None:
    """Write `{"kind", "schema_version", **body}` atomically, indented by two spaces.

    Args:
        path: the file.
        kind: the kind of the document, e.g. `expunge.split`.
        schema_version: version of its format.
        body: further keys; JSON values, numpy numbers and arrays, sets, paths.
        lines: keys of lists whose items are written on one line each, for long lists of similar objects.
        compact: on one line instead, which takes a tenth of the time; for files that are written often.

    Raises:
        FileError: the disk is full or the file cannot be written.

    Example:
        >>> write_json("count.json", "my.count", 1, {"records": 3})
        >>> print(Path("count.json").read_text().strip())
        {
          "kind": "my.count",
          "schema_version": 1,
          "records": 3
        }
    """
    document = {"kind": kind, "schema_version": schema_version, **body}
    short = {key: document[key] for key in lines if document.get(key)}
    marked = {**document, **{key: f"@{key}@" for key in short}}
    text = json.dumps(marked, indent=None if compact else 2, allow_nan=False, default=_plain)
    for key, members in short.items():
        rows = ",\n".join("    " + json.dumps(member, allow_nan=False, default=_plain) for member in members)
        text = text.replace(f'"{key}": "@{key}@"', f'"{key}": [\n{rows}\n  ]', 1)
    write_text(path, text + "\n")


_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_file(path: PathLike, *, error: type[ExpungeError] = FileError) -> IO[bytes]:
    """Open a regular file for reading. Every reader uses this function, so none blocks on a pipe or a device.

    Args:
        path: the file.
        error: class of the error.

    Raises:
        ExpungeError: (of class `error`) the file is missing, not readable, or is a directory, pipe, socket or device.
    """
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as problem:
        raise error("no such file", where=path) from problem
    except (OSError, ValueError) as problem:  # a name with a null character is a ValueError
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"cannot be read ({reason})", where=path) from problem
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise error(f"cannot be read (it is {kind}, not a file)", where=path, hint="give the path of a regular file")
    return os.fdopen(handle, "rb")


def read_bytes(path: PathLike, limit: ReadLimit, *, error: type[ExpungeError] = FileError) -> bytes:
    """Read a regular file that is not larger than a limit.

    Raises:
        ExpungeError: (of class `error`) see `open_file`; or the file is larger.
    """
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        limit.check(size, "is", where=path, error=error)
        try:
            data = file.read(size + 1) if size else file.read(limit.value() + 1)  # files of /proc have no size
        except OSError as problem:
            raise error(f"cannot be read ({problem.strerror or problem})", where=path) from problem
    limit.check(len(data), "is", where=path, error=error)  # it may have grown
    return data


def read_text(path: PathLike, limit: ReadLimit = TEXT_BYTES, *, error: type[ExpungeError] = FileError) -> str:
    """Read a regular UTF-8 file that is not larger than a limit; a byte order mark is skipped.

    Raises:
        ExpungeError: (of class `error`) see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"cannot be read as UTF-8 ({problem})", where=path) from problem


def read_json(path: PathLike, kind: str, schema_version: int) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Args:
        path: the file.
        kind: the expected kind.
        schema_version: the expected version.

    Raises:
        FileError: the file is missing or not a regular file, is too large, is not JSON, or has another kind or version.

    Example:
        >>> write_json("count.json", "my.count", 1, {"records": 3})
        >>> read_json("count.json", "my.count", 1)["records"]
        3
    """
    path = Path(path)
    try:
        text = read_bytes(path, TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"is not JSON ({error})", where=path) from error
    document = parse_json(text, where=path, numbers=True)
    found = document.get("kind") if isinstance(document, dict) else None
    if found != kind:
        raise FileError(f"is {repr(found)[:80]}, not {kind!r}", where=path)
    version = document.get("schema_version")
    if type(version) is not int or version != schema_version:
        raise FileError(f"has schema_version {repr(version)[:80]}; this release reads {schema_version}", where=path)
    return document


def read_run_file(path: PathLike, kind: str, schema_version: int) -> dict[str, Any]:
    """Read a JSON file of a run (trained.json, outcome.json, scores.json, details.json) and check its shape.

    Raises:
        FileError: see `read_json`; or a key is missing or has a value of another type or size; the message names it.
    """
    body = read_json(path, kind, schema_version)
    shape, page = RUN_FILES[kind]
    check_file(body, shape, path, page)
    return body


def write_tensors(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors as safetensors. Tied tensors are stored once, and `read_tensors` restores them.

    Args:
        path: the file.
        tensors: tensors by name, on any device.
        metadata: JSON values, stored as text under the metadata key `expunge`.

    Raises:
        FileError: the disk is full or the file cannot be written.

    Example:
        >>> import torch
        >>> write_tensors("w.safetensors", {"a": torch.zeros(2)}, {"epoch": 3})
        >>> tensors, metadata = read_tensors("w.safetensors")
        >>> tensors["a"].tolist(), metadata
        ([0.0, 0.0], {'epoch': 3})
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.detach()
        key = (values.data_ptr(), tuple(values.shape), values.stride(), values.dtype, str(values.device))
        if values.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        out[name] = values.to("cpu").contiguous().clone()
    text = {"expunge": json.dumps({**(metadata or {}), "aliases": aliases}, sort_keys=True, default=_plain)}
    with staged_file(path) as temporary:
        try:
            save_file(out, str(temporary), metadata=text)
        except SafetensorError as error:  # it wraps the error of the system
            raise _find_system_error(error) from error


def _find_system_error(error: Exception) -> OSError:
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(str(error))
    return OSError(int(found.group(1)), os.strerror(int(found.group(1))))


def read_tensors(path: PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors (on the CPU) and the metadata that `write_tensors` stored.

    Raises:
        FileError: the file is missing, too large, truncated, or not safetensors. A pickle is refused and never opened.

    Example:
        >>> import torch
        >>> weight = torch.ones(3)
        >>> write_tensors("tied.safetensors", {"encoder.weight": weight, "decoder.weight": weight})
        >>> tensors, _ = read_tensors("tied.safetensors")
        >>> tensors["encoder.weight"] is tensors["decoder.weight"]
        True
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    refuse_pickle(path)
    with open_file(path) as opened:
        check_header(opened, path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get("expunge", "{}")
    except SafetensorError as error:
        raise FileError(
            f"is not a complete safetensors file ({error})",
            where=path,
            hint="it is truncated or of another format; copy it again or export it with safetensors.torch.save_file",
        ) from error
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror or error})", where=path) from error
    metadata = parse_json(text, where=f"{path}: metadata")
    try:
        for name, original in metadata.pop("aliases", {}).items():
            tensors[name] = tensors[original]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise FileError("has metadata that expunge did not write", where=path, hint="copy the file again") from error
    return tensors, metadata


def refuse_pickle(path: PathLike) -> None:
    """Raise FileError if the file is missing or starts like a pickle or a `torch.save` archive; it is never loaded.

    A safetensors file starts with the length of its JSON header, whose first two bytes can be those of a pickle (640 is
    `80 02`). So a file is accepted if it starts with a length that fits it, followed by `{`.
    """
    path = Path(path)
    with open_file(path) as file:
        head = file.read(9)
        size = os.fstat(file.fileno()).st_size
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise FileError(
            "is a pickle (or a torch.save archive), which can run code when opened; expunge reads safetensors only",
            where=path,
            hint="convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')",
        )
