"""What commands import: those that compute nothing do without torch, `check` without what only training needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CONFIG, PLAN

from expunge.cli.app import run

SPARSE = ("sparsity.sparsity=0.5", "sparsity.layers=[linear]")
FORGET = ("forget", "config.yaml", *SPARSE, "--store", "store", "--output", "unlearned")
PRUNE = ("prune", "config.yaml", *SPARSE, "--store", "store", "--output", "pruned")
HEAVY = ("torch", "lightning_fabric", "torchmetrics", "sklearn", "scipy", "matplotlib", "jinja2")
#: Commands that compute nothing, with what they may import.
LIGHT = {
    ("--help",): (),
    ("--version",): (),
    ("forget", "--help"): (),
    ("bench", "status", "tiny.yaml", "--store", "store"): (),
    ("bench", "status", "tiny.yaml", "--store", "no-store", "--explain"): (),
    ("bench", "run", "tiny.yaml", "--store", "store"): (),
    ("bench", "table", "tiny.yaml"): ("scipy",),
    ("bench", "figure", "tiny.yaml", "--score", "UA", "--output", "ua.svg"): ("scipy", "matplotlib"),
    FORGET: ("matplotlib", "jinja2"),
    PRUNE: (),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a configuration, a plan, and a store with all their stages."""
    place = tmp_path_factory.mktemp("finished")
    (place / "config.yaml").write_text(CONFIG)
    (place / "tiny.yaml").write_text(PLAN)
    before = os.getcwd()
    os.chdir(place)
    try:
        for command in (FORGET, PRUNE, ("bench", "run", "tiny.yaml", "--store", "store")):
            assert run(command) == 0
    finally:
        os.chdir(before)
    return place


def imported(place: Path, arguments: tuple[str, ...], names: tuple[str, ...]) -> set[str]:
    """Those of `names` that a command in a process of its own imports."""
    code = (
        "import sys; from expunge.cli.app import run; code = run(sys.argv[2:])\n"
        "print(*(set(sys.argv[1].split()) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, " ".join(names), *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_commands_that_compute_nothing_import_no_torch(finished: Path, arguments: tuple[str, ...]) -> None:
    assert imported(finished, arguments, HEAVY) <= set(LIGHT[arguments])


def test_status_does_not_import_what_runs_stages(finished: Path) -> None:
    names = ("expunge.experiments.scheduler.status", "expunge.experiments.scheduler.run", "subprocess")
    for explain in ((), ("--explain",)):
        arguments = ("bench", "status", "tiny.yaml", "--store", "store", *explain)
        assert imported(finished, arguments, names) == {"expunge.experiments.scheduler.status"}


def test_what_a_command_imports_is_not_collected() -> None:
    """The objects of imports are kept out of the garbage collector, at the exit all others too; it still runs."""
    code = (
        "import atexit, gc, sys; sys.argv = ['expunge', '--version']; counts = []\n"
        "atexit.register(lambda: print(gc.isenabled(), *counts, gc.get_freeze_count(), len(gc.get_objects())))\n"
        "from expunge.cli import main\n"
        "try: main()\n"
        "finally: counts.append(gc.get_freeze_count())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    enabled, imports, frozen, left = done.stdout.splitlines()[-1].split()
    assert enabled == "True", done.stderr
    assert 20_000 < int(imports) < int(frozen)
    assert int(left) < 100


def test_a_finished_run_that_is_read_again_is_complete(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {path.name: path.read_bytes() for path in (finished / "unlearned").iterdir()}
    shutil.rmtree(finished / "unlearned")
    monkeypatch.chdir(finished)
    assert run(FORGET) == 0
    assert {path.name: path.read_bytes() for path in (finished / "unlearned").iterdir()} == first
    assert {"model.safetensors", "mask.safetensors", "outcome.json", "scores.json", "report.html"} <= set(first)


def test_check_imports_what_it_needs(finished: Path) -> None:
    """Not Fabric (with matplotlib), nor scikit-learn for its digits. A method that is asked for its cost uses scipy."""
    arguments = ("check", "config.yaml", "model={name: small-cnn}", "sparsity.sparsity=0.5")
    assert imported(finished, arguments, HEAVY) == {"torch", "scipy"}


def test_training_in_float32_imports_no_fabric(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    names = ("lightning_fabric", "torchmetrics", "torch")
    assert imported(tmp_path, ("train", "config.yaml", "--output", "trained"), names) == {"torch"}
