"""Packages that import their names on first use."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def import_on_use(package: str, modules: Mapping[str, Sequence[str]] | None = None) -> None:
    """Have the names of a package, and its modules, imported on first use.

    The functions `__getattr__` and `__dir__` of the package are set here, and not in its file, where they would hide
    unknown names from type checkers.

    Args:
        package: its `__name__`.
        modules: a module of the package to the names that it has.

    Example:
        >>> import expunge
        >>> expunge.training.recipes.get_recipe is expunge.get_recipe
        True
    """
    home = {name: module for module, names in (modules or {}).items() for name in names}
    own = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name in home:
            own[name] = getattr(importlib.import_module(f".{home[name]}", package), name)
            return own[name]
        if not name.startswith("_") and importlib.util.find_spec(f".{name}", package) is not None:
            return importlib.import_module(f".{name}", package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    own["__getattr__"] = get
    own["__dir__"] = lambda: sorted({*own, *own.get("__all__", ())})
