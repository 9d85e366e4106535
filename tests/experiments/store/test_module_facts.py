"""Facts of source files in the store: used without parsing, never when the file, Python or the analysis differs."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError
from expunge.experiments.store import module_facts
from expunge.experiments.store.code_hash import hash_source_files
from expunge.experiments.store.module_facts import (
    ModuleFacts,
    find_module_facts,
    load_module_facts,
    save_module_facts,
)

SOURCE = Path(module_facts.__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_facts, "_known", {})
    monkeypatch.setattr(module_facts, "_read", {})
    module_facts.read_module_facts.cache_clear()


def new_process() -> None:
    """Forget what this process has parsed and read."""
    module_facts._known.clear()
    module_facts._read.clear()
    module_facts.read_module_facts.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pkg_f").mkdir()
    (tmp_path / "pkg_f" / "__init__.py").write_text("from .a import f as g\n")
    (tmp_path / "pkg_f" / "a.py").write_text("def f():\n    return 1\n")
    (tmp_path / "pkg_f" / "user.py").write_text("from pkg_f import g\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "pkg_f"


def test_kept_facts_give_the_same_hashes_without_parsing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "module_facts.json"
    modules = ["pkg_f.user", "expunge.experiments.stages.train"]
    first = hash_source_files(modules)
    assert set(first) > {"pkg_f.user", "pkg_f.a", "expunge.training.loop"}
    save_module_facts(kept)
    new_process()
    load_module_facts(kept)
    monkeypatch.setattr(module_facts, "find_module_facts", None)  # nothing may be parsed
    assert hash_source_files(modules) == first


def test_an_edit_that_keeps_size_and_time_changes_the_hash(package: Path, tmp_path: Path) -> None:
    kept, file = tmp_path / "module_facts.json", package / "a.py"
    first, times = hash_source_files(["pkg_f.user"]), file.stat()
    save_module_facts(kept)
    file.write_text(file.read_text().replace("1", "2"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    new_process()
    load_module_facts(kept)
    second = hash_source_files(["pkg_f.user"])
    assert [name for name in second if second[name] != first[name]] == ["pkg_f.a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: "",
        lambda body: json.dumps({**body, "version": "other"}),
        lambda body: json.dumps({**body, "schema_version": 2}),
        lambda body: json.dumps({**body, "files": {key: {"digest": "0"} for key in body["files"]}}),
        lambda body: json.dumps({**body, "files": [1]}),
        lambda body: json.dumps({**body, "files": {k: {**v, "imports": "no-colon"} for k, v in body["files"].items()}}),
    ],
)
def test_damaged_or_other_facts_are_not_used(package: Path, tmp_path: Path, damage: Callable[[Any], str]) -> None:
    kept = tmp_path / "module_facts.json"
    first = hash_source_files(["pkg_f.user"])
    save_module_facts(kept)
    body = json.loads(kept.read_text())
    for facts in body["files"].values():
        facts["digest"] = "0" * 64  # must not be seen
    kept.write_text(damage(body))
    new_process()
    load_module_facts(kept)
    assert hash_source_files(["pkg_f.user"]) == first


def test_facts_are_written_once_and_only_into_a_store_that_exists(package: Path, tmp_path: Path) -> None:
    hash_source_files(["pkg_f.user"])
    save_module_facts(tmp_path / "absent" / "module_facts.json")
    assert not (tmp_path / "absent").exists()
    kept = tmp_path / "module_facts.json"
    save_module_facts(kept)
    kept.unlink()
    save_module_facts(kept)
    assert not kept.exists()  # nothing new
    (package / "a.py").write_text("def f():\n    return 3\n")
    hash_source_files(["pkg_f.user"])
    save_module_facts(kept)
    assert len(json.loads(kept.read_text())["files"]) == 4  # both versions of a.py


def test_the_oldest_facts_are_dropped(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_facts, "MOST_FILES", 2)
    hash_source_files(["pkg_f.user"])
    save_module_facts(tmp_path / "module_facts.json")
    files = json.loads((tmp_path / "module_facts.json").read_text())["files"]
    assert list(files) == list(module_facts._known)[-2:]


def test_facts_of_a_module() -> None:
    text = (
        '"""Doc."""\nimport os.path\nfrom typing import TYPE_CHECKING\nfrom .. import a as b\n'
        "if TYPE_CHECKING:\n    from .types import T\nelse:\n    from .c import d\n"
        '@register_thing("One", x=1)\nclass A:\n    """Doc."""\n    def f(self):\n        from pkg import late\n'
        '@plain("Two")\ndef g(): ...\ndef __getattr__(name): ...\n'
    )
    facts = find_module_facts(text)
    expected = [("os.path", ""), ("typing", "TYPE_CHECKING"), ("..", "a"), (".c", "d"), ("pkg", "late")]
    assert sorted(facts.imports) == sorted(expected)
    assert facts.origins["b"] == ("..", "a")
    assert facts.origins["T"] == (".types", "T")
    assert facts.lazy
    assert ModuleFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_imports_are_those_of_the_whole_tree() -> None:
    """On every file of the package: the statements visited contain each import that a walk over the tree finds."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8").replace("TYPE_CHECKING", "ALWAYS")
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {("." * node.level + (node.module or ""), alias.name) for alias in node.names}
        assert set(find_module_facts(text).imports) == found, path


def test_text_that_is_not_python(package: Path) -> None:
    for data in (b"def f(:\n", b"\xff\n", b"x = 1\x00\n"):
        (package / "a.py").write_bytes(data)
        with pytest.raises(ConfigError, match="not Python source"):
            hash_source_files(["pkg_f.user"])
