"""The gate for code that is named: what is found where, what is agreed to, and that nothing is imported before."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError, ModelError, TrustError
from expunge.core.trust import Trust, find_module_file, gate, make_importable, permit, resolve, trusting
from expunge.core.trust.places import find_module, search_path, worker_path
from expunge.core.trust.trust_file import read_user_trust

_NUMBER = itertools.count()
Write = Callable[..., str]
SOURCE = "def make(): return 'made'\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module or a package into a directory; its name is new, and it is unloaded after the test."""
    monkeypatch.setattr(gate, "_AGREED", {})
    names = []

    def make(files: str | dict[str, str], directory: str = "beside") -> str:
        name = f"gate_{next(_NUMBER)}"
        names.append(name)
        place = tmp_path / directory
        place.mkdir(exist_ok=True)
        if isinstance(files, str):
            (place / f"{name}.py").write_text(files.replace("NAME", name))
        else:
            for file, text in files.items():
                (place / name / file).parent.mkdir(parents=True, exist_ok=True)
                (place / name / file).write_text(text.replace("NAME", name))
        return name

    yield make
    for loaded in [m for m in sys.modules if m.partition(".")[0] in names]:
        del sys.modules[loaded]


def call(name: str) -> Any:
    return resolve(name, accepts=lambda found: found.__name__ == "Good", wanted="a Good", error=ModelError)()


def started(tmp_path: Path, *values: str, **given: Any) -> Trust:
    return Trust(**given).for_file(tmp_path / "beside" / "run.yaml", [list(values)])


def test_beside_a_file_only_what_the_file_names(write: Write, tmp_path: Path) -> None:
    name, other = write(SOURCE), write(SOURCE)
    with trusting(started(tmp_path, f"{name}:make")):
        assert call(f"{name}:make") == "made"
        with pytest.raises(TrustError, match="not agreed"):
            call(f"{other}:make")
        assert other not in sys.modules
    with trusting(started(tmp_path, f"{other}:make", packages=(other,))):
        assert call(f"{other}:make") == "made"


def test_a_name_in_nested_values_counts(tmp_path: Path) -> None:
    values: list[Any] = [{"a": [{"b": ("p.q:r.s", "2:4", "no name", 3)}], "c": "x:y"}, "http://x"]
    assert Trust().for_file(tmp_path / "x.yaml", values).names == {"p.q:r.s", "x:y"}


def test_an_agreement_holds_for_that_name_in_this_process(write: Write, tmp_path: Path) -> None:
    name = write(SOURCE + "def other(): return 'other'\n")
    with trusting(started(tmp_path, packages=(name,))):
        permit(f"{name}:make", error=ModelError)
    assert name not in sys.modules, "nothing is imported by agreeing"
    with trusting(()):
        assert call(f"{name}:make") == "made"
        with pytest.raises(ModelError, match="no module named"):
            permit(f"{name}:other", error=ModelError)
    with trusting(started(tmp_path)), pytest.raises(TrustError, match="not agreed"):
        permit(f"{name}:other", error=ModelError)


