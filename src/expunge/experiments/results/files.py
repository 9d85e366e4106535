"""The result file of a plan on disk. Format: docs/formats/results.md. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.files import PathLike, read_json, write_json

SCHEMA = "expunge.results"
SCHEMA_VERSION = 2


def write_results(path: PathLike, results: Mapping[str, Any]) -> None:
    """Write the result file, a cell a line."""
    body = {key: value for key, value in results.items() if key not in ("kind", "schema_version")}
    write_json(path, SCHEMA, SCHEMA_VERSION, body, lines=("options", "cells"))


def read_results(path: PathLike) -> dict[str, Any]:
    """Read a result file.

    Raises:
        FileError: missing, damaged, or of another kind or version.
    """
    return read_json(path, SCHEMA, SCHEMA_VERSION)
