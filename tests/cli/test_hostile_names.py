"""Hostile inputs: files that name code, and modules that take the place of others.

Every payload writes a marker file; it must not appear. SECURITY.md lists the cases of these files, one row
each (`test_the_page_lists_every_case`).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import hostile_text
import numpy as np
import pytest
import torch
from command_line import CONFIG, Line
from hostile_names import APPLY, MARKER, QUIET, TRAP, installed, safe, send, settings

from expunge.core.errors import ExpungeError
from expunge.core.request import ForgetRequest
from expunge.models import load_trained

#: Case to the name that a file contains, its options, and words of the refusal.
NAMES: dict[str, tuple[str, dict[str, Any], str]] = {
    "yaml:unsafe_load": ("yaml:unsafe_load", {"stream": APPLY}, "never called for a name"),
    "yaml:load with a loader": ("yaml:load", {"stream": APPLY, "Loader": 0}, "never called for a name"),
    "yaml.loader, a submodule": ("yaml.loader:UnsafeLoader", {"stream": APPLY}, "never called for a name"),
    "numpy:load of a pickle": ("numpy:load", {"file": "pickled", "allow_pickle": True}, "never called"),
    "numpy's private reader": ("numpy.lib.npyio:load", {"file": "pickled", "allow_pickle": True}, "never called"),
    "torch:load of a pickle": ("torch:load", {"f": "pickled", "weights_only": False}, "never called"),
    "torch.hub, which runs hubconf.py": (
        "torch.hub:load",
        {"repo_or_dir": ".", "source": "local", "model": "make"},
        "never called",
    ),
    "joblib:load of a pickle": ("joblib:load", {"filename": "pickled"}, "never called"),
    "pandas:read_pickle": ("pandas:read_pickle", {"filepath_or_buffer": "pickled"}, "never called"),
    "cloudpickle:load": ("cloudpickle:load", {"file": "pickled"}, "never called"),
    "pickle:load": ("pickle:load", {"file": "pickled"}, "standard library"),
    "os:mkdir": ("os:mkdir", {"path": MARKER}, "standard library"),
    "subprocess:run": ("subprocess:run", {"args": ["mkdir", MARKER]}, "standard library"),
    "builtins:exec": ("builtins:exec", {"source": "import os"}, "standard library"),
    "runpy:run_path": ("runpy:run_path", {"path_name": "hubconf.py"}, "standard library"),
    "runpy:run_module": ("runpy:run_module", {"mod_name": "hubconf"}, "standard library"),
    "timeit:timeit": (
        "timeit:timeit",
        {"stmt": f"__import__('os').mkdir({MARKER!r})", "number": 1},
        "standard library",
    ),
    "shutil:copytree": ("shutil:copytree", {"src": "sub", "dst": MARKER}, "standard library"),
    "a writer of expunge itself": ("expunge.core.files:write_text", {"path": MARKER, "text": "x"}, "never called"),
    "the name in capitals": ("YAML:unsafe_load", {"stream": APPLY}, "never called"),
    "the name in full-width letters": ("ｙａｍｌ:unsafe_load", {"stream": APPLY}, "package.module:factory"),
    "a path in the place of a module": ("../hubconf:make", {}, "package.module:factory"),
    "two colons": ("yaml:unsafe_load:x", {"stream": APPLY}, "package.module:factory"),
    "a module that is not there": ("nowhere_to_be_found:make", {}, "no module named 'nowhere_to_be_found'"),
}
#: The same inside `quiet.py`, which stands beside the configuration and may be imported.
INSIDE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a library through a module that imports it": ("quiet:yaml.unsafe_load", {"stream": APPLY}, "reached through"),
    "the system through a module that imports it": ("quiet:os.mkdir", {"path": MARKER}, "reached through"),
    "a library's function under the module's name": ("quiet:unsafe_load", {"stream": APPLY}, "was defined in yaml"),
    "an alias of a library's function": ("quiet:loader", {"stream": APPLY}, "was defined in yaml"),
    "a library's function with arguments bound": ("quiet:bound", {}, "not a function or class"),
    "a method that a class inherits": ("quiet:Net.load_state_dict", {"state_dict": {}}, "was defined in torch"),
    "a dictionary behind a function": ("quiet:make.__globals__", {}, "internal to Python"),
    "a class of torch that the module imports": ("quiet:nn.Linear", {"in_features": 64}, "reached through"),
}


@pytest.mark.parametrize("case", NAMES)
def test_check_runs_nothing_that_the_configuration_names(trap: Line, case: str) -> None:
    name, options, words = NAMES[case]
    result = trap("check", "config.yaml", settings(name, options))
    safe(trap, result)
    assert words in result.out
    data = {"source": "python", "options": {"factory": name, "arguments": options}}
    result = trap("check", "config.yaml", "data=" + json.dumps(data))
    safe(trap, result)
    assert "error    data" in result.out


@pytest.mark.parametrize("case", INSIDE)
def test_a_trusted_module_does_not_expose_other_modules(trap: Line, case: str) -> None:
    name, options, words = INSIDE[case]
    (trap.directory / "quiet.py").write_text(QUIET)
    result = trap("check", "config.yaml", settings(name, options))
    safe(trap, result)
    assert words in result.out
    result = trap("check", "config.yaml", settings(name, options), "--trust", "quiet")
    safe(trap, result)
    assert words in result.out
    data = {"source": "python", "options": {"factory": name, "arguments": options}}
    result = trap("check", "config.yaml", "data=" + json.dumps(data))
    safe(trap, result)


def test_a_named_module_in_the_same_directory_does_run(trap: Line) -> None:
    """The documented path, and the negative control of all others: here the marker does appear."""
    (trap.directory / "trap.py").write_text(TRAP)
    result = trap("check", "config.yaml", "model.name=trap:make", "model.options={}")
    assert result.code == 0, result.out
    assert (trap.directory / MARKER).exists()


@pytest.mark.parametrize("case", NAMES)
def test_export_runs_nothing_that_a_directory_names(trap: Line, elsewhere: Path, case: str) -> None:
    name, options, words = NAMES[case]
    sent = send(trap.directory, elsewhere, lambda body: body.update(name=name, factory=name, options=options))
    result = trap("export", str(sent), "-o", "out.safetensors")
    safe(trap, result)
    assert words in result.err
    assert not (trap.directory / "out.safetensors").exists()
    with pytest.raises(ExpungeError, match=re.escape(words)):
        load_trained(sent)
    safe(trap)


#: How a model directory may try to be more than a name: what it names, where the module lies.
DIRECTORIES: dict[str, tuple[dict[str, Any], str]] = {
    "a model directory with a module inside": ({"name": "trap:make"}, "sent/trap.py"),
    "a model directory with a module beside": ({"name": "trap:make"}, "trap.py"),
    "a model directory that only says `factory`": ({"name": None, "factory": "trap:make"}, "trap.py"),
    "a model directory with a package inside": ({"name": "trap.nets:make"}, "sent/trap/__init__.py"),
    "a patched model over a base that is code": (
        {
            "name": "expunge.patches.trained_state:build",
            "options": {
                "base": {"name": "trap:make", "input_shape": [1, 8, 8], "classes": 10},
                "correction": "constant", "gate": "exact", "count": 0, "groups": 0,
            },
        },
        "trap.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIRECTORIES)
def test_a_model_directory_runs_no_module_near_it(
    trap: Line, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, module = DIRECTORIES[case]
    sent = send(trap.directory, elsewhere, lambda body: body.update({"options": {}, **change}))
    (trap.directory / module).parent.mkdir(exist_ok=True)
    (trap.directory / module).write_text(TRAP)
    (trap.directory / module).with_name("nets.py").write_text(TRAP)
    for path in (None, str(trap.directory), ""):
        if path is not None:
            monkeypatch.syspath_prepend(path)  # as `python -m` and `python -c` put the current directory first
        result = trap("export", str(sent), "-o", "out.safetensors")
        safe(trap, result)
        assert "trap" in result.err
        with pytest.raises(ExpungeError, match="trap"):
            load_trained(sent)
        safe(trap)


def test_what_is_trusted_does_load(trap: Line, elsewhere: Path) -> None:
    """The negative control of the directories: the owner names the package, and the marker appears."""
    sent = send(trap.directory, elsewhere, lambda body: body.update(name="trap:make", options={}))
    (trap.directory / "trap.py").write_text(TRAP)
    result = trap("export", str(sent), "-o", "out.safetensors", "--trust", "trap")
    assert (result.code, "do not fit the architecture" in result.err) == (2, True)
    assert (trap.directory / MARKER).exists()


def test_an_installed_package_is_not_imported_without_trust(trap: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    site = installed(trap, monkeypatch)
    result = trap("check", "config.yaml", "model={name: 'trap.nets:make'}")
    safe(trap, result)
    assert str(site / "trap" / "nets.py") in result.out, "the refusal says what would have been imported from where"
    assert "--trust trap" in result.out
    for command in ("train", "prune", "forget"):
        result = trap(command, "config.yaml", "model={name: 'trap.nets:make'}", "sparsity={layers: [linear]}")
        safe(trap, result)
        assert "not agreed" in result.err
    assert trap("check", "config.yaml", "model={name: 'trap.nets:make'}", "--trust", "trap").code == 0
    assert (trap.directory / MARKER).exists()


def test_a_file_does_not_take_the_name_of_an_installed_module(trap: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(trap, monkeypatch)
    (trap.directory / "trap.py").write_text(TRAP)
    result = trap("check", "config.yaml", "model={name: 'trap:make'}")
    safe(trap, result)
    assert "has the name of an installed module" in result.out


def test_the_current_directory_is_not_the_configurations(trap: Line) -> None:
    (trap.directory / "trap.py").write_text(TRAP)
    safe(trap, trap("check", "sub/config.yaml", "model={name: 'trap:make'}"))


def test_a_file_cannot_trust_for_the_owner(trap: Line) -> None:
    (trap.directory / "trap.py").write_text(TRAP)
    for text in ("trust: [trap]", "_trust: {packages: [trap]}"):
        (trap.directory / "sub" / "config.yaml").write_text(
            f"{CONFIG}{text}\n".replace("name: mlp", "name: 'trap:make'")
        )
        result = trap("check", "sub/config.yaml")
        safe(trap, result)
        assert "unknown key" in result.err


def test_a_model_may_not_name_other_modules_of_the_owner(trap: Line, elsewhere: Path) -> None:
    """The commands trust the code that the configuration names, not other modules in the same directory."""
    (trap.directory / "quiet.py").write_text(QUIET)
    (trap.directory / "trap.py").write_text(TRAP)
    sent = send(trap.directory, elsewhere, lambda body: body.update(name="trap:make", options={}))
    request = ForgetRequest(np.array(["digits-0001"])).to_json()
    cost = {"trained_records": 1, "forward_records": 0, "retain_records": 1, "seconds": 1.0}
    outcome = {"kind": "expunge.outcome", "schema_version": 2, "request": request, "cost": cost}
    good = trap.directory / "good"
    shutil.copytree(elsewhere / "trained", good)
    for directory in (sent, good):
        (directory / "outcome.json").write_text(json.dumps(outcome))
    own = ["config.yaml", "model={name: 'quiet:make'}"]
    patch = {"name": "patch", "options": {"target": "retrained", "retrained": str(sent)}}
    for command in (
        ["evaluate", *own, "--model", str(sent)],
        ["evaluate", *own, "--model", str(good), "--reference", str(sent)],
        ["certify", *own, "--model", str(sent)],
        ["forget", "config.yaml", "method=" + json.dumps(patch), "forget={by: random, count: 1}"],
    ):
        result = trap(*command)
        safe(trap, result)
        assert "names code that you have not agreed to run" in result.err, command
        assert str(trap.directory / "trap.py") in result.err


def test_weights_that_name_code(trap: Line) -> None:
    from expunge.core.files import write_tensors
    from expunge.sparsity import load_small_model

    (trap.directory / "trap.py").write_text(TRAP)
    body = {"name": "trap:make", "options": {}, "input_shape": [1, 8, 8], "classes": 10}
    write_tensors("small.safetensors", {"x": torch.zeros(1)},
                  {"kind": "expunge.small", "schema_version": 2, "architecture": body})  # fmt: skip
    with pytest.raises(ExpungeError, match="trap"):
        load_small_model("small.safetensors")
    safe(trap)
    safe(trap, trap("check", "config.yaml", "model.weights=small.safetensors"))


# ---- the page

OTHERS = {
    "a configuration that names an installed package": "test_an_installed_package_is_not_imported_without_trust",
    "a file with the name of an installed module": "test_a_file_does_not_take_the_name_of_an_installed_module",
    "a module in the current directory": "test_the_current_directory_is_not_the_configurations",
    "a configuration that says `trust`": "test_a_file_cannot_trust_for_the_owner",
    "a model directory that names another module of the owner": "test_a_model_may_not_name_other_modules_of_the_owner",
    "a weights file that names code": "test_weights_that_name_code",
    "a listed package in the current directory": "test_the_list_does_not_reach_the_current_directory",
    "a list that others can write": "test_a_list_that_others_can_write",
    "`--trust` of a library, a path or a submodule": "test_what_cannot_be_trusted",
    "a plan, with one and with two workers": "test_a_plan_runs_no_untrusted_code",
    "a worker that was not given the package": "test_a_worker_is_not_trusted_with_more_than_its_plan",
    "ten modules beside a plan named like Python's own": "test_modules_near_a_plan_do_not_shadow_others_in_workers",
}


def test_the_page_lists_every_case() -> None:
    """Each case is a row of the table of hostile inputs, and each row of its sections is a case."""
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    part = page.partition("### Code that files name")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!input|---)(.+?) \|", part, flags=re.M)
    cases = [*NAMES, *INSIDE, *DIRECTORIES, *OTHERS, *hostile_text.CASES]
    assert sorted(rows) == sorted(cases)
    source = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_hostile_*.py"))
    assert [name for name in OTHERS.values() if f"def {name}(" not in source] == []
    assert len(cases) >= 40
