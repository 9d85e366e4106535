"""The sources by name: one registered function each, which turns files into records."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, DataError, ExpungeError, unknown_name_hint
from expunge.core.hashing import hash_json

from .data_dir import Place
from .records import Records

Loader = Callable[..., Records]

#: What arrays of other shapes and types than a source expects make numpy raise.
_MISFIT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)
_OWN = "expunge.data.sources."


@dataclasses.dataclass(frozen=True)
class Source:
    """One source.

    Attributes:
        name: its name.
        load: `load(place, **options) -> Records`.
        files: `files(place, **options)` gives the files that `load` reads (may be more than exist in other sources).
        package: distribution that ships the data, for sources that read no file.
    """

    name: str
    load: Loader
    files: Callable[..., Iterable[Path]] | None = None
    package: str | None = None

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options of the source by name (the parameters of `load` after the place)."""
        parameters = list(inspect.signature(self.load).parameters.values())[1:]
        return {p.name: p for p in parameters}

    @property
    def summary(self) -> str:
        """First line of the loader's description."""
        return (inspect.getdoc(self.load) or "").partition("\n")[0]

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for an unknown option or a required one that is missing."""
        known = self.options
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"the source {self.name!r} has no option {name!r}", hint=unknown_name_hint(name, known)
                )
        for name, parameter in known.items():
            if parameter.default is inspect.Parameter.empty and name not in options:
                raise ConfigError(
                    f"the source {self.name!r} needs the option {name!r}", hint=f"options: {', '.join(known)}"
                )


_SOURCES: dict[str, Source] = {}


def register_source(
    name: str, *, files: Callable[..., Iterable[Path]] | None = None, package: str | None = None
) -> Callable[[Loader], Loader]:
    """Register `load(place, **options) -> Records` as a source.

    Args:
        name: the name that users give.
        files: function of the same arguments that lists the files behind the records (for the fingerprint).
        package: name of the distribution that ships the data, for sources without files.
    """

    def decorate(load: Loader) -> Loader:
        if name in _SOURCES and _SOURCES[name].load.__module__ != load.__module__:
            raise ConfigError(f"a source named {name!r} is registered already")
        _SOURCES[name] = Source(name, load, files, package)
        return load

    return decorate


def get_source(name: str) -> Source:
    """The source of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _SOURCES:
        raise ConfigError(f"unknown data source {name!r}", hint=unknown_name_hint(str(name), _SOURCES))
    return _SOURCES[name]


def source_names() -> list[str]:
    """Names of all sources, sorted."""
    return sorted(_SOURCES)


def load_records(source: str, *, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Records:
    """Load the records of a source.

    Args:
        source: a name of `source_names()`.
        data_dir: the data directory; without it the environment variable `EXPUNGE_DATA` names it.
        options: options of the source (docs/data.md).

    Raises:
        ConfigError: unknown source or option.
        DataError: files are missing, damaged, or hold values that no method can use.
    """
    entry = get_source(source)
    entry.check(options)
    try:
        return entry.load(Place.choose(source, data_dir), **options)
    except ExpungeError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=error.filename or source) from error
    except _MISFIT as error:
        if not entry.load.__module__.startswith(_OWN) or entry.name == "python":
            raise  # code of a user's own, which is to be named as such
        raise DataError(
            f"its files cannot be made into records ({type(error).__name__}: {str(error)[:200]})",
            where=source,
            hint="an array has another shape or other values than the source expects; docs/data.md describes the files",
        ) from error


def source_fingerprint(source: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> str:
    """A hash that changes when the options or the files of a source change; reads no data and does not import torch.

    It covers the name, the options, and the path, size and modification time of each file (or the version of the
    distribution that ships the data). Equal contents in another place give another fingerprint; `Records.hash` is the
    hash of the contents.
    """
    entry = get_source(source)
    entry.check(options)
    body: dict[str, Any] = {"source": source, "options": options}
    if entry.package is not None:
        body["version"] = importlib.metadata.version(entry.package)
    if entry.files is not None:
        files = []
        for path in entry.files(Place.choose(source, data_dir), **options):
            info = path.stat()
            files.append([str(path.absolute()), info.st_size, info.st_mtime_ns])
        body["files"] = sorted(files)
    return hash_json(body)
