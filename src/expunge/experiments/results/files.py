"""Read and write the result file of a plan. Format: docs/formats/results.md. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import FileError
from expunge.core.files import PathLike, read_json, write_json

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
    >>> write_results("small.results.json", {"plan": {"name": "small", "hash": 64 * "0"}, "cells": []})
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
        FileError: the file is missing or damaged, has another kind or version, or its `plan.hash_before_rename` is not
            a hash.

    >>> from expunge.experiments import read_results, write_results
    >>> write_results("small.results.json", {"plan": {"name": "small", "hash": 64 * "0"}, "cells": []})
    >>> sorted(read_results("small.results.json"))
    ['cells', 'kind', 'plan', 'schema_version']
    """
    results = read_json(path, SCHEMA, SCHEMA_VERSION)
    plan = results.get("plan")
    earlier = plan.get("hash_before_rename") if isinstance(plan, dict) else None
    if earlier is not None and not (isinstance(earlier, str) and re.fullmatch("[0-9a-f]{64}", earlier)):
        raise FileError(
            "plan.hash_before_rename is not a hash", where=path, hint="64 hex digits: see docs/formats/results.md"
        )
    return results
