"""`make test-vision`: run tests/vision and a tutorial with a torch that torchvision fits; write what was found.

Usage: python .ci/vision.py OUTPUT [PYTEST ARGUMENT ...]

OUTPUT gets one JSON object: date, versions, and the number of tests that passed, failed and were skipped.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors")
ROOT = Path(__file__).parents[1]
TESTS = ("tests/vision", "tests/tutorials/test_tutorials.py::test_resnet")


class Count:
    """Counts the outcomes of the tests, and names those that did not pass."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the call of a test; a failed or skipped setup counts as the test."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome

    def to_json(self) -> dict[str, Any]:
        """The counts, and the names of tests that did not pass."""
        found = list(self.outcomes.values())
        wrong = sorted(name for name, outcome in self.outcomes.items() if outcome != "passed")
        return {outcome: found.count(outcome) for outcome in ("passed", "failed", "skipped")} | {"not passed": wrong}


def main(output: str, *arguments: str) -> int:
    """Run the tests; the exit status is pytest's, or 1 if none passed or one was skipped."""
    count = Count()
    status = int(pytest.main([*TESTS, *arguments], plugins=[count]))
    body = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **count.to_json(),
    }
    (ROOT / output).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(body, indent=2))
    return status or int(body["passed"] == 0 or body["skipped"] > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
