"""Files of many small values, and options that ask for much, are refused before the work starts."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError, FileError, MethodError
from expunge.core.files import read_json, read_tensors
from expunge.data.selection import check_selection
from expunge.experiments import load_config
from expunge.methods import get_method

CONFIG = """\
data: {source: digits}
model: {name: mlp, options: {widths: [8]}}
training: {recipe: one-cycle, epochs: 1}
"""


def tensors(path: Path, count: int, padding: int = 0) -> Path:
    """A safetensors file of `count` empty tensors."""
    entries = {f"{number:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
    header = json.dumps(entries, separators=(",", ":")).encode() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_many_empty_tensors(tmp_path: Path) -> None:
    path = tensors(tmp_path / "a.safetensors", 100_001)
    with pytest.raises(FileError, match=r"has 100,001 tensors; the limit is 100,000"):
        read_tensors(path)


def test_a_long_header(tmp_path: Path) -> None:
    path = tensors(tmp_path / "a.safetensors", 1, 16 * 2**20)
    with pytest.raises(FileError, match=r"has a header of 16,777,\d{3} bytes; the limit is 16,777,216"):
        read_tensors(path)


def test_a_name_that_holds_the_word_dtype_is_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({'"dtype"' * 9: entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    monkeypatch.setenv("EXPUNGE_MAX_TENSORS", "1")
    assert len(read_tensors(tmp_path / "a.safetensors")[0]) == 1


@pytest.mark.parametrize("item", ["{}", "[]", '{"":0}', "0"])
def test_many_values_of_json(tmp_path: Path, item: str) -> None:
    path = tmp_path / "a.json"
    count = (60 * 2**20) // (len(item) + 1)
    path.write_text('{"kind":"k","schema_version":1,"x":[' + ",".join([item] * count) + "]}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match="values; the limit is 5,000,000"):
        read_json(path, "k", 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024, "the text itself, not its values"


@pytest.mark.parametrize(
    ("leakage", "words"),
    [
        ({"models": 10**9}, "leakage.models"),
        ({"permutations": 10**11}, "leakage.permutations"),
        ({"models": 4096, "permutations": 100_000}, "models times permutations is at most 10,000,000"),
    ],
)
def test_a_leakage_measurement_of_any_size(tmp_path: Path, leakage: dict[str, int], words: str) -> None:
    path = tmp_path / "a.yaml"
    forget = "forget: {by: random, count: 5}\nsparsity: {sparsity: 0.5, layers: [linear], schedule: one-shot}\n"
    path.write_text(f"{CONFIG}{forget}leakage: {json.dumps(leakage)}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


@pytest.mark.parametrize("models", [10**9, 4098, 3, 0, -2, "many", True, 16.0])
def test_an_ensemble_of_any_size(models: Any) -> None:
    with pytest.raises(ConfigError, match="an even number of models from 2 to 4,096"):
        check_selection({"by": "memorised", "count": 5, "models": models})
    check_selection({"by": "memorised", "count": 5, "models": 4096})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("patch", {"clusters": 10**9}),
        ("patch", {"rounds": 10**9}),
        ("patch", {"effort": 60}),
        ("Un-prune", {"rounds": 10**9}),
    ],
)
def test_method_options_of_any_size(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="out of range"):
        get_method(name, **options)


# ---- how a process ends, and what it reads beside the file


def command(at: Path, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["XDG_CONFIG_HOME"] = str(at / "home")
    return subprocess.run(
        [sys.executable, "-P", "-m", "expunge.cli", *arguments], cwd=at, env=environment, capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("def make(input_shape, classes): raise SystemExit(0)", 2),
        ("import sys\nsys.exit()\ndef make(): pass", 2),
        ("def make(input_shape, classes): raise GeneratorExit", 2),
        ("class Done(BaseException): pass\ndef make(input_shape, classes): raise Done", 1),
        ("def make(input_shape, classes): raise KeyboardInterrupt", 130),
        (
            "import sys\nfrom torch import nn\nclass make(nn.Module):\n"
            "    def __init__(self, classes): super().__init__()\n    def forward(self, x): sys.exit(0)",
            2,
        ),
    ],
    ids=["factory", "import", "generator", "custom", "interrupt", "forward"],
)
def test_custom_code_that_ends_the_process_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: int
) -> None:
    from expunge.cli.app import run
    from expunge.core.trust import gate

    monkeypatch.setattr(gate, "_AGREED", {})
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("ending", None)
    Path("ending.py").write_text(body)
    Path("a.yaml").write_text(CONFIG.replace("name: mlp, options: {widths: [8]}", "name: 'ending:make'"))
    assert run(["check", "a.yaml"]) in ({code} if code != 2 else {1, 2})
    sys.modules.pop("ending", None)


def test_a_data_factory_that_ends_the_process() -> None:
    from expunge.cli.app import run

    def end() -> None:
        raise SystemExit(0)

    assert run([], command=lambda *_, **__: end()) != 0


def test_a_pipe_as_the_list_of_trusted_packages(tmp_path: Path) -> None:
    (tmp_path / "home/expunge").mkdir(parents=True, mode=0o700)
    os.mkfifo(tmp_path / "home/expunge/trust", 0o600)
    (tmp_path / "a.yaml").write_text(CONFIG)
    done = command(tmp_path, "check", "a.yaml")
    assert (done.returncode, "it is a pipe" in done.stderr) == (2, True), done.stderr


def test_figures_do_not_read_matplotlibrc(tmp_path: Path) -> None:
    """Neither its contents nor a pipe of that name."""
    code = "import os\nfrom expunge.core.figures import canvas\nwith canvas(9, 9): pass\nprint(os.getcwd())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    rc = tmp_path / "matplotlibrc"
    for kind in ("text", "pipe"):
        rc.unlink(missing_ok=True)
        if kind == "text":
            rc.write_text("no such setting: 1\n")
        else:
            os.mkfifo(rc)
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}\n", "")


def test_a_refused_module_says_where_it_was_looked_for(tmp_path: Path) -> None:
    from expunge.core.errors import ModelError
    from expunge.core.trust import Trust, permit, trusting

    for trust, words in [
        (Trust(), "among the installed modules only: trust=['nowhere'] also searches the current directory"),
        (Trust(command_line=True), "only: --trust nowhere also searches the current directory"),
        (Trust(("nowhere",), ("nowhere",)), f"among the installed modules and in {os.getcwd()}"),
        (Trust().for_file(tmp_path / "a.yaml", []), f"among the installed modules and in {tmp_path}"),
    ]:
        with trusting(trust), pytest.raises(ModelError) as caught:
            permit("nowhere:make", error=ModelError)
        assert words in str(caught.value)
        assert "directory of the configuration" not in str(caught.value)
