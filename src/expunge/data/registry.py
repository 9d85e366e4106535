"""The data sources by name: each is a registered function that makes records from files."""

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
from expunge.core.registry import SOURCES
from expunge.core.registry.custom_code import is_custom, naming
from expunge.core.registry.tables import render_rows, replace_tables
from expunge.core.show import repr_fields

from .data_dir import DataDir
from .records import Caution, Records

Loader = Callable[..., Records]

#: Errors that numpy raises if arrays have other shapes or types than a source expects.
_MISFIT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Source:
    """A data source.

    Attributes:
        name: its name.
        load: `load(directory, **options) -> Records`.
        files: `files(directory, **options)` lists the files that `load` reads; None for sources that read no file.
        package: distribution that contains the data, for sources that read no file.
        reads: the files in words, for the table of docs/data.md.
    """

    name: str
    load: Loader
    files: Callable[..., Iterable[Path]] | None = None
    package: str | None = None
    reads: str = ""

    __repr__ = repr_fields

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options of the source by name: the parameters of `load` after the data directory."""
        parameters = list(inspect.signature(self.load).parameters.values())[1:]
        return {p.name: p for p in parameters}

    @property
    def summary(self) -> str:
        """First paragraph of the docstring of `load`, in one line."""
        return " ".join((inspect.getdoc(self.load) or "").partition("\n\n")[0].split())

    @property
    def caution(self) -> Caution | None:
        """A caution if a custom source does not say which files it reads; None otherwise."""
        if not is_custom(self.load) or self.files is not None or self.package is not None:
            return None
        return Caution(
            f"the source {self.name} does not say which files it reads: after an edit of one, results in the store are "
            "not computed again",
            "list them: @register_source(..., files=...); files=lambda directory, **options: [] if it reads none",
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for an unknown option or a missing required one."""
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


def register_source(
    name: str,
    *,
    files: Callable[..., Iterable[Path]] | None = None,
    package: str | None = None,
    title: str = "",
    reads: str = "",
) -> Callable[[Loader], Loader]:
    """Register `load(directory, **options) -> Records` as a source.

    Args:
        name: name of the source.
        files: function of the same arguments that lists the files that are read (for `source_fingerprint`).
        package: name of the distribution that contains the data, for sources that read no file.
        title: name of the data in reports (`Fashion-MNIST`); a literal, since it is read from the source. Empty: the
            name, or that of the file that the options name.
        reads: the files in words, as a literal, for the table of docs/data.md. What the records are is in the first
            paragraph of the docstring.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> import numpy as np
        >>> from expunge.core.registry import SOURCES
        >>> with SOURCES.temporary():  # only for this example
        ...     @register_source("two-records")
        ...     def load_two(directory: DataDir) -> Records:
        ...         features = np.zeros((2, 3), dtype=np.float32)
        ...         return Records("two-records", ["a", "b"], [0, 1], ("no", "yes"), features)
        ...     load_records("Two-Records").record_ids.tolist()
        ['a', 'b']
    """

    def decorate(load: Loader) -> Loader:
        SOURCES.add(
            name, Source(name, load, files, package, reads), load, {"title": title, "package": package, "reads": reads}
        )
        return load

    return decorate


def get_source(name: str) -> Source:
    """Return a source: a registered name, in upper or lower case, or `package.module:function` of a registered one.

    Raises:
        ConfigError: no source has this name, or a plug-in cannot be imported.
        TrustError: the owner did not agree to the code of a reference.
    """
    source: Source = SOURCES.get(name)
    return source


def source_names() -> list[str]:
    """Names of all registered sources, sorted.

    Example:
        >>> {"adult", "digits", "table"} <= set(source_names())
        True
    """
    return SOURCES.names()


def update_source_table(text: str) -> str:
    """Replace the table of sources of a page: what is between `<!-- generated: sources -->` and `<!-- end -->`.

    Source, files and records are read from the sources' code; nothing is imported.

    Example:
        >>> page = "<!-- generated: sources -->\\nempty\\n<!-- end -->\\n"
        >>> next(line for line in update_source_table(page).splitlines() if "`digits`" in line)
        '| `digits` | none (scikit-learn) | Handwritten digits of scikit-learn: 1,797 records of 1 x 8 x 8, ... |'
    """

    def render(kind: str) -> str:
        rows = []
        for found in SOURCES.definitions():
            package = found.facts.get("package")
            reads = found.facts.get("reads") or (f"none ({package})" if package else "")
            rows.append((f"`{found.name}`", reads, found.summary))
        return render_rows(("source", "files, relative to the data directory", "records"), rows)

    return replace_tables(text, render)


def load_records(source: str, *, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Records:
    """Load the records of a source.

    Args:
        source: a name of `source_names()`, or `package.module:function` of a registered source.
        data_dir: the data directory; the default is the environment variable `EXPUNGE_DATA`.
        options: options of the source (docs/data.md).

    Raises:
        ConfigError: unknown source or option.
        DataError: files are missing or damaged, or have values that no method can use; or the code of a custom source
            failed, or did not return `Records`.

    Example:
        >>> records = load_records("digits")
        >>> len(records), records.input_shape, records.classes, str(records.record_ids[0])
        (1797, (1, 8, 8), 10, 'digit-0000')
    """
    entry = get_source(source)
    entry.check_options(options)
    if is_custom(entry.load):
        with naming("data source", source, entry.load, DataError):
            found: object = entry.load(DataDir.choose(source, data_dir), **options)
        if not isinstance(found, Records):
            raise DataError(
                f"returned a value of type {type(found).__name__}, not Records",
                where=f"data source {source}",
                hint="return expunge.data.Records(name, record_ids, labels, class_names, features)",
            )
        caution = entry.caution
        return found if caution is None else dataclasses.replace(found, cautions=(*found.cautions, caution))
    try:
        return entry.load(DataDir.choose(source, data_dir), **options)
    except ExpungeError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=error.filename or source) from error
    except _MISFIT as error:
        if entry.name == "python":
            raise  # the code of the dataset: its own error is more useful
        raise DataError(
            f"its files cannot be converted to records ({type(error).__name__}: {str(error)[:200]})",
            where=source,
            hint="an array has another shape or other values than the source expects; docs/data.md describes the files",
        ) from error


def source_fingerprint(source: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> str:
    """A hash that changes if the options or the files of a source change; reads no data and does not import torch.

    It covers the name, the options, and the path, size and times (of modification, and of the last change of the file
    or its name) of each file, or the version of the distribution that contains the data. Equal files in another
    directory have another fingerprint; `Records.hash` is the hash of the contents.

    Raises:
        ConfigError: unknown source or option.
        DataError: files are missing.

    Example:
        >>> source_fingerprint("digits") == source_fingerprint("digits")
        True
    """
    entry = get_source(source)
    entry.check_options(options)
    body: dict[str, Any] = {"source": entry.name, "options": options}
    if entry.package is not None:
        body["version"] = importlib.metadata.version(entry.package)
    if entry.files is not None:
        files = []
        with naming("data source", source, entry.files, DataError):
            for path in map(Path, entry.files(DataDir.choose(source, data_dir), **options)):
                info = path.stat()
                files.append([str(path.absolute()), info.st_size, info.st_mtime_ns, info.st_ctime_ns])
        body["files"] = sorted(files)
    return hash_json(body)
