"""Unlearning methods, one file each. See docs/methods.md and docs/adding-a-method.md. Importing this is light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.lazy import import_on_use

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
    ".training.context": ("Context",),
    "base": ("Method",),
    "composition.then": ("chain",),
    "finetuning": ("FineTuning",),
    "options": ("require_range",),
    "registry": ("get_method", "method_class", "method_names", "method_table", "register_method"),
    "task": ("Task",),
    "usable": ("check_usable",),
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

import_on_use(__name__, _MODULES)