def test_who_names_it(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python caller agrees by giving the name; the same string in a file is no agreement."""
    name = write(SOURCE)
    monkeypatch.chdir(tmp_path / "beside")
    with pytest.raises((TrustError, ModelError)):
        permit(f"{name}:make", error=ModelError)
    with trusting(()), pytest.raises(ModelError, match="no module named"):
        call(f"{name}:make")
    assert call(f"{name}:make") == "made"
    permit(f"{name}:make", error=ModelError)


def test_a_refusal_imports_no_parent_and_names_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write({"__init__.py": "raise SystemExit", "a/__init__.py": "raise SystemExit", "a/b.py": SOURCE}, "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(TrustError) as refusal:
        permit(f"{name}.a.b:make", error=ModelError)
    assert str(tmp_path / "site" / name / "a" / "b.py") in str(refusal.value)
    assert f"trust=['{name}']" in str(refusal.value)
    assert "--trust" not in str(refusal.value)
    with trusting(Trust(command_line=True)), pytest.raises(TrustError) as refusal:
        permit(f"{name}.a.b:make", error=ModelError)
    assert f"--trust {name}" in str(refusal.value)
    assert "trust=[" not in str(refusal.value)
    assert not [module for module in sys.modules if module.startswith(name)]
    with pytest.raises(ModelError, match="no module named"):
        permit(f"{name}.a.c:make", error=ModelError)


def test_packages_pass_on_what_they_define(write: Write, tmp_path: Path) -> None:
    name = write(
        {
            "__init__.py": "from NAME.nets import make, Good\nfrom textwrap import dedent\nimport os",
            "nets.py": SOURCE + "class Good:\n  @classmethod\n  def new(cls): return 'new'\nclass Bad: pass\n",
        }
    )
    with trusting(started(tmp_path, packages=(name,))):
        assert call(f"{name}:make") == "made"
        assert type(call(f"{name}:Good")).__name__ == "Good"
        assert call(f"{name}:Good.new") == "new"
        for attribute, error, words in [
            ("dedent", TrustError, "was defined in textwrap"),
            ("os.getcwd", TrustError, "reached through a module"),
            ("nets.make", TrustError, "reached through a module"),
            ("make.__globals__", TrustError, "internal"),
            ("Good.__class__", TrustError, "internal"),
            ("mak", ModelError, "did you mean 'make'"),
            ("__name__", TrustError, "internal"),
        ]:
            with pytest.raises(error, match=words):
                call(f"{name}:{attribute}")
        with pytest.raises(ModelError, match="a class, but not a Good"):
            call(f"{name}.nets:Bad")


def test_directories_without_init(write: Write, tmp_path: Path) -> None:
    name = write({"a/b.py": SOURCE})
    with trusting(started(tmp_path, f"{name}.a.b:make")):
        assert call(f"{name}.a.b:make") == "made"
        assert find_module_file(f"{name}.a.b") == str(tmp_path / "beside" / name / "a" / "b.py")


def test_copies_of_loaders_in_a_trusted_package(write: Write, tmp_path: Path) -> None:
    name = write({"__init__.py": "", "vendor/yaml.py": SOURCE})
    with trusting(started(tmp_path, packages=(name,))), pytest.raises(TrustError, match="yaml"):
        call(f"{name}.vendor.yaml:make")


def test_what_a_module_beside_imports(write: Write, tmp_path: Path) -> None:
    """Its neighbours are found while it is imported and called, after every other module."""
    late, early = write(SOURCE), write(SOURCE)
    (tmp_path / "beside" / "textwrap.py").write_text("raise SystemExit")
    name = write(f"import textwrap, {early}\ndef make():\n    import {late}\n    return {late}.make()\n")
    before = list(sys.path)
    with trusting(started(tmp_path, f"{name}:make")):
        made = resolve(f"{name}:make", accepts=bool, wanted="it", error=ModelError)
        assert sys.path == before
        with pytest.raises(ModuleNotFoundError):
            made()
        with make_importable(f"{name}:make"):
            assert made() == "made"
        assert sys.path == before
        assert late in sys.modules


def test_two_modules_of_one_name(write: Write, tmp_path: Path) -> None:
    name = write(SOURCE)
    with trusting(started(tmp_path, f"{name}:make")):
        call(f"{name}:make")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{name}.py").write_text("raise SystemExit")
    with (
        trusting(Trust().for_file(tmp_path / "other" / "run.yaml", [f"{name}:make"])),
        pytest.raises(ConfigError, match="already loaded"),
    ):
        call(f"{name}:make")


def test_the_current_directory_only_when_asked_for(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write(SOURCE, "here")
    monkeypatch.chdir(tmp_path / "here")
    for entry in ("", str(tmp_path / "here")):
        monkeypatch.syspath_prepend(entry)
        with trusting(Trust((name,))), pytest.raises(ModelError, match="no module named"):
            permit(f"{name}:make", error=ModelError)
    with trusting([name]):
        assert call(f"{name}:make") == "made"


def test_names_that_are_none() -> None:
    for name in ("", ":", "a:", ":a", "a", "a:b:c", "a b:c", "a.:b", ".a:b", "a:b.", "../a:b", "/a:b", "a\n:b", "ä:b"):
        with pytest.raises(ModelError, match=r"package\.module:factory"):
            call(name)


def test_a_trust_of_nonsense() -> None:
    for wrong in ("yaml", "OS", "torch", "builtins", "a.b", "", "a b", "../a", "expunge"):
        with pytest.raises(ConfigError):
            Trust.from_value([wrong])
    with pytest.raises(ConfigError, match="sequence"):
        Trust.from_value("my_package")


def test_blocks_add_up_and_end() -> None:
    one, two = Trust(("a",), (), "/x", frozenset({"m:n"})), Trust(("b",), ("b",))
    both = one.merge(two)
    assert (both.packages, both.here, both.folder, both.names) == (("a", "b"), ("b",), "/x", {"m:n"})
    other = both.merge(Trust((), (), "/y", frozenset({"o:p"})))
    assert (other.folder, other.names) == ("/y", {"o:p"}), "names of one file do not count in the directory of another"
    with pytest.raises(ValueError), trusting(one):
        raise ValueError
    assert gate._ACTIVE.get() is None


def test_the_path_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an empty entry nor the current directory, unless the user put it into PYTHONPATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere", *sys.path])
    for value in ("", os.pathsep, f"/elsewhere{os.pathsep}"):
        monkeypatch.setenv("PYTHONPATH", value)
        entries = worker_path().split(os.pathsep)
        assert "" not in entries
        assert str(tmp_path) not in entries
        assert "/elsewhere" in entries
        assert search_path()[0] == "/elsewhere"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert worker_path().split(os.pathsep)[0] == str(tmp_path)


def test_the_directory_of_a_script_comes_last_for_workers(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("from expunge.core.trust import worker_path\nprint(worker_path())\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().split(os.pathsep)[-1] == str(tmp_path)


def test_importing_the_gate_does_not_import_torch() -> None:
    code = "import sys, expunge.core.trust; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_finding_does_not_import(tmp_path: Path) -> None:
    found = find_module("json.decoder", folder=None, here=None)
    assert found is not None
    assert found.place == "installed"
    assert find_module("json.nothing", folder=None, here=None) is None
    assert find_module("no_such_module_anywhere", folder=str(tmp_path), here=str(tmp_path)) is None


#: Files that import by name: constants, or the caller's own table of stages.
BY_NAME = {
    "core/lazy.py",  # the modules of a package, on first use
    "core/registry/registry.py",
    "core/trust/places.py",
    "data/reading/extras.py",  # packages of extras, by names in the code
    "data/records.py",  # a module of its own package
    "experiments/objects/records.py",
    "experiments/objects/request.py",
    "experiments/stages/registry.py",
    "experiments/stages/train.py",
    "experiments/tuning/samplers.py",  # optuna
    "training/processes/sending.py",  # the script that this user runs, in the other processes of the run
    "models/named/image_models.py",  # timm, torchvision
}


def test_nothing_else_imports_by_name() -> None:
    """A new `package.module:name` is checked by the gate; the other modules import only names of expunge itself."""
    source = Path(gate.__file__).parents[2]
    importing = re.compile(r"\b(import_module|__import__|exec_module|spec_from_file_location|run_path|run_module)\b")
    found = {str(p.relative_to(source)) for p in source.rglob("*.py") if importing.search(p.read_text("utf-8"))}
    assert found - {"core/trust/gate.py"} == BY_NAME


def test_what_files_of_expunge_name_in_expunge() -> None:
    from expunge.patches.trained_state import FACTORY

    assert set(gate.ENTRIES) - {FACTORY} == set()
    permit(FACTORY, error=ModelError, entries=True)
    for call_it in (permit, lambda name, error: resolve(name, accepts=bool, wanted="it", error=error)):
        with pytest.raises(TrustError, match="never called"):  # a configuration has no reason to name it
            call_it(FACTORY, error=ModelError)


def test_the_list_of_a_user_is_read_for_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints then name the flag of a command."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert read_user_trust(["one"]).describe("two") == "--trust two"
