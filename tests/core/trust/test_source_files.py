"""Modules beside a configuration are loaded from the source that the owner read, and from nothing else."""

from __future__ import annotations

import importlib.util
import itertools
import py_compile
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from expunge.core.errors import ModelError, TrustError
from expunge.core.trust import Trust, gate, make_importable, permit, resolve, trusting

_NUMBER = itertools.count()
READ, HIDDEN = "def make(): return 'read'\n", "def make(): return 'hidden'\n"


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(gate, "_AGREED", {})
    found = f"beside_{next(_NUMBER)}"
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{found}.py").write_text(READ)
    yield found
    for loaded in [module for module in sys.modules if module.startswith("beside_")]:
        del sys.modules[loaded]


def call(at: Path, name: str) -> object:
    with trusting(Trust().for_file(at / "run.yaml", [name])):
        made = resolve(name, accepts=bool, wanted="it", error=ModelError)
        with make_importable(name):
            return made()


def hide(source: Path, text: str = HIDDEN) -> Path:
    """Put bytecode of another text into the cache of a source file; Python would run it without a check."""
    other = source.with_name("other_text.py")
    other.write_text(text)
    cache = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(other), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    other.unlink()
    return cache


def test_bytecode_is_neither_run_nor_written(tmp_path: Path, name: str) -> None:
    cache = hide(tmp_path / f"{name}.py")
    before = cache.read_bytes()
    assert call(tmp_path, f"{name}:make") == "read"
    assert cache.read_bytes() == before
    shutil.rmtree(cache.parent)
    del sys.modules[name]
    assert call(tmp_path, f"{name}:make") == "read"
    assert not cache.parent.exists()


def test_bytecode_of_what_a_module_imports(tmp_path: Path, name: str) -> None:
    """Neighbours, and submodules of a package, while a module is imported and while it is called."""
    package = tmp_path / f"{name}_pkg"
    package.mkdir()
    for file in ("__init__.py", "early.py", "late.py"):
        (package / file).write_text(READ)
        hide(package / file)
    (tmp_path / f"{name}.py").write_text(
        f"import {name}_pkg.early as early\n"
        f"def make():\n    import {name}_pkg.late as late\n    return early.make() + late.make()\n"
    )
    assert call(tmp_path, f"{name}:make") == "readread"
    assert call(tmp_path, f"{name}_pkg.early:make") == "read"


def test_bytecode_in_a_directory_of_pythonpath(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the directory on its path; the module is still the one beside the plan."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / f"{name}_next.py").write_text(READ)
    (tmp_path / f"{name}.py").write_text(f"from {name}_next import make as inner\ndef make(): return inner()\n")
    hide(tmp_path / f"{name}.py")
    hide(tmp_path / f"{name}_next.py")
    assert call(tmp_path, f"{name}:make") == "read"


def test_a_python_caller_in_the_current_directory(tmp_path: Path, name: str) -> None:
    hide(tmp_path / f"{name}.py")
    assert resolve(f"{name}:make", accepts=bool, wanted="it", error=ModelError)() == "read"


def compiled(suffix: str) -> Callable[[Path, str], Path]:
    def make(at: Path, name: str) -> Path:
        (at / f"{name}{suffix}").write_bytes(b"compiled")
        return at / f"{name}{suffix}"

    return make


def package(at: Path, name: str) -> Path:
    (at / name).mkdir()
    (at / name / "__init__.py").write_text("raise SystemExit")
    return at / name / "__init__.py"


def compiled_package(at: Path, name: str) -> Path:
    (at / name).mkdir()
    (at / name / f"__init__{EXTENSION_SUFFIXES[0]}").write_bytes(b"compiled")
    return at / name / f"__init__{EXTENSION_SUFFIXES[0]}"


@pytest.mark.parametrize("neighbour", [False, True])
@pytest.mark.parametrize(
    "make",
    [*map(compiled, EXTENSION_SUFFIXES), compiled(".pyc"), package, compiled_package],
    ids=[*EXTENSION_SUFFIXES, ".pyc", "package", "compiled package"],
)
def test_what_python_would_load_in_its_place(
    tmp_path: Path, name: str, make: Callable[[Path, str], Path], neighbour: bool
) -> None:
    target = name
    if neighbour:
        target = f"{name}_next"
        (tmp_path / f"{target}.py").write_text(READ)
        (tmp_path / f"{name}.py").write_text(f"def make():\n    import {target}\n")
    other = make(tmp_path, target)
    with pytest.raises(TrustError) as refusal:
        call(tmp_path, f"{name}:make")
    assert str(other) in str(refusal.value)
    if not neighbour:
        with trusting(Trust().for_file(tmp_path / "run.yaml", [f"{name}:make"])), pytest.raises(TrustError):
            permit(f"{name}:make", error=ModelError)
