"""How names of criteria, granularities, scopes and schedules are found; no other source compares with them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import expunge
from expunge.core.errors import ConfigError
from expunge.core.registry import REGISTRIES
from expunge.sparsity import get_criterion, get_granularity, get_schedule, get_scope

SOURCE = Path(expunge.__file__).parent
GETTERS = {
    "criteria": (get_criterion, "magnitud", "magnitude"),
    "granularities": (get_granularity, "filtr", "filter"),
    "scopes": (get_scope, "globl", "global"),
    "schedules": (get_schedule, "one-sht", "one-shot"),
}


@pytest.mark.parametrize("kind", GETTERS)
def test_names(kind: str) -> None:
    get, wrong, right = GETTERS[kind]
    assert get(right.upper()).name == right
    with pytest.raises(ConfigError, match=f"unknown[^?]*did you mean '{right}'"):
        get(wrong)
    with pytest.raises(ConfigError, match="unknown"):
        get(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="registered already"):
        REGISTRIES[kind].add(right.title(), None, names_in_source)


#: Names that mean something else elsewhere: they count if the compared expression speaks of the kind.
COMMON = {"weight", "random", "global", "layer", "magnitude", "filter", "group", "pattern"}
WORDS = ("criterion", "granularity", "scope", "schedule")


def names_in_source(text: str, names: set[str]) -> list[str]:
    """Comparisons with a registered name, and sequences of registered names."""
    found = []
    for node in ast.walk(ast.parse(text)):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        literals = {
            leaf.value
            for part in parts
            for leaf in ast.walk(part)
            if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
        }
        is_about_them = any(word in ast.unparse(node) for word in WORDS) if parts else False
        if literals & (names - COMMON) or (literals & (names | {":"}) and is_about_them):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 1:
            strings = [e.value for e in node.elts if isinstance(e, ast.Constant)]
            if len(strings) == len(node.elts) and set(strings) <= names and set(strings) - COMMON:
                found.append(ast.unparse(node))
    return found


def test_no_source_compares_with_a_registered_name() -> None:
    names = {name for kind in GETTERS for name in REGISTRIES[kind].names()} | {"group"}
    found = {str(p.relative_to(SOURCE)): names_in_source(p.read_text("utf-8"), names) for p in SOURCE.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "if mask.provenance.granularity == 'filter': pass",
        "x = ':' in rule.granularity",
        "REWINDING = ('imp', 'omp')",
        "if name not in ('omp', *OTHERS): pass",
        "rounds = 100 if context.rule.criterion == 'SynFlow' else 1",
        "across = 1 if scope == 'global' else 2",
    ],
)
def test_such_comparisons_are_found(line: str) -> None:
    names = {name for kind in GETTERS for name in REGISTRIES[kind].names()}
    assert names_in_source(line, names)
    assert not names_in_source("if selection == 'random' or self.rule == 'magnitude': pass", names)
