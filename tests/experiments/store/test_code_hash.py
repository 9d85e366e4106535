"""Code hashes: which source files and changes count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from expunge.core.errors import ConfigError
from expunge.core.registry import find_named_modules
from expunge.core.trust import Trust, trusting
from expunge.experiments.stages.registry import load_stage_table
from expunge.experiments.store.code_hash import find_source_files, hash_source_files

FILES = {
    "__init__.py": '"""Passes names on."""\nfrom .a import fa\nfrom . import unused\n',
    "a.py": "from .b import fb\n\ndef fa():\n    from pkg_s.sub import lazy\n    return lazy\n",
    "b.py": "import typing\nif typing.TYPE_CHECKING:\n    from .typed import T\n\ndef fb():\n    return 1\n",
    "unused.py": "x = 1\n",
    "typed.py": "class T: ...\n",
    "user.py": "from pkg_s import fa\n",
    "star.py": "import pkg_s.unused\nfrom pkg_s import b as other\n",
    "sub/__init__.py": "from .deep import lazy as lazy\n",
    "sub/deep.py": "from ..b import fb\nlazy = fb\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pkg_s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "pkg_s"


def test_closure(package: Path) -> None:
    # user -> a (through __init__, which itself is left out) -> b, and sub.deep (imported inside a function).
    assert set(hash_source_files(["pkg_s.user"])) == {"pkg_s.user", "pkg_s.a", "pkg_s.b", "pkg_s.sub.deep"}
    assert set(hash_source_files(["pkg_s.star"])) == {"pkg_s.star", "pkg_s.unused", "pkg_s.b"}
    assert "pkg_s" not in sys.modules


def test_what_changes_the_hash(package: Path) -> None:
    def now() -> dict[str, str]:
        return hash_source_files(["pkg_s.user"])

    before = now()
    (package / "unused.py").write_text("x = 2\n")
    (package / "typed.py").write_text("class T:\n    y = 3\n")
    deep = package / "sub/deep.py"
    deep.write_text('"""A docstring."""\n\n\n# a comment\nfrom ..b import fb\n\nlazy = (fb)\n')
    assert now() == before
    deep.write_text("from ..b import fb\nlazy = fb, 1\n")
    after = now()
    assert [name for name in after if after[name] != before[name]] == ["pkg_s.sub.deep"]


def test_a_name_defined_in_init_reaches_init(package: Path) -> None:
    (package / "__init__.py").write_text(FILES["__init__.py"] + "here = 1\n")
    (package / "user.py").write_text("from pkg_s import here\n")
    assert set(hash_source_files(["pkg_s.user"])) >= {"pkg_s.user", "pkg_s", "pkg_s.unused"}


def test_names_that_a_package_imports_on_first_use(package: Path) -> None:
    lazy = "def __getattr__(name):\n    import importlib\n    return importlib.import_module('.b', __name__).fb\n"
    (package / "user.py").write_text("from pkg_s import fb\n")
    said = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import fb\n"
    (package / "__init__.py").write_text(said + lazy)
    assert set(hash_source_files(["pkg_s.user"])) == {"pkg_s.user", "pkg_s.b"}
    (package / "__init__.py").write_text(lazy)
    assert set(hash_source_files(["pkg_s.user"])) >= {"pkg_s.user", "pkg_s", "pkg_s.a", "pkg_s.b", "pkg_s.typed"}


def test_broken_and_missing_source(package: Path) -> None:
    (package / "a.py").write_text("def fa(:\n")
    with pytest.raises(ConfigError, match="not Python source"):
        hash_source_files(["pkg_s.user"])
    with pytest.raises(ConfigError, match="no source file"):
        hash_source_files(["pkg_s.absent"])


def test_stages_reach_what_they_run_and_not_what_runs_them() -> None:
    reached = {name: set(hash_source_files([stage.module])) for name, stage in load_stage_table().items()}
    assert "expunge.training.loop" in reached["train"]
    assert "expunge.training.loop" in reached["prune"]
    assert "expunge.models.architecture" in reached["train"]
    assert "expunge.methods.base" in reached["forget"]
    for name, modules in reached.items():
        for module in ("methods.ft", "models.lenet5", "experiments.cache", "experiments.plan", "cli"):
            assert f"expunge.{module}" not in modules, name
        assert ("expunge.data.registry" in modules) == (name == "data")  # readers count by what they read
    assert not any("evaluation" in module for module in reached["forget"])


def test_custom_code_includes_what_it_imports_from_expunge(package: Path) -> None:
    (package / "user.py").write_text("from expunge.methods.ft import FT\nimport numpy\n")
    found = set(hash_source_files(["pkg_s.user"]))
    assert {"pkg_s.user", "expunge.methods.ft", "expunge.training.loop"} <= found
    assert not any(name.startswith("numpy") for name in found)


def test_modules_beside_a_plan_include_their_neighbours(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper in the same directory counts; an installed package that it imports, and a neighbour's name, do not."""
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "mine_s.py").write_text("import helper_s\nfrom pkg_s import fa\nimport json\n")
    (folder / "helper_s.py").write_text("from numpy import *\nx = 1\n")
    (folder / "other_s.py").write_text("y = 1\n")
    trust = Trust().for_file(folder / "plan.yaml", ["mine_s:make"])
    with trusting(trust):
        first = hash_source_files(["mine_s"])
        (folder / "helper_s.py").write_text("from numpy import *\nx = 2\n")
        second = hash_source_files(["mine_s"])
    assert set(first) == {"mine_s", "helper_s"}
    assert [name for name in first if first[name] != second[name]] == ["helper_s"]
    assert "mine_s" not in sys.modules


def test_names_that_are_no_modules_are_left_out(package: Path) -> None:
    assert find_source_files({"pkg_s.user", "nothing_s", "expunge.methods.ft"}) == ["expunge.methods.ft", "pkg_s.user"]


def test_defaults_of_a_named_class_count(tmp_path: Path) -> None:
    """A method around another one, whose inner method nobody wrote in the configuration; nothing is imported."""
    (tmp_path / "around_s.py").write_text(
        "import dataclasses\nfrom expunge.methods import Method, register_method\n\n"
        '@register_method("Around", guarantee="empirical", citation="a test")\n@dataclasses.dataclass(frozen=True)\n'
        'class Around(Method):\n    """Runs another method."""\n\n    inner: str = "ga"\n'
    )
    with trusting(Trust().for_file(tmp_path / "plan.yaml", ["around_s:Around"])):
        found = find_named_modules({"name": "around_s:Around", "options": {}})
    assert {"around_s", "expunge.methods.ga"} <= found
    assert "around_s" not in sys.modules
