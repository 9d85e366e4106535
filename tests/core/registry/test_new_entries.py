"""A new entry needs no change of other tests: none counts, or lists in full, the registered names of a kind."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LISTS = re.compile(r"(criterion|scope|granularity|schedule|model|method|rule|source)_names$")


def find_counts(text: str) -> list[str]:
    """Comparisons `==` of the list of names of a kind, or of its length or set, with something that is written down."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq):
            continue
        sides = [node.left, *node.comparators]
        if any(_is_full(side) for side in sides) and any(_is_written(side) for side in sides):
            found.append(ast.unparse(node))
    return found


def _is_full(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if not node.args:
        return bool(LISTS.search(name))
    return name in ("len", "set", "sorted") and _is_full(node.args[0])


def _is_written(node: ast.expr) -> bool:
    """Numbers, lists, sets, constants in capitals, and sets of those."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        return node.func.id in ("set", "sorted", "list") and _is_written(node.args[0])
    return isinstance(node, ast.Constant | ast.List | ast.Set) or (isinstance(node, ast.Name) and node.id.isupper())


def test_no_test_counts_the_registered_names() -> None:
    texts = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
    found = {str(path.relative_to(ROOT)): find_counts(text) for path, text in texts.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_example_lists_the_registered_names() -> None:
    pattern = re.compile(r"^ *>>> (\w+)\(\)(?:\[[^]]*\])?\n", re.MULTILINE)
    texts = {path: path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")}
    found = [(path.name, name) for path, text in texts.items() for name in pattern.findall(text) if LISTS.search(name)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "assert len(criterion_names()) == 10",
        "assert source_names() == ALL",
        "assert set(rule_names()) == set(USED)",
        "assert scope_names() == ['a']",
    ],
)
def test_such_a_count_is_found(line: str) -> None:
    assert find_counts(line)
    assert not find_counts(line.replace("==", "<="))
    assert not find_counts("assert [row['name'] for row in rows] == method_names()")
