"""Objects between the processes of one run: through a pipe, with large arrays as files that the receiver maps.

Each process maps the same file, so the records are in memory once, however many processes there are. The bytes come
from the process that started the receiver, through a pipe that nobody else has: no file of a user is ever unpickled.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import ConfigError

#: Arrays of at least this many bytes become files.
LARGE = 1 << 20
#: The name under which a receiver imports the script that the sender runs.
SCRIPT = "__expunge_main__"


def pack(value: object, folder: Path) -> bytes:
    """Pickle a value; its large arrays are written to `folder`, or are mapped there where they are stored already.

    Args:
        value: the value; functions and classes in it are sent by name.
        folder: a folder that only this user can read.

    Raises:
        ConfigError: something in the value cannot be sent.
    """
    stream = io.BytesIO()
    try:
        _Packer(stream, folder).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"cannot be sent to other processes: {error}",
            where="runtime.devices",
            hint="define functions and classes in a module, not inside a function; or use one process",
        ) from error
    return stream.getvalue()


def unpack(packed: bytes) -> Any:
    """Make the value of `pack` again, in another process of the same run; never call it on bytes of a file."""
    return pickle.loads(packed)


class _Packer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, folder: Path) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.folder, self.written = folder, 0

    def reducer_override(self, value: Any) -> Any:
        """Replace a large array by the file that has its values, and a name of the running script by its place."""
        if isinstance(value, type | types.FunctionType) and value.__module__ == "__main__":
            return _find_in_script, (_find_script(value), value.__qualname__)
        if not isinstance(value, np.ndarray) or value.nbytes < LARGE or value.dtype.hasobject:
            return NotImplemented
        stored = find_file(value)
        if stored is None:
            path = self.folder / f"array-{self.written}.npy"
            self.written += 1
            np.save(path, np.ascontiguousarray(value), allow_pickle=False)
            return np.load, (str(path), "r")
        path, offset = stored
        return _map, (str(path), value.dtype.str, offset, value.shape)


def _find_script(value: type | types.FunctionType) -> str:
    """The file of the running script, in which a class or function is defined."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:
        raise pickle.PicklingError(f"{value.__qualname__!r} is defined in a notebook or an interactive session")
    if "<locals>" in value.__qualname__:
        raise pickle.PicklingError(f"{value.__qualname__!r} is defined inside a function")
    return os.path.abspath(path)


def _find_in_script(path: str, name: str) -> Any:
    if SCRIPT not in sys.modules:
        module = types.ModuleType(SCRIPT)
        module.__dict__.update(runpy.run_path(path, run_name=SCRIPT))
        sys.modules[SCRIPT] = module
    found: Any = sys.modules[SCRIPT]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _map(path: str, dtype: str, offset: int, shape: tuple[int, ...]) -> Any:
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)


def find_file(array: np.ndarray[Any, Any]) -> tuple[Path, int] | None:
    """The file whose bytes are the values of a mapped array, and the offset of the first; None if there is none.

    Args:
        array: any array; an array that may differ from its file (copy on write) has none.
    """
    if not array.flags.c_contiguous:
        return None
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or not isinstance(root.base, mmap.mmap) or root.mode not in ("r", "r+", "w+"):
        return None
    path = getattr(root, "filename", None)
    if path is None or not Path(path).is_file():
        return None
    if root.mode != "r":
        root.flush()
    return Path(path), int(root.offset) + array.ctypes.data - root.ctypes.data
