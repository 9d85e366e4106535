"""Where a module would be imported from, found without importing anything, and its import from that very place.

`importlib.util.find_spec("a.b")` imports `a`; here directories are read step by step. Installed modules go before those
that stand beside a configuration or in the current directory, so no file there takes the place of another module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pkgutil
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from typing import Literal

from expunge.core.errors import ConfigError

#: Where a module was found; see `Found`.
Place = Literal["installed", "beside", "here", "loaded"]


@dataclasses.dataclass(frozen=True)
class Found:
    """A module that was found and not imported.

    Attributes:
        module: its dotted name.
        origin: its file, or its directory where it has no file.
        place: `installed`: on Python's path; `beside`: in the directory of the file that the owner started; `here`: in
            the current directory; `loaded`: imported already by the caller.
        root: the directory that the top-level package lies in, where that is not on Python's path.
        top: specification of the top-level package; None for `loaded`.
    """

    module: str
    origin: str
    place: Place
    root: str | None
    top: ModuleSpec | None

    @contextlib.contextmanager
    def on_path(self) -> Iterator[None]:
        """Inside the block modules in `root` can be imported, after all others."""
        root = self.root
        if root is None:
            yield
            return
        sys.path.append(root)
        try:
            yield
        finally:
            for index in range(len(sys.path) - 1, -1, -1):  # the one that was appended, wherever it is now
                if sys.path[index] == root:
                    del sys.path[index]
                    break


def same_place(one: str, other: str) -> bool:
    """Whether two paths mean the same file."""
    return os.path.realpath(one) == os.path.realpath(other)


def search_path() -> list[str]:
    """Python's path without the current directory, which `python -m` and `-c` put first.

    What the user put there by PYTHONPATH stays, and so does an entry of installed packages (a `.pth` file).
    """
    here = os.path.realpath(os.getcwd())
    given = {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    kept, installed = [], False
    for entry in sys.path:
        place = os.path.realpath(entry)
        installed = installed or (bool(entry) and place == standard)
        if entry and (place != here or place in given or installed):
            kept.append(entry)
    return kept


def worker_path() -> str:
    """The PYTHONPATH of a worker process: `search_path`, with the directory of a script that is running last."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = os.path.realpath(os.path.dirname(script)) if script else None
    given = {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    path = [os.path.abspath(entry) for entry in search_path()]
    last = path[:1] if path and os.path.realpath(path[0]) == own and own not in given else []
    return os.pathsep.join([*path[len(last) :], *last])


def find_module(module: str, *, folder: str | None, here: str | None, installed: bool = True) -> Found | None:
    """Find a module; no package on the way to it is imported.

    Args:
        module: its dotted name.
        folder: the directory of the file that the owner started, or None.
        here: the current directory, where it is searched at all.
        installed: whether to look on Python's path.
    """
    importlib.invalidate_caches()
    top = module.partition(".")[0]
    candidates: list[tuple[Place, ModuleSpec]] = []
    spec = _installed(top) if installed else None
    if spec is not None:
        candidates.append(("installed", spec))
    place: Place
    for place, directory in (("beside", folder), ("here", here)):
        spec = None if directory is None else _in(top, [directory])
        if spec is not None:
            candidates.append((place, spec))
    whole = [found for found in candidates if found[1].loader is not None]  # before directories without an __init__
    first = next(iter(whole or candidates), None)
    origin = None if first is None else _below(first[1], module)
    if first is None or origin is None:
        return None
    place, spec = first
    root = _root(spec)
    if folder is not None and same_place(root, folder):
        place = "beside"
    return Found(module, origin, place, None if place == "installed" else root, spec)


def load_module(found: Found) -> types.ModuleType:
    """Import what was found, from the place where it was found.

    Raises:
        ConfigError: another module of that name is loaded already.
    """
    if found.top is None:
        return importlib.import_module(found.module)
    top = found.top.name
    loaded = sys.modules.get(top)
    with found.on_path():
        if loaded is None:
            loaded = importlib.util.module_from_spec(found.top)
            sys.modules[top] = loaded
            try:
                if found.top.loader is not None:
                    found.top.loader.exec_module(loaded)
            except BaseException:
                sys.modules.pop(top, None)
                raise
        elif not _is(loaded, found.top):
            place = getattr(loaded, "__file__", None) or "elsewhere"
            raise ConfigError(
                f"a module named {top} is loaded already, from {place}, and the one meant is {found.origin}",
                where=found.module,
                hint="rename one of them",
            )
        return importlib.import_module(found.module)


def _is(module: types.ModuleType, spec: ModuleSpec) -> bool:
    file = getattr(module, "__file__", None)
    if spec.origin is None or file is None:
        places = {os.path.realpath(place) for place in getattr(module, "__path__", ())}
        return any(os.path.realpath(place) in places for place in spec.submodule_search_locations or ())
    return same_place(file, spec.origin)


def _installed(top: str) -> ModuleSpec | None:
    """A top-level module on Python's path, or known to a finder of an editable installation."""
    spec = _in(top, search_path())
    if spec is not None and spec.loader is not None:
        return spec
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is None or finder in (BuiltinImporter, FrozenImporter, PathFinder):
            continue
        other = find(top, None, None)
        if other is not None and not (other.origin and same_place(_root(other), os.getcwd())):
            return other
    return spec


def _in(name: str, directories: Iterable[str]) -> ModuleSpec | None:
    """A module in one of these directories; directories without an `__init__` count together, after all others."""
    parts: list[str] = []
    for directory in directories:
        finder = pkgutil.get_importer(directory)
        spec = None if finder is None else finder.find_spec(name, None)
        if spec is not None and spec.loader is not None:
            return spec
        parts += list((spec and spec.submodule_search_locations) or ())
    if not parts:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = parts
    return spec


def _below(spec: ModuleSpec, module: str) -> str | None:
    """The file of a module in a top-level package (the directory where it has none), or None."""
    name, *rest = module.split(".")
    at: ModuleSpec | None = spec
    for part in rest:
        name = f"{name}.{part}"
        at = _in(name, list(at.submodule_search_locations or ())) if at is not None else None
    if at is None:
        return None
    return at.origin or next(iter(at.submodule_search_locations or ()), None)


def _root(spec: ModuleSpec) -> str:
    """The directory that a top-level module lies in."""
    places = list(spec.submodule_search_locations or ())
    return os.path.dirname(os.path.abspath(places[0] if places else spec.origin or ""))
