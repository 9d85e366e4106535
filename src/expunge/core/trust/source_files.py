"""Import modules beside a configuration or in the current directory from their source files only.

The owner reads `x.py` before starting a configuration that names it, and the cache of a plan hashes that file. So the
text of that file is compiled: bytecode (`__pycache__`, `x.pyc`) is neither read nor written, and a compiled module or a
second module of the same name beside it is an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, FileFinder, ModuleSpec, PathFinder, SourceFileLoader

from expunge.core.errors import TrustError


class SourceLoader(SourceFileLoader):
    """Compiles the text of a file; never reads or writes bytecode."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        code: types.CodeType = self.source_to_code(self.get_data(path), path)
        return code


#: Top-level packages loaded from source only: their submodules are too.
_TOPS: set[str] = set()


def find_source(name: str, directory: str) -> ModuleSpec | None:
    """Find the last component of a module name in a directory, as a source file or a package of source files.

    Raises:
        TrustError: the directory has a compiled file of that name, or both a file and a package.
    """
    spec = FileFinder(directory or os.getcwd(), (SourceLoader, [".py"])).find_spec(name)
    last = name.rpartition(".")[2]
    _check_alone(os.path.join(directory or os.getcwd(), last), name, spec)
    return spec


def load_below(top: str) -> None:
    """Load all submodules of this top-level package from source only, from now on."""
    _TOPS.add(top)
    if not any(isinstance(finder, _Below) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Below())


@contextlib.contextmanager
def importable(root: str) -> Iterator[None]:
    """Within the block, modules in the directory `root` can be imported, from source only, after all others."""
    first, last = _InPath(root), _Beside(root)
    sys.meta_path.insert(0, first)
    sys.meta_path.append(last)
    try:
        yield
    finally:
        for finder in (first, last):
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)


def _check_alone(base: str, name: str, spec: ModuleSpec | None) -> None:
    """Raise TrustError for a file that Python would import in the place of the source file, or beside it."""
    for place, kind in ((base, "module"), (os.path.join(base, "__init__"), "package")):
        for suffix in (*EXTENSION_SUFFIXES, ".pyc", ".pyd", ".dll"):
            if os.path.isfile(place + suffix):
                raise TrustError(
                    f"is compiled: beside a configuration, and in the current directory, a {kind} is loaded from its "
                    "source file only",
                    where=place + suffix,
                    hint=f"remove it, or install the package of {name} and name it with --trust",
                )
    if os.path.isfile(f"{base}.py") and os.path.isfile(os.path.join(base, "__init__.py")):
        raise TrustError(
            f"there are two modules named {name}: {base}.py and {os.path.join(base, '__init__.py')}",
            where=base,
            hint="remove or rename one of them, so that it is clear which one runs",
        )


class _Below(MetaPathFinder):
    """Finds submodules of the packages in `_TOPS`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or fullname.partition(".")[0] not in _TOPS:
            return None
        parts: list[str] = []
        for directory in path:
            spec = find_source(fullname, directory)
            if spec is not None and spec.loader is not None:
                return spec
            parts += list((spec and spec.submodule_search_locations) or ())
        if not parts:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        found = ModuleSpec(fullname, None, is_package=True)
        found.submodule_search_locations = parts
        return found


class _Beside(MetaPathFinder):
    """Finds top-level modules in one directory."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        return self._find(fullname) if path is None else None

    def _find(self, fullname: str) -> ModuleSpec | None:
        spec = find_source(fullname, self._root)
        if spec is not None:
            load_below(fullname)
        return spec


class _InPath(_Beside):
    """Finds the top-level modules that Python's path would take from the directory (a directory of PYTHONPATH)."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        root = os.path.realpath(self._root)
        if path is not None or not any(os.path.realpath(entry) == root for entry in sys.path):
            return None
        spec = PathFinder.find_spec(fullname)
        if spec is None or spec.loader is None or os.path.realpath(find_root(spec)) != root:
            return None
        return self._find(fullname)


def find_root(spec: ModuleSpec) -> str:
    """Find the directory that contains a top-level module."""
    places = list(spec.submodule_search_locations or ())
    return os.path.dirname(os.path.abspath(places[0] if places else spec.origin or ""))
