"""`make test-fast`: its two processes have all test files, its list names existing tests, every package is covered."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in (ROOT / "src/expunge").glob("*/__init__.py"))


def load_fast_lane() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fast_lane", ROOT / ".ci/fast_lane.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LANE = load_fast_lane()


def list_files() -> list[Path]:
    return sorted(path for place in ("tests", "checker/tests") for path in (ROOT / place).rglob("test_*.py"))


def functions(path: Path) -> set[str]:
    """Test functions of a file, as pytest names them; methods of classes too."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {f"{path.relative_to(ROOT).as_posix()}::{name}" for name in found if "test_" in name}


def test_every_file_is_in_one_process() -> None:
    first, second = LANE.folders()
    for path in list_files():
        name = path.relative_to(ROOT).as_posix()
        places = [place for place in (*first, *second) if name == place or name.startswith(f"{place}/")]
        assert len(places) == 1, name
    assert all((ROOT / place).exists() for place in (*first, *second))


def test_the_list_names_tests_that_exist() -> None:
    """After a test was renamed: correct tests/slow.txt, or run `python .ci/fast_lane.py --choose`."""
    known = {name for path in list_files() for name in functions(path)}
    listed = LANE.listed()
    assert len(set(listed)) == len(listed)
    assert set(listed) <= known


@pytest.mark.parametrize("package", [*PACKAGES, "checker"])
def test_every_package_is_covered(package: str) -> None:
    place = ROOT / "checker/tests" if package == "checker" else ROOT / "tests" / package
    known = {name for path in place.rglob("test_*.py") for name in functions(path)}
    assert len(known - set(LANE.listed())) >= len(known) / 2
