"""Which code a file may name: every `package.module:name` is checked here before it is imported (SECURITY.md)."""

from __future__ import annotations

from .gate import (
    ENTRIES,
    Trust,
    find_module_file,
    is_beside,
    make_importable,
    permit,
    remember,
    resolve,
    trusting,
)
from .places import worker_path
from .trust_file import read_user_trust, trust_file

__all__ = [
    "ENTRIES",
    "Trust",
    "find_module_file",
    "is_beside",
    "make_importable",
    "permit",
    "read_user_trust",
    "remember",
    "resolve",
    "trust_file",
    "trusting",
    "worker_path",
]
