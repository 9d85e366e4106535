"""Mutation testing, by hand: change the code in one place, run the tests that cover the place, list what they miss.

    pip install coverage
    python .ci/mutate.py cover DIR [TEST...]            copy the tree to DIR, run the tests, record lines by test
    python .ci/mutate.py sample DIR SEED PART=COUNT...  draw mutants: methods=40, or experiments/results=20
    python .ci/mutate.py run DIR [--most SECONDS]       try all mutants that have no result; repeat with more seconds
    python .ci/mutate.py try DIR NUMBER TEST...         try one mutant on tests of the working tree
    python .ci/mutate.py show DIR                       numbers, and the mutants that survived

Mutants (`mutants.py`) are drawn uniformly over the places of a part, then over what can be made of a place. One process
has the libraries in memory and tries each mutant in a fork, which imports the changed package of DIR/tree; nothing is
changed in the working tree. Read every survivor: it is either equivalent, or a test is missing.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mutants import Source, find_places, make_mutant

ROOT = Path(__file__).resolve().parents[1]
#: Seconds of a test that took part in no measurement, and how many tests one mutant meets at most.
UNKNOWN, MOST_TESTS = 0.7, 400
#: What the tests need and takes long to import.
LIBRARIES = (
    "torch", "torch.func", "torch.fx", "torch._dynamo", "numpy", "scipy.stats", "sklearn.svm", "sklearn.datasets",
    "hypothesis", "pydantic", "yaml", "jinja2", "matplotlib.pyplot", "safetensors.torch", "lightning_fabric",
    "cyclopts",
)  # fmt: skip


def sample(directory: Path, seed: int, wanted: list[str]) -> None:
    """Write DIR/mutants.json. A file belongs to the first part that has it. Results of another sample are removed."""
    rng, mutants, seen, tree = random.Random(seed), [], set(), directory / "tree"
    for item in wanted:
        part, _, count = item.partition("=")
        root = tree / "src/expunge" / part
        files = [
            path for path in sorted(root.rglob("*.py")) or [root] if path.name != "__init__.py" and path not in seen
        ]
        seen.update(files)
        sources = {path: Source(path.read_text()) for path in files}
        pool = [(path, place) for path in files for place in find_places(sources[path])]
        rng.shuffle(pool)
        made: list[dict[str, Any]] = []
        for path, place in pool:
            mutant = make_mutant(sources[path], *rng.choice(place)) if len(made) < int(count) else None
            if mutant is not None:
                made.append({"file": path.relative_to(tree).as_posix(), **mutant})
        mutants += made
        print(f"{part}: {len(files)} files, {len(pool)} places, {len(made)} mutants")
    (directory / "mutants.json").write_text(json.dumps(mutants))
    (directory / "results.json").unlink(missing_ok=True)


# ---- which test covers which line


class Recorder:
    """A pytest plug-in: which lines run in which test or in which wide fixture, and how long a test takes."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured
        self.fixtures: list[str] = []
        self.uses: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.uses[item.nodeid] = list(getattr(item, "fixturenames", []))
        self.measured.switch_context(item.nodeid)
        self.test, started = item.nodeid, time.monotonic()
        yield
        self.seconds[item.nodeid] = time.monotonic() - started

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        wide = fixturedef.scope in ("session", "module", "package")
        if wide:
            self.fixtures.append(f"fixture:{fixturedef.argname}")
            self.measured.switch_context(self.fixtures[-1])
        yield
        if wide:
            self.fixtures.pop()
            self.measured.switch_context(self.fixtures[-1] if self.fixtures else self.test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def cover(directory: Path, tests: list[str]) -> None:
    """Copy the working tree to DIR/tree, run tests there, and write DIR/coverage and DIR/tests.json."""
    import coverage

    tree = directory / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    use_tree(tree)
    measured = coverage.Coverage(data_file=str(directory / "coverage"), source=[str(tree / "src/expunge")])
    measured.erase()
    recorder = Recorder(measured)
    measured.start()
    pytest.main(["-p", "no:cacheprovider", "--timeout=1200", *tests], plugins=[recorder])
    measured.stop()
    measured.save()
    facts = {"uses": recorder.uses, "seconds": recorder.seconds, "failed": recorder.failed}
    (directory / "tests.json").write_text(json.dumps(facts))


def use_tree(tree: Path) -> None:
    """Work in the copy, in this process and in those that it starts."""
    paths = [str(tree / "src"), str(tree / "checker/src")]
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(paths))
    sys.path[:0] = paths
    os.chdir(tree)


class Tests:
    """What `cover` measured."""

    def __init__(self, directory: Path) -> None:
        from coverage import CoverageData

        facts = json.loads((directory / "tests.json").read_text())
        self.tree, self.uses, self.seconds = directory / "tree", facts["uses"], facts["seconds"]
        self.failed = set(facts["failed"])
        self.data = CoverageData(str(directory / "coverage"))
        self.data.read()

    def at(self, file: str, lines: range) -> set[str]:
        found = self.data.contexts_by_lineno(str(self.tree / file))
        return {name for line in lines for name in found.get(line, ()) if name}

    def choose(self, file: str, lines: list[int], most: float) -> list[str]:
        """The tests that run these lines (if none does, the statement or the file): near and quick ones first.

        A line that runs at import belongs to no test, so it takes the tests of its file. At most `most` seconds.
        """
        whole = range(1, len((self.tree / file).read_text().splitlines()) + 1)
        names = self.at(file, range(lines[0], lines[1] + 1)) or self.at(file, self.statement(file, lines))
        names = names or self.at(file, whole)
        fixtures = {name.removeprefix("fixture:") for name in names if name.startswith("fixture:")}
        direct = {name for name in names if name in self.uses}
        through = {test for test, used in self.uses.items() if fixtures & set(used)} - direct
        part = f"tests/{file.split('/')[2]}/"
        chosen: list[str] = []
        total = 0.0
        for tests in (direct, through):
            for test in sorted(tests, key=lambda name: (not name.startswith(part), self.seconds.get(name, UNKNOWN))):
                total += self.seconds.get(test, UNKNOWN)
                if test not in self.failed and len(chosen) < MOST_TESTS and (total < most or not chosen):
                    chosen.append(test)
        return chosen

    def statement(self, file: str, lines: list[int]) -> range:
        """The lines of the innermost statement around these, without its body."""
        first, last = lines
        for node in ast.walk(ast.parse((self.tree / file).read_text())):
            if isinstance(node, ast.stmt) and node.lineno <= lines[0] and (node.end_lineno or 0) >= lines[1]:
                body = getattr(node, "body", None)
                first, last = node.lineno, max(lines[1], body[0].lineno - 1 if body else node.end_lineno or 0)
        return range(first, last + 1)


