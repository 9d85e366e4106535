"""Unlearning methods, one file each. See docs/methods.md and docs/adding-a-method.md. Importing this is light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.training.context import Context

    from .base import Method
    from .composition.then import chain
    from .finetuning import FineTuning
    from .options import require_range
    from .registry import get_method, method_class, method_names, method_table, register_method
    from .task import Task
    from .usable import check_usable

_MODULES: dict[str, tuple[str, ...]] = {
    "expunge.training.context": ("Context",),
    "expunge.methods.base": ("Method",),
    "expunge.methods.composition.then": ("chain",),
    "expunge.methods.finetuning": ("FineTuning",),
    "expunge.methods.options": ("require_range",),
    "expunge.methods.registry": ("get_method", "method_class", "method_names", "method_table", "register_method"),
    "expunge.methods.task": ("Task",),
    "expunge.methods.usable": ("check_usable",),
}

__all__ = [
    "Context",
    "FineTuning",
    "Method",
    "Task",
    "chain",
    "check_usable",
    "get_method",
    "method_class",
    "method_names",
    "method_table",
    "register_method",
    "require_range",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
