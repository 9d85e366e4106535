"""A part of the tests in two processes at once: `make test-fast`. All tests: `make test`.

    python .ci/fast_lane.py            run the part; arguments go to pytest
    python .ci/fast_lane.py --choose   measure all tests and write tests/slow.txt

tests/slow.txt lists the test functions that the part leaves out, by a rule: those that take LONGEST CPU seconds or
more, with all their parameters and the fixtures that they are the first to use. When these are left out, others may be
the first to use a fixture, so the rest is measured again until no test is slow. `tests/conftest.py` marks the listed
tests `slow`; a test that is not listed runs. Each process has folders of its own; the second has all that the first
has not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLOW = ROOT / "tests" / "slow.txt"
LONGEST = 0.5
FIRST = ("cli", "core", "data", "experiments", "models", "report", "security", "training", "workflow")
HEAD = """\
# Test functions that `make test-fast` leaves out, with CPU seconds: those that take {limit:g} or more.
# Written by `python .ci/fast_lane.py --choose`.
"""


def folders() -> tuple[list[str], list[str]]:
    """Paths for each of the two processes; together they are all tests."""
    first = [f"tests/{name}" for name in FIRST]
    tests = [*(ROOT / "tests").glob("*"), ROOT / "checker" / "tests"]
    names = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(tests)
        if path.name != "helpers" and (path.name.startswith("test_") or (path.is_dir() and path.name[0] not in "._"))
    ]
    return first, [name for name in names if name not in first]


def run(options: list[str]) -> int:
    """Run both processes, print what they print one after the other, and return 1 if a test failed."""
    started, failed = time.monotonic(), False
    with tempfile.TemporaryDirectory() as directory:
        runs = []
        for place, paths in enumerate(folders()):
            log = Path(directory, f"{place}.txt")
            with log.open("w") as output:
                command = pytest_command(*paths, "-m", "not slow", *options)
                runs.append((paths, log, subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output)))
        for paths, log, process in runs:
            failed |= process.wait() != 0
            print(f"== {' '.join(paths)}\n{log.read_text()}", flush=True)
    print(
        f"{'FAILED' if failed else 'passed'} in {time.monotonic() - started:.0f} s. This is a PART of the tests, "
        f"without lint, types and the {len(listed())} slow test functions in tests/slow.txt. All: `make test`."
    )
    return int(failed)


def pytest_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def listed() -> list[str]:
    """The names in tests/slow.txt."""
    return [line.split()[1] for line in SLOW.read_text().splitlines() if line and not line.startswith("#")]


def choose() -> int:
    """Measure the tests in one process until none that is left is slow, and write the list."""
    slow: dict[str, float] = {}
    while True:
        write(slow)
        with tempfile.TemporaryDirectory() as directory:
            found = Path(directory, "seconds.json")
            path = os.pathsep.join([str(ROOT / ".ci"), *filter(None, [os.environ.get("PYTHONPATH")])])
            paths = [name for half in folders() for name in half]
            code = subprocess.run(
                pytest_command("-p", "cpu_seconds", "-m", "not slow", *paths),
                cwd=ROOT,
                env=environment(PYTHONPATH=path, CPU_SECONDS=str(found)),
            ).returncode
            if code != 0:
                return code
            seconds: dict[str, float] = json.loads(found.read_text())
        more = {name: value for name, value in seconds.items() if value >= LONGEST}
        print(
            f"{len(more)} of {len(seconds)} test functions are slow; all take {sum(seconds.values()):.0f} CPU seconds"
        )
        if not more:
            return 0
        slow |= more


def write(slow: dict[str, float]) -> None:
    """Write the list, the slowest first."""
    rows = sorted(((value, name) for name, value in slow.items()), key=lambda row: (-row[0], row[1]))
    SLOW.write_text(HEAD.format(limit=LONGEST) + "".join(f"{value:.1f} {name}\n" for value, name in rows))


if __name__ == "__main__":
    sys.exit(choose() if sys.argv[1:] == ["--choose"] else run(sys.argv[1:]))