# ---- trying mutants


def run_tests(directory: Path, tests: list[str], limit: float, file: str = "", text: str = "") -> tuple[str, list[str]]:
    """Run tests in a fork, on a mutant if a file is named: survived, killed or timeout, and the failures.

    This process has the libraries in memory, but not expunge, which the fork imports.
    """
    path, log = directory / "tree" / file, directory / "log.txt"
    original, times = (path.read_bytes(), path.stat()) if file else (b"", None)
    if file:
        path.write_text(text)
    try:
        process = os.fork()
        if process == 0:
            code = 99
            try:
                os.setsid()
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                code = int(pytest.main([*(["-x"] if file else []), "-p", "no:cacheprovider", *tests]))
            finally:
                os._exit(code)
        stop, done, status = time.monotonic() + limit, 0, 0
        while not done and time.monotonic() < stop:
            time.sleep(0.02)
            done, status = os.waitpid(process, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if not done:
            os.waitpid(process, 0)
            return "timeout", []
    finally:
        if times is not None:
            path.write_bytes(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    lines = log.read_text(errors="replace").splitlines()
    failures = [line.split(" ", 1)[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if os.waitstatus_to_exitcode(status) == 0:
        return "survived", []
    return "killed", failures or lines[-1:]


def warm(directory: Path) -> None:
    """Import the libraries. No bytecode is written: it would be that of a mutant."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    use_tree(directory / "tree")
    for name in LIBRARIES:
        importlib.import_module(name)


def run(directory: Path, most: float) -> None:
    """Try mutants without a result or that survived fewer tests; then the tests that killed, without a mutant."""
    warm(directory)
    measured, mutants = Tests(directory), json.loads((directory / "mutants.json").read_text())
    file = directory / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for number, mutant in enumerate(mutants):
        tests = measured.choose(mutant["file"], mutant["lines"], most)
        old = results.get(str(number))
        if old and (old["result"] != "survived" or old["tests"] >= len(tests)):
            continue
        limit = 60 + 4 * sum(measured.seconds.get(test, UNKNOWN) for test in tests)
        result, failures = (
            run_tests(directory, tests, limit, mutant["file"], mutant["text"]) if tests else ("survived", [])
        )
        results[str(number)] = {"result": result, "tests": len(tests), "failures": failures}
        file.write_text(json.dumps(results))
        print(
            number,
            result,
            f"{mutant['file']}:{mutant['lines'][0]}",
            mutant["what"],
            f"({len(tests)} tests)",
            flush=True,
        )
    killers = {line.split(" - ")[0] for found in results.values() for line in found["failures"]}
    killers = {name for name in killers if name in measured.uses}
    print("also fail without a mutant:", run_tests(directory, sorted(killers), 3600)[1] if killers else [])
    show(directory)


def try_one(directory: Path, number: int, tests: list[str]) -> int:
    """Try one mutant on tests of the working tree; 0 if it is killed, and the tests pass without it."""
    warm(directory)
    for name in {test.partition("::")[0] for test in tests}:
        shutil.copy2(ROOT / name, directory / "tree" / name)
    mutant = json.loads((directory / "mutants.json").read_text())[number]
    without, with_it = (
        run_tests(directory, tests, 600),
        run_tests(directory, tests, 600, mutant["file"], mutant["text"]),
    )
    print("\n".join(mutant["diff"]), f"without it: {without}", f"with it: {with_it}", sep="\n")
    return int(without[0] != "survived" or with_it[0] == "survived")


def show(directory: Path) -> None:
    mutants, results = (json.loads((directory / f"{name}.json").read_text()) for name in ("mutants", "results"))
    found = [results.get(str(number), {"result": "no result", "tests": 0}) for number in range(len(mutants))]
    for number, (mutant, result) in enumerate(zip(mutants, found, strict=True)):
        if result["result"] in ("survived", "no result"):
            place = f"{mutant['file']}:{mutant['lines'][0]}"
            print(f"\n{number} {place} {mutant['what']}, {result['tests']} tests", *mutant["diff"], sep="\n    ")
    print({name: sum(each["result"] == name for each in found) for name in {each["result"] for each in found}})


def main(command: str, place: str, *rest: str) -> int:
    directory = Path(place).resolve()
    if command == "cover":
        directory.mkdir(parents=True, exist_ok=True)
        cover(directory, list(rest))
    elif command == "sample":
        sample(directory, int(rest[0]), list(rest[1:]))
    elif command == "run":
        run(directory, float(rest[1]) if rest else 45)
    elif command == "try":
        return try_one(directory, int(rest[0]), list(rest[1:]))
    elif command == "show":
        show(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
