"""A seeded sample of mutated files for every reader, in one process with a memory cap; the whole: `reader_fuzz.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Mutated files a reader: EXPUNGE_FUZZ_FILES=2000 runs the count that SECURITY.md names.
COUNT = int(os.environ.get("EXPUNGE_FUZZ_FILES", "100"))
SCRIPT = Path(__file__).parents[1] / "helpers/reader_fuzz.py"


@pytest.fixture(scope="module")
def fuzzed() -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--count", str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290 + COUNT, check=False)
    assert done.stdout, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_reader_answers_with_an_error_of_expunge(fuzzed: dict[str, Any]) -> None:
    assert {name: result["bad"][:2] for name, result in fuzzed["readers"].items() if result["bad"]} == {}


def test_every_reader_is_fuzzed_and_refuses_something(fuzzed: dict[str, Any]) -> None:
    for kind in ("yaml", "json", "npz", "csv", "idx", "cifar", "webp", "safetensors"):
        hit = [result["outcomes"] for name, result in fuzzed["readers"].items() if name.startswith(kind)]
        assert hit
        for outcomes in hit:
            assert sum(outcomes.values()) == COUNT
            assert outcomes.get("read", 0) < COUNT


def test_no_reader_hangs_or_takes_more_than_the_declared_memory(fuzzed: dict[str, Any]) -> None:
    assert max(result["slowest"] for result in fuzzed["readers"].values()) < 10
    assert fuzzed["grown"] < fuzzed["cap"]
