"""Plug-ins: entry points of installed packages. They are listed without importing them, and imported one at a time.

Installing a package with entry points is the agreement to run it: only the entry that is named is imported, and never
from the current directory. `EXPUNGE_PLUGINS=0` ignores all plug-ins.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from typing import Any

from expunge.core.errors import ExpungeError
from expunge.core.show import repr_fields
from expunge.core.trust.places import find_module, load_module, search_path


@dataclasses.dataclass(frozen=True)
class PlugIn:
    """An entry point.

    Attributes:
        name: the name of the entry.
        module: the module that defines it.
        attribute: the function or class in the module.
        package: the distribution that has the entry point, and its version.
    """

    name: str
    module: str
    attribute: str
    package: str

    __repr__ = repr_fields

    @property
    def where(self) -> str:
        """The distribution and the place, for messages."""
        return f"{self.package} ({self.module}:{self.attribute})"


def find_plug_ins(group: str) -> tuple[PlugIn, ...]:
    """Find the entry points of a group; the installed packages are read once in a process."""
    return () if os.environ.get("EXPUNGE_PLUGINS") == "0" else _read_entry_points().get(group, ())


@functools.cache
def _read_entry_points() -> dict[str, tuple[PlugIn, ...]]:
    found: dict[str, list[PlugIn]] = {}
    for distribution in importlib.metadata.distributions(path=search_path()):  # not in the current directory
        text = distribution.read_text("entry_points.txt")
        if not text or "[expunge." not in text:
            continue
        name = f"{distribution.metadata['Name']} {distribution.version}"
        for point in distribution.entry_points:
            if point.group.startswith("expunge."):
                plug_in = PlugIn(point.name, point.module, point.attr, name)
                if plug_in not in found.setdefault(point.group, []):
                    found[point.group].append(plug_in)
    return {group: tuple(sorted(plug_ins, key=lambda one: one.name)) for group, plug_ins in found.items()}


def import_plug_in(plug_in: PlugIn, error: type[ExpungeError]) -> Any:
    """Import the function or class of a plug-in.

    Raises:
        ExpungeError: (of class `error`) it cannot be imported; the message names the package.
    """
    found = find_module(plug_in.module, folder=None, here=None)
    if found is None:
        raise error("the module of the plug-in cannot be found", where=plug_in.where)
    try:
        value: Any = load_module(found)
        for part in plug_in.attribute.split("."):
            value = getattr(value, part)
    except ExpungeError as failure:
        raise error(failure.what, where=plug_in.where, hint=failure.hint) from failure
    except (Exception, SystemExit, GeneratorExit) as failure:
        raise error(
            f"the plug-in cannot be imported ({type(failure).__name__}: {failure})",
            where=plug_in.where,
            hint="update or uninstall the package",
        ) from failure
    return value
