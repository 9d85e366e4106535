"""Mutation testing without measured coverage: one run of the tests, and a fork of it for each mutant that is reached.

    python .ci/mutate_forks.py DIR BUDGET TEST...

DIR is that of `mutate.py` with `tree` (a copy of the working tree) and `mutants.json`. The tests run once, with marks
before the mutated statements. After a test, each mutant that it reached and that still lives is tried in a fork, which
has the imports and the wide fixtures already: it replaces the code of the mutated functions and runs the test again. A
mutant meets tests of at most BUDGET seconds. The limit of a fork is CPU time, so a busy machine kills no mutant.

DIR/results.json is that of `mutate.py`, so that `mutate.py show` and `run` go on from it. Mutants outside of functions
(defaults, constants) have no result here.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from mutate import use_tree

MARK = "_reached_"
Codes = dict[tuple[str, int], types.CodeType]


def list_functions(code: types.CodeType) -> Codes:
    """The functions that are made at module or class level, by qualified name and number."""
    found: Codes = {}

    def walk(outer: types.CodeType) -> None:
        for constant in outer.co_consts:
            if not isinstance(constant, types.CodeType):
                continue
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function, not the body of a class
                same = sum(name == constant.co_qualname for name, _ in found)
                found[constant.co_qualname, same] = constant
            else:
                walk(constant)

    walk(code)
    return found


def describe(code: types.CodeType) -> tuple[Any, ...]:
    """What a function does, without its lines."""
    constants = tuple(describe(c) if isinstance(c, types.CodeType) else (type(c), repr(c)) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, constants


def find_live(filename: str) -> dict[tuple[str, int], list[types.FunctionType]]:
    """The functions of a file that exist, by qualified name and first line."""
    found: dict[tuple[str, int], list[types.FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is types.FunctionType and each.__code__.co_filename == filename:
            found.setdefault((each.__code__.co_qualname, each.__code__.co_firstlineno), []).append(each)
    return found


def insert_marks(tree: ast.Module, lines: dict[int, tuple[int, int]]) -> set[int]:
    """Insert `_reached_(number)` before the innermost statement with these lines, in functions; return which."""
    places: dict[int, tuple[list[ast.stmt], ast.stmt]] = {}

    def visit(node: ast.AST, inside: bool) -> None:
        inside = inside or isinstance(node, ast.FunctionDef)
        for _, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt) and inside:
                    for number, (first, last) in lines.items():
                        if child.lineno <= first and (child.end_lineno or 0) >= last:
                            places[number] = value, child
                if isinstance(child, ast.AST):
                    visit(child, inside)

    visit(tree, False)
    for number, (body, statement) in places.items():
        call = ast.Expr(ast.Call(ast.Name(MARK, ast.Load()), [ast.Constant(number)], []))
        body.insert(body.index(statement), ast.fix_missing_locations(ast.copy_location(call, statement)))
    return set(places)


class Forks:
    """A pytest plug-in: marks the mutated statements, and tries mutants after every test."""

    def __init__(self, directory: Path, budget: float) -> None:
        self.tree, self.file, self.budget = directory / "tree", directory / "results.json", budget
        self.mutants: list[dict[str, Any]] = json.loads((directory / "mutants.json").read_text())
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.codes: dict[int, list[tuple[list[types.FunctionType], types.CodeType]]] = {}
        self.seconds: dict[int, float] = {}
        self.reached: set[int] = set()

    def prepare(self, file: str, numbers: list[int]) -> None:
        """Find the functions that the mutants of a file change, and put marks into them."""
        path = self.tree / file
        module = importlib.import_module(".".join(Path(file).with_suffix("").parts[1:]))
        text, live = path.read_text(), find_live(str(path))
        originals = list_functions(compile(text, str(path), "exec", dont_inherit=True))
        functions = {key: live.get((code.co_qualname, code.co_firstlineno), []) for key, code in originals.items()}
        lines = {}
        for number in numbers:
            mutated = list_functions(compile(self.mutants[number]["text"], str(path), "exec", dont_inherit=True))
            changed = [
                key for key, code in mutated.items() if key in originals and describe(code) != describe(originals[key])
            ]
            if changed and set(mutated) == set(originals) and all(functions[key] for key in changed):
                self.codes[number] = [(functions[key], mutated[key]) for key in changed]
                first, last = self.mutants[number]["lines"]
                lines[number] = first, last
        tree = ast.parse(text)
        for number in set(lines) - insert_marks(tree, lines):
            del self.codes[number]
        vars(module)[MARK] = self.reached.add
        for key, code in list_functions(compile(tree, str(path), "exec", dont_inherit=True)).items():
            if describe(code) != describe(originals[key]):
                for function in functions[key]:
                    function.__code__ = code

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files: dict[str, list[int]] = {}
        for number, mutant in enumerate(self.mutants):
            if self.results.get(str(number), {}).get("result") != "killed":
                files.setdefault(mutant["file"], []).append(number)
        for file, numbers in files.items():
            self.prepare(file, numbers)
        self.items = items
        print(f"{len(self.codes)} mutants in functions", flush=True)

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        sibling = next((i for i in self.items if i.parent is item.parent and i is not item), None)
        self.reached.clear()
        started = time.process_time()
        reports = runtestprotocol(item, log=True, nextitem=sibling)  # the fixtures of the module stay
        seconds = time.process_time() - started
        if all(report.passed for report in reports):
            for number in sorted(self.reached & set(self.codes)):
                result = self.results.setdefault(str(number), {"result": "survived", "tests": 0, "failures": []})
                if result["result"] == "survived" and self.seconds.get(number, 0.0) < self.budget:
                    self.seconds[number] = self.seconds.get(number, 0.0) + seconds
                    self.attempt(number, result, item, sibling, seconds)
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def attempt(
        self, number: int, result: dict[str, Any], item: pytest.Item, sibling: pytest.Item | None, seconds: float
    ) -> None:
        process = os.fork()
        if process == 0:
            code = 2
            try:
                limit = int(time.process_time() + 15 + 15 * seconds)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
                for functions, changed in self.codes[number]:
                    for function in functions:
                        function.__code__ = changed
                code = 1 - all(report.passed for report in runtestprotocol(item, log=False, nextitem=sibling))
            finally:
                os._exit(code)
        stop, done, status = time.monotonic() + 300 + 30 * seconds, 0, 0
        while not done and time.monotonic() < stop:
            time.sleep(0.01)
            done, status = os.waitpid(process, os.WNOHANG)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        result["tests"] += 1
        if not done or os.WIFSIGNALED(status):
            result.update(result="timeout", failures=[item.nodeid])
        elif os.waitstatus_to_exitcode(status):
            result.update(result="killed", failures=[item.nodeid])
        self.file.write_text(json.dumps(self.results))
        if result["result"] != "survived":
            print(f"\n{number} {result['result']} by {item.nodeid}", flush=True)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        yield
        found = [result["result"] for result in self.results.values()]
        print({name: found.count(name) for name in set(found)}, len(self.mutants) - len(found), "without a result")


def main(place: str, budget: str, *tests: str) -> int:
    directory = Path(place).resolve()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    use_tree(directory / "tree")
    options = ["-p", "no:cacheprovider", "--timeout=0"]
    return int(pytest.main([*options, *tests], plugins=[Forks(directory, float(budget))]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
