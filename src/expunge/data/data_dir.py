"""The data directory, and finding the files of a source in it; error messages list where they were searched."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from expunge.core.errors import DataError

#: Environment variable that names the data directory if no option does.
VARIABLE = "EXPUNGE_DATA"

_HINT = f"name the data directory: data.dir in a configuration, data_dir in Python, or the variable {VARIABLE}"


@dataclasses.dataclass(frozen=True)
class DataDir:
    """The data directory of one call of `load_records`.

    Attributes:
        source: name of the source, for messages.
        directory: the data directory, or None if none was given.
    """

    source: str
    directory: Path | None

    @classmethod
    def choose(cls, source: str, data_dir: str | os.PathLike[str] | None) -> DataDir:
        """Use the option `data_dir`, else the environment variable `EXPUNGE_DATA`, else no directory."""
        given = data_dir if data_dir is not None else os.environ.get(VARIABLE) or None
        return cls(source, None if given is None else Path(given).expanduser())

    def require(self) -> Path:
        """Return the data directory.

        Raises:
            DataError: none was given, or it does not exist.
        """
        if self.directory is None:
            raise DataError(f"the source {self.source!r} reads files, and no data directory was given", hint=_HINT)
        if not self.directory.is_dir():
            raise DataError(f"no such data directory (source {self.source!r})", where=self.directory, hint=_HINT)
        return self.directory

    def find_folder(self, names: Iterable[str], *, containing: Iterable[str], hint: str | None = None) -> Path:
        """Find the first folder `<data directory>/<name>` (a name may be `.`) with one of the files `containing`.

        Raises:
            DataError: there is none; the message lists the folders and the files.
        """
        base = self.require()
        folders = [base / name for name in names]
        wanted = list(containing)
        for folder in folders:
            if any((folder / name).is_file() for name in wanted):
                return folder
        raise DataError(
            f"found none of {', '.join(wanted)} (source {self.source!r})",
            where=", ".join(str(p) for p in folders),
            hint=hint or _HINT,
        )

    def find_file(self, path: str | os.PathLike[str]) -> Path:
        """Find a file by its path: absolute, relative to the current directory, or relative to the data directory.

        Raises:
            DataError: there is none; the message lists the paths that were tried.
        """
        return self._find(path, Path.is_file, "file")

    def find_directory(self, path: str | os.PathLike[str]) -> Path:
        """Find a folder by its path, as `find_file` finds a file.

        Raises:
            DataError: there is none; the message lists the paths that were tried.
        """
        return self._find(path, Path.is_dir, "folder")

    def find_path(self, path: str | os.PathLike[str]) -> Path:
        """Find a file or folder by its path, as `find_file` finds a file.

        Raises:
            DataError: there is none; the message lists the paths that were tried.
        """
        return self._find(path, lambda found: found.is_file() or found.is_dir(), "file or folder")

    def _find(self, path: str | os.PathLike[str], exists: Callable[[Path], bool], what: str) -> Path:
        given = Path(path).expanduser()
        tried = [given] if self.directory is None or given.is_absolute() else [given, self.directory / given]
        for candidate in tried:
            if exists(candidate):
                return candidate
        hint = _HINT if self.directory is None else f"the data directory is {self.directory}"
        raise DataError(
            f"no such {what} (source {self.source!r})",
            where=", ".join({os.path.abspath(path): str(path) for path in tried}.values()),
            hint=None if given.is_absolute() else f"looked for in the current directory, {os.getcwd()}; {hint}",
        )


def require_files(folder: Path, names: Iterable[str], hint: str) -> list[Path]:
    """Return the paths `folder/name`, all of which must be files.

    Raises:
        DataError: one is missing.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise DataError("no such file", where=path, hint=hint)
    return paths
