"""Where the files of a source are: the data directory, and messages that say what was looked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from expunge.core.errors import DataError

#: Environment variable that names the data directory where no option does.
VARIABLE = "EXPUNGE_DATA"

_HINT = f"give the data directory as an option (data_dir) or in the environment variable {VARIABLE}"


@dataclasses.dataclass(frozen=True)
class Place:
    """The data directory of one load.

    Attributes:
        source: name of the source, for messages.
        directory: the data directory, or None where nobody named one.
    """

    source: str
    directory: Path | None

    @classmethod
    def choose(cls, source: str, data_dir: str | os.PathLike[str] | None) -> Place:
        """The option `data_dir`, else `EXPUNGE_DATA`, else none."""
        given = data_dir if data_dir is not None else os.environ.get(VARIABLE) or None
        return cls(source, None if given is None else Path(given).expanduser())

    def need(self) -> Path:
        """The data directory.

        Raises:
            DataError: none was named, or it does not exist.
        """
        if self.directory is None:
            raise DataError(f"the source {self.source!r} reads files, and no data directory was named", hint=_HINT)
        if not self.directory.is_dir():
            raise DataError(f"no such data directory (source {self.source!r})", where=self.directory, hint=_HINT)
        return self.directory

    def folder(self, names: Iterable[str], *, holding: Iterable[str], hint: str | None = None) -> Path:
        """The first of `<data directory>/<name>` (a name may be `.`) that holds one of the files `holding`.

        Raises:
            DataError: none does; the message lists the places and the files.
        """
        base = self.need()
        places = [base / name for name in names]
        wanted = list(holding)
        for place in places:
            if any((place / name).is_file() for name in wanted):
                return place
        raise DataError(
            f"found none of {', '.join(wanted)} (source {self.source!r})",
            where=", ".join(str(p) for p in places),
            hint=hint or _HINT,
        )

    def file(self, path: str | os.PathLike[str]) -> Path:
        """A file that the user names: as it stands (absolute or from here), else below the data directory.

        Raises:
            DataError: there is none; the message lists where it was looked for.
        """
        given = Path(path).expanduser()
        tried = [given] if self.directory is None or given.is_absolute() else [given, self.directory / given]
        for place in tried:
            if place.is_file():
                return place
        raise DataError(
            f"no such file (source {self.source!r})",
            where=", ".join(str(p) for p in tried),
            hint=None if given.is_absolute() else _HINT,
        )


def present(folder: Path, names: Iterable[str], hint: str) -> list[Path]:
    """The paths `folder/name`, all of which must be files.

    Raises:
        DataError: one is missing.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise DataError("no such file", where=path, hint=hint)
    return paths
