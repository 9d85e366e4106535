"""The user's list of packages that files may name: `$XDG_CONFIG_HOME/expunge/trust`, else `~/.config/expunge/trust`."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from expunge.core.errors import ConfigError, FileError, TrustError
from expunge.core.files import open_file

from .gate import Trust

LARGEST = 64 * 1024


def trust_file() -> Path:
    """The path of the user's list, whether it exists or not."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    home = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return home / "expunge" / "trust"


def read_user_trust(given: Sequence[str] | None = None) -> Trust:
    """Read the packages of the user's list and add those named on the command line.

    The list has one package on each line; `#` starts a comment. Its packages are searched among the installed modules,
    never in the current directory; those of the command line also in the current directory.

    Raises:
        TrustError: another user could write the list.
        ConfigError: a name is not a package name, or is a package that is never called.
        FileError: the list cannot be read.
    """
    named = tuple(given or ())
    listed = _read(trust_file())
    return Trust(tuple(dict.fromkeys((*named, *listed))), named, command_line=True)


def _read(path: Path) -> tuple[str, ...]:
    try:
        os.stat(path)
        with open_file(path) as file:
            for place, status in ((path, os.fstat(file.fileno())), (path.parent, path.parent.stat())):
                _check_private(place, status)
            text = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror or error})", where=path) from error
    if len(text) > LARGEST:
        raise FileError(f"is longer than {LARGEST} bytes", where=path, hint="one package on each line")
    names = []
    for number, line in enumerate(text.decode("utf-8", "surrogateescape").splitlines(), 1):
        name = line.partition("#")[0].strip()
        if name:
            try:
                Trust((name,))
            except ConfigError as error:
                raise ConfigError(error.what, where=f"{path}:{number}", hint=error.hint) from error
            names.append(name)
    return tuple(names)


def _check_private(path: Path, status: os.stat_result) -> None:
    """Raise TrustError if anyone but the user and root could write the file or the directory."""
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise TrustError(
            "can be written by others, so what it lists may not be yours", where=path, hint=f"chmod go-w {path}"
        )
    if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
        raise TrustError("belongs to another user, so what it lists may not be yours", where=path)
