"""The examples in docstrings run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import expunge

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def _modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(expunge.__path__, "expunge.") if not m.name.endswith("__main__")]
    return ["expunge", *found]


def _files_with_examples() -> list[str]:
    """Modules whose source has a prompt: only these are imported for their examples."""
    root = Path(expunge.__file__).parent
    found = []
    for name in _modules():
        base = root.joinpath(*name.split(".")[1:])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if ">>> " in path.read_text(encoding="utf-8"):
            found.append(name)
    return found


@pytest.mark.parametrize("name", _files_with_examples())
def test_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    output: list[str] = []
    for case in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(case, out=output.append)
    assert runner.failures == 0, "".join(output)


def _public() -> dict[str, Any]:
    """Functions that a package exports in `__all__`, by the name of the module that defines them."""
    found = {}
    for package in ["expunge", *(f"expunge.{m.name}" for m in pkgutil.iter_modules(expunge.__path__) if m.ispkg)]:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value):
                found[f"{value.__module__}.{name}"] = value
    return found


def without_example(functions: dict[str, Any]) -> list[str]:
    """Names of the functions whose docstring has no example."""
    return sorted(name for name, value in functions.items() if ">>> " not in (value.__doc__ or ""))


def test_every_public_function_has_an_example() -> None:
    functions = _public()
    assert len(functions) > 120
    assert without_example(functions) == []


def test_a_function_without_an_example_is_found() -> None:
    assert without_example({"here.this": test_every_public_function_has_an_example}) == ["here.this"]
