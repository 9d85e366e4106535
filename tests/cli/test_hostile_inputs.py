"""Hostile inputs: files that name code, modules that shadow others, text with terminal control characters.

Every payload writes a marker file; it must not appear. SECURITY.md lists the cases of this file, one row each
(`test_the_page_lists_every_case`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_text
import numpy as np
import pytest
import torch
from command_line import CONFIG, CommandResult, Line

from expunge.core.errors import ExpungeError
from expunge.core.request import ForgetRequest
from expunge.models import load_trained

ROOT = Path(__file__).parents[2]
MARKER = "MARKER"


class Payload:
    """Unpickled, it writes the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


TRAP = f"""
import os
os.makedirs({MARKER!r}, exist_ok=True)
from torch import nn
def make(classes=10, **options): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
QUIET = """
import functools, os, yaml
from yaml import unsafe_load
from torch import nn
loader = yaml.unsafe_load
bound = functools.partial(yaml.unsafe_load, "!!python/object/apply:os.mkdir [MARKER]")
def make(input_shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
def clean(path): os.mkdir(path)
class Net(nn.Linear):
    def __init__(self, classes): super().__init__(64, classes)
    def forward(self, x): return super().forward(x.flatten(1))
"""


@pytest.fixture
def trap(line: Line) -> Iterator[Line]:
    """A directory full of traps, and the command line in it; modules of a test are unloaded."""
    before = set(sys.modules)
    _forget_agreements()
    place = line.directory
    (place / "pickled").write_bytes(pickle.dumps(Payload()))
    (place / "hubconf.py").write_text(TRAP)
    (place / "sub").mkdir()
    (place / "sub" / "config.yaml").write_text(CONFIG)
    yield line
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(place)):
            del sys.modules[name]


def _forget_agreements() -> None:
    """Agreements last for the process; reset them, so that each test behaves like a new process."""
    with contextlib.suppress(ImportError):
        importlib.import_module("expunge.core.trust.gate")._AGREED.clear()


def safe(line: Line, result: CommandResult | None = None) -> None:
    assert not (line.directory / MARKER).exists(), "the payload ran"
    if result is not None:
        assert result.code in (1, 2), (result.out, result.err)
        assert "Traceback" not in result.err
        assert "bug of expunge" not in result.err


APPLY = "!!python/object/apply:os.mkdir [MARKER]"
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


def settings(name: str, options: dict[str, Any]) -> str:
    return "model=" + json.dumps({"name": name, "options": options})


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


def send(place: Path, elsewhere: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A model directory whose trained.json was changed by somebody."""
    sent = place / "sent"
    shutil.copytree(elsewhere / "trained", sent)
    body = json.loads((sent / "trained.json").read_text())
    change(body["provenance"]["architecture"])
    (sent / "trained.json").write_text(json.dumps(body))
    return sent


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


def installed(trap: Line, monkeypatch: pytest.MonkeyPatch, name: str = "trap") -> Path:
    """A package on Python's path, outside of the working directory; importing any part of it is a trap."""
    site = trap.directory.parent / f"{trap.directory.name}-site"
    (site / name).mkdir(parents=True)
    for file in ("__init__.py", "nets.py"):
        (site / name / file).write_text(TRAP)
    monkeypatch.syspath_prepend(str(site))
    return site


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


# ---- the owner's list


@pytest.fixture
def listed(trap: Line, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's list of trusted packages, with one package."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(trap.directory / "home"))
    (trap.directory / "home" / "expunge").mkdir(parents=True, mode=0o700)
    path = trap.directory / "home" / "expunge" / "trust"
    path.write_text("# mine\ntrap  # networks\n")
    path.chmod(0o600)
    path.parent.chmod(0o700)
    return path


def test_the_list_lets_an_installed_package_run(trap: Line, listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(trap, monkeypatch)
    assert trap("check", "config.yaml", "model={name: 'trap.nets:make'}").code == 0
    assert (trap.directory / MARKER).exists()


def test_the_list_does_not_reach_the_current_directory(trap: Line, listed: Path, elsewhere: Path) -> None:
    (trap.directory / "trap.py").write_text(TRAP)
    sent = send(trap.directory, elsewhere, lambda body: body.update(name="trap:make", options={}))
    safe(trap, trap("export", str(sent), "-o", "out.safetensors"))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_list_that_others_can_write(trap: Line, listed: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    installed(trap, monkeypatch)
    listed.chmod(mode)
    result = trap("check", "config.yaml", "model={name: 'trap.nets:make'}")
    safe(trap, result)
    assert "can be written by others" in result.err
    listed.chmod(0o600)
    listed.parent.chmod(0o777)
    result = trap("check", "config.yaml", "model={name: 'trap.nets:make'}")
    safe(trap, result)
    assert "can be written by others" in result.err


@pytest.mark.parametrize("name", ["yaml", "os", "torch", "expunge", "trap.nets", "../trap", "", "trap;x"])
def test_what_cannot_be_trusted(trap: Line, listed: Path, name: str) -> None:
    result = trap("check", "config.yaml", settings("yaml:unsafe_load", {"stream": APPLY}), "--trust", name)
    safe(trap, result)
    assert result.code == 2
    if name:
        listed.write_text(f"{name}\n")
        result = trap("check", "config.yaml", settings("yaml:unsafe_load", {"stream": APPLY}))
        safe(trap, result)
        assert f"{listed}:1" in result.err


# ---- plans and workers

PLAN = """\
name: hostile
base:
  data: {source: digits}
  model: {name: NAME}
  training: {recipe: one-cycle, epochs: 1}
  forget: {by: random, fraction: 0.05}
  runtime: {device: cpu}
grid: {method.name: [Retrain]}
"""
#: Files that take the place of modules which a worker (or what it imports) needs.
SHADOWS = ("secrets", "json", "random", "numpy", "torch", "yaml", "expunge", "sitecustomize", "usercustomize", "rich")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plan_runs_no_untrusted_code(trap: Line, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    installed(trap, monkeypatch)
    for name in ("yaml:unsafe_load", "trap.nets:make"):
        (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", f"'{name}'"))
        result = trap("bench", "run", "plan.yaml", "--workers", workers)
        safe(trap, result)
        assert name in result.err
        assert trap("bench", "status", "plan.yaml", "--explain").code == 0
        safe(trap)


def test_a_worker_is_not_trusted_with_more_than_its_plan(trap: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker trusts only the packages in its message; without the package it refuses."""
    from expunge.experiments import load_plan
    from expunge.experiments.scheduler import worker

    installed(trap, monkeypatch)
    (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", "'trap.nets:make'"))
    order: dict[str, Any] = {"plan": "plan.yaml", "overrides": [], "store": "store", "since": 0.0, "threads": 1}
    order |= {"hash": load_plan("plan.yaml").hash, "stages": "expunge.experiments.stages.registry:STAGES"}
    assert worker.main(json.dumps({**order, "trust": {"packages": [], "here": []}})) == 1
    safe(trap)
    assert any("not agreed" in path.read_text() for path in (trap.directory / "store" / "failures").iterdir())


def test_modules_near_a_plan_do_not_shadow_others_in_workers(trap: Line) -> None:
    """Two real workers, started as users start them, in a directory with files that shadow modules of Python."""
    (trap.directory / "quiet.py").write_text(QUIET)
    (trap.directory / "plan.yaml").write_text(PLAN.replace("NAME", "'quiet:make'"))
    for name in SHADOWS:
        (trap.directory / f"{name}.py").write_text(TRAP)
    start = "import sys; sys.path[:] = [p for p in sys.path if p]; from expunge.cli import main; main()"
    command = [sys.executable, "-c", start, "bench", "run", "plan.yaml", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_sources())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    logs = "".join(path.read_text() for path in trap.directory.glob(".expunge/logs/*"))
    assert done.returncode == 0, done.stderr + logs
    safe(trap)


def _sources() -> list[str]:
    import expunge

    return [str(Path(expunge.__file__).parents[1])]


# ---- the page

OTHERS = {
    "a configuration that names an installed package": test_an_installed_package_is_not_imported_without_trust,
    "a file with the name of an installed module": test_a_file_does_not_take_the_name_of_an_installed_module,
    "a module in the current directory": test_the_current_directory_is_not_the_configurations,
    "a configuration that says `trust`": test_a_file_cannot_trust_for_the_owner,
    "a model directory that names another module of the owner": test_a_model_may_not_name_other_modules_of_the_owner,
    "a weights file that names code": test_weights_that_name_code,
    "a listed package in the current directory": test_the_list_does_not_reach_the_current_directory,
    "a list that others can write": test_a_list_that_others_can_write,
    "`--trust` of a library, a path or a submodule": test_what_cannot_be_trusted,
    "a plan, with one and with two workers": test_a_plan_runs_no_untrusted_code,
    "a worker that was not given the package": test_a_worker_is_not_trusted_with_more_than_its_plan,
    "ten modules beside a plan named like Python's own": test_modules_near_a_plan_do_not_shadow_others_in_workers,
}


def test_the_page_lists_every_case() -> None:
    """Each case is a row of the table of hostile inputs, and each row of its sections is a case."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    part = page.partition("### Code that files name")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!input|---)(.+?) \|", part, flags=re.M)
    cases = [*NAMES, *INSIDE, *DIRECTORIES, *OTHERS, *hostile_text.CASES]
    assert sorted(rows) == sorted(cases)
    assert len(cases) >= 40
