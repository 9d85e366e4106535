"""The registry of everything that is chosen by name. Importing it imports neither torch nor any entry."""

from .definitions import Definition
from .kinds import (
    CRITERIA,
    GRANULARITIES,
    METHODS,
    MODELS,
    REGISTRIES,
    SCHEDULES,
    SCOPES,
    SCORES,
    SOURCES,
    STAGES,
    UNPRUNING_RULES,
    find_named_modules,
    find_strings,
)
from .registry import Registry, is_reference
from .titles import find_title

__all__ = [
    "CRITERIA",
    "GRANULARITIES",
    "METHODS",
    "MODELS",
    "REGISTRIES",
    "SCHEDULES",
    "SCOPES",
    "SCORES",
    "SOURCES",
    "STAGES",
    "UNPRUNING_RULES",
    "Definition",
    "Registry",
    "find_named_modules",
    "find_strings",
    "find_title",
    "is_reference",
]
