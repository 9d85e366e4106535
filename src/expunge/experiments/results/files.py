"""Read and write the result file of a plan. Format: docs/formats/results.md. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.files import PathLike, read_json, write_json

from .schema import check_results

SCHEMA = "expunge.results"
SCHEMA_VERSION = 3


def write_results(path: PathLike, results: Mapping[str, Any]) -> None:
    """Write a result file, one cell per line.

    Args:
        path: the file.
        results: as `run_plan` and `collect_results` return them (docs/formats/results.md).

    Raises:
        FileError: the file cannot be written.

    >>> from expunge.experiments import read_results, write_results
    >>> plan = {"name": "small", "description": "", "file": "small.yaml", "hash": 64 * "0"}
    >>> results = {"plan": plan, "axes": [], "cells": [], "claims": [], "scores": {},
    ...            "passes_limit": 0.1, "made": {"stages": 0}}
    >>> write_results("small.results.json", results)
    >>> read_results("small.results.json")["plan"]["name"]
    'small'
    """
    body = {key: value for key, value in results.items() if key not in ("kind", "schema_version")}
    write_json(path, SCHEMA, SCHEMA_VERSION, body, lines=("options", "cells"))


def read_results(path: PathLike) -> dict[str, Any]:
    """Read a result file.

    Args:
        path: the file.

    Returns:
        The results (docs/formats/results.md). `plan.hash_before_rename` is present only in files that were migrated
        after the renaming of November 2026: the hash of the plan under which its claims were fixed.

    Raises:
        FileError: the file is missing or damaged, has another kind or version, or a value of another type or size than
            docs/formats/results.md says; the message names the key.

    >>> from expunge.experiments import read_results, write_results
    >>> write_results("small.results.json", {"cells": []})
    >>> read_results("small.results.json")
    Traceback (most recent call last):
        ...
    expunge.core.errors.FileError: small.results.json: the key 'plan' is missing
      hint: see docs/formats/results.md
    """
    results = read_json(path, SCHEMA, SCHEMA_VERSION)
    check_results(results, path)
    return results
