"""Files that are whole or absent: written beside their place, synced, then renamed. No pickle, ever.

JSON files carry `kind` and `schema_version`; tensors are safetensors with a JSON text in their metadata.
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
from .reading.limits import TEXT_BYTES, Limit
from .reading.strict_json import parse_json
from .reading.tensor_header import check_header

if TYPE_CHECKING:
    import torch

PathLike = str | os.PathLike[str]


def _explain(error: OSError, path: Path) -> FileError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(
            "the disk is full; nothing was written",
            where=path,
            hint="free some space or choose another output directory, then run the same command again",
        )
    return FileError(f"cannot be written ({error.strerror or error})", where=path)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666))


def _beside(path: Path, create: Callable[[Path], None], mark: str = "") -> Path:
    """Create a file or directory of a new, unforeseeable name beside `path`; the umask sets who may read it."""
    while True:
        temporary = path.with_name(f".{path.name}.{mark}{os.urandom(6).hex()}")
        with contextlib.suppress(FileExistsError):
            create(temporary)
            return temporary


@contextlib.contextmanager
def staged_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds, remove it otherwise.

    The file gets the permissions that the umask of the process leaves.

    Raises:
        FileError: the disk is full or the directory cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, _create_file)
        allowed = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != allowed:  # safetensors puts a file of its own there
                temporary.chmod(allowed)
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(path: PathLike) -> Iterator[Path]:
    """Yield an empty temporary directory; it takes the place of `path` only if the block succeeds.

    A directory that is already at `path` is replaced whole. Permissions are those that the umask leaves.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, os.mkdir)
        yield temporary
        if path.is_dir() and not path.is_symlink():
            old = _beside(path, os.mkdir, "old.")
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
        raise _explain(error, path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(
    path: PathLike, kind: str, schema_version: int, body: Mapping[str, Any], *, lines: Collection[str] = ()
) -> None:
    """Write `{"kind", "schema_version", **body}` atomically, readable by people (two-space indent).

    The members of the lists that `lines` names take a line each, for files of many alike.
    """
    document = {"kind": kind, "schema_version": schema_version, **body}
    short = {key: document[key] for key in lines if document.get(key)}
    marked = {**document, **{key: f"@{key}@" for key in short}}
    text = json.dumps(marked, indent=2, allow_nan=False, default=_plain)
    for key, members in short.items():
        rows = ",\n".join("    " + json.dumps(member, allow_nan=False, default=_plain) for member in members)
        text = text.replace(f'"{key}": "@{key}@"', f'"{key}": [\n{rows}\n  ]', 1)
    write_text(path, text + "\n")


_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_file(path: PathLike, *, error: type[ExpungeError] = FileError) -> IO[bytes]:
    """Open a regular file to be read; every reader goes through here, so that none waits for a pipe or a device.

    Args:
        path: the file.
        error: class of the error.

    Raises:
        ExpungeError: (of class `error`) missing, not readable, or a directory, a pipe, a socket or a device.
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


def read_bytes(path: PathLike, limit: Limit, *, error: type[ExpungeError] = FileError) -> bytes:
    """The contents of a regular file that is not larger than a limit.

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


def read_text(path: PathLike, limit: Limit = TEXT_BYTES, *, error: type[ExpungeError] = FileError) -> str:
    """The contents of a regular UTF-8 file that is not larger than a limit; a byte order mark is skipped.

    Raises:
        ExpungeError: (of class `error`) see `read_bytes`; or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"cannot be read as UTF-8 ({problem})", where=path) from problem


def read_json(path: PathLike, kind: str, schema_version: int) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Raises:
        FileError: missing, not readable, or a named pipe, a device, a directory.
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


def write_tensors(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors as safetensors; tied tensors are stored once and joined again by `read_tensors`.

    Raises:
        FileError: the disk is full or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        source = tensor.detach()
        key = (source.data_ptr(), tuple(source.shape), source.stride(), source.dtype, str(source.device))
        if source.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        out[name] = source.to("cpu").contiguous().clone()
    text = {"expunge": json.dumps({**(metadata or {}), "aliases": aliases}, sort_keys=True, default=_plain)}
    with staged_file(path) as temporary:
        try:
            save_file(out, str(temporary), metadata=text)
        except SafetensorError as error:  # the library hides the system's error behind its own
            raise _system_error(error) from error


def _system_error(error: Exception) -> OSError:
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(str(error))
    return OSError(int(found.group(1)), os.strerror(int(found.group(1))))


def read_tensors(path: PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a safetensors file: its tensors (on the CPU) and the metadata that `write_tensors` stored.

    Raises:
        FileError: missing, truncated, or not safetensors (a pickle is named as such and never opened).
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
            f"is not a whole safetensors file ({error})",
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

    A safetensors file starts with the length of its JSON header, whose first two bytes may happen to be those of a
    pickle (640 is `80 02`); so a length that fits the file, followed by `{`, is let through.
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
