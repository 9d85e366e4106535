"""Which code a file may name, and the one gate that every `package.module:name` goes through (SECURITY.md)."""

from __future__ import annotations

from .gate import Trust, module_file, permit, reachable, resolve, trusting
from .places import worker_path
from .trust_file import trust_file, user_trust

__all__ = [
    "Trust",
    "module_file",
    "permit",
    "reachable",
    "resolve",
    "trust_file",
    "trusting",
    "user_trust",
    "worker_path",
]
