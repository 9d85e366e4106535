"""Find the file from which a module would be imported, without importing anything; and import it from there.

Modules beside a configuration or in the current directory are loaded from source only (`source_files`).
`importlib.util.find_spec("a.b")` imports `a`; this module reads directories instead. Installed modules take precedence
over files beside a configuration or in the current directory, so no such file can replace an installed module.
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
from expunge.core.show import repr_fields

from .source_files import find_root, find_source, importable, load_below

#: Where a module was found; see `FoundModule`.
Location = Literal["installed", "beside", "here", "loaded"]


@dataclasses.dataclass(frozen=True)
class FoundModule:
    """A module that was found but not imported.

    Attributes:
        module: its dotted name.
        origin: its file, or its directory if it has no file.
        place: `installed`: on Python's path; `beside`: in the directory of the file that the owner started; `here`: in
            the current directory; `loaded`: already imported by the caller.
        root: the directory of the top-level package, if it is not on Python's path.
        top: specification of the top-level package; None for `loaded`.
    """

    module: str
    origin: str
    place: Location
    root: str | None
    top: ModuleSpec | None

    __repr__ = repr_fields

    @contextlib.contextmanager
    def on_path(self) -> Iterator[None]:
        """Within the block, modules in `root` can be imported, from source only, after all others."""
        with contextlib.nullcontext() if self.root is None else importable(self.root):
            yield


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths refer to the same file."""
    return os.path.realpath(one) == os.path.realpath(other)


def search_path() -> list[str]:
    """Python's path without the current directory, which `python -m` and `-c` put first.

    Entries from PYTHONPATH stay, and so do entries of installed packages (`.pth` files).
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
    """The PYTHONPATH of a worker process: `search_path`, with the directory of the running script at the end."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = os.path.realpath(os.path.dirname(script)) if script else None
    given = {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    path = [os.path.abspath(entry) for entry in search_path()]
    last = path[:1] if path and os.path.realpath(path[0]) == own and own not in given else []
    return os.pathsep.join([*path[len(last) :], *last])


def find_module(module: str, *, folder: str | None, here: str | None, installed: bool = True) -> FoundModule | None:
    """Find a module without importing its parent packages.

    Args:
        module: its dotted name.
        folder: the directory of the file that the owner started, or None.
        here: the current directory, or None if it is not searched.
        installed: whether to search Python's path.
    """
    importlib.invalidate_caches()
    top = module.partition(".")[0]
    candidates: list[tuple[Location, ModuleSpec]] = []
    spec = _find_installed(top) if installed else None
    if spec is not None:
        candidates.append(("installed", spec))
    place: Location
    for place, directory in (("beside", folder), ("here", here)):
        spec = None if directory is None else _find_in(top, [directory])
        if spec is not None:
            candidates.append((place, spec))
    regular = [found for found in candidates if found[1].loader is not None]  # before directories without an __init__
    first = next(iter(regular or candidates), None)
    if first is None:
        return None
    place, spec = first
    root = find_root(spec)
    if folder is not None and is_same_file(root, folder):
        place = "beside"
    if place != "installed":  # the first search was only for precedence
        source = find_source(top, root)
        if source is None:
            return None
        spec = source
    origin = _find_origin(spec, module, place)
    if origin is None:
        return None
    return FoundModule(module, origin, place, None if place == "installed" else root, spec)


def load_module(found: FoundModule) -> types.ModuleType:
    """Import a module from the location where it was found.

    Raises:
        ConfigError: another module of that name is already loaded.
    """
    if found.top is None:
        return importlib.import_module(found.module)
    top = found.top.name
    if found.root is not None:
        load_below(top)
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
        elif not _is_same_module(loaded, found.top):
            place = getattr(loaded, "__file__", None) or "elsewhere"
            raise ConfigError(
                f"a module named {top} is already loaded, from {place}; the expected file is {found.origin}",
                where=found.module,
                hint="rename one of them",
            )
        return importlib.import_module(found.module)


def _is_same_module(module: types.ModuleType, spec: ModuleSpec) -> bool:
    file = getattr(module, "__file__", None)
    if spec.origin is None or file is None:
        places = {os.path.realpath(place) for place in getattr(module, "__path__", ())}
        return any(os.path.realpath(place) in places for place in spec.submodule_search_locations or ())
    return is_same_file(file, spec.origin)


def _find_installed(top: str) -> ModuleSpec | None:
    """Find a top-level module on Python's path, or by the finder of an editable installation."""
    spec = _find_in(top, search_path())
    if spec is not None and spec.loader is not None:
        return spec
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is None or finder in (BuiltinImporter, FrozenImporter, PathFinder):
            continue
        other = find(top, None, None)
        if other is not None and not (other.origin and is_same_file(find_root(other), os.getcwd())):
            return other
    return spec


def _find_in(name: str, directories: Iterable[str]) -> ModuleSpec | None:
    """Find a module in these directories; directories without an `__init__` are combined and come last."""
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


def _find_origin(spec: ModuleSpec, module: str, place: Location) -> str | None:
    """Find the file of a module within a top-level package (the directory if it has no file), or None."""
    name, *rest = module.split(".")
    at: ModuleSpec | None = spec
    for part in rest:
        name = f"{name}.{part}"
        directories = list(at.submodule_search_locations or ()) if at is not None else []
        if place == "installed":
            at = _find_in(name, directories)
        else:
            at = next(filter(None, (find_source(name, directory) for directory in directories)), None)
    if at is None:
        return None
    return at.origin or next(iter(at.submodule_search_locations or ()), None)


def is_in_python(found: FoundModule) -> bool:
    """Whether an installed module is part of Python itself: in the directory of its standard library."""
    if found.place != "installed" or found.top is None:
        return False
    root = os.path.realpath(find_root(found.top))
    standard = [os.path.realpath(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib")]
    return root in (*standard, *(os.path.join(place, "lib-dynload") for place in standard))
