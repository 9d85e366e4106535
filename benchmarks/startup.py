"""CPU seconds of commands that train nothing, as ratios to those of `python -c "import torch"`.

    python benchmarks/startup.py [--rounds 9]

Every command runs as a process of its own, once a round, in turn with `import torch`; the CPU seconds (user and system,
threads and children included) are divided by those of `import torch` in the same round. `check`, and `forget` with all
stages in the store, have a small sparse configuration of the digits; `status`, `table` and `figure` have a plan of this
repository with its committed result file, and `status again` one whose stages are all in the store. One thread
(OMP_NUM_THREADS=1); bytecode is cached, as it is after an installation, in a temporary directory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from _common import paired, ratio, write_result

PLANS = Path(__file__).parents[1] / "plans"
CONFIG = """
data: {source: digits}
split: {seed: 0, validation: 0.1, non_members: 0.15, test: 0.2}
model: {name: small-cnn}
training: {recipe: one-cycle, epochs: 2, batch_size: 64}
sparsity: {sparsity: 0.9, layers: [conv, linear], schedule: omp}
forget: {by: random, fraction: 0.05, seed: 0}
method: {name: FT, options: {epochs: 1}}
runtime: {device: cpu}
"""
PLAN = """
name: small
base:
  data: {source: digits}
  split: {seed: 0, validation: 0.1, non_members: 0.15, test: 0.2}
  model: {name: small-cnn}
  training: {recipe: one-cycle, epochs: 2, batch_size: 64}
  sparsity: {sparsity: 0.9, layers: [conv, linear], schedule: omp}
  forget: {by: random, fraction: 0.05, seed: 0}
  runtime: {device: cpu}
grid: {method: [{name: Retrain}, {name: FT, options: {epochs: 1}}]}
"""
FORGET = ("forget", "config.yaml", "--output", "unlearned", "--store", "store")
COMMANDS: dict[str, Sequence[str]] = {
    "help": ("--help",),
    "status": ("bench", "status", str(PLANS / "pruning-methods.yaml"), "--store", "empty"),
    "status again": ("bench", "status", "plan.yaml", "--store", "store"),
    "methods": ("methods",),
    "table": ("bench", "table", str(PLANS / "pruning-methods.results.json")),
    "figure": (
        "bench",
        "figure",
        str(PLANS / "pruning-methods.results.json"),
        "--score",
        "MIA-Efficacy",
        "--output",
        "a.svg",
    ),
    "check": ("check", "config.yaml"),
    "forget again": FORGET,
}
TARGETS = {"help": 0.3, "status": 0.3, "status again": 0.3, "check": 2.0, "forget again": 1.5}


def cpu_seconds(command: Sequence[str], directory: Path) -> float:
    """User and system seconds of one process and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (directory / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{(directory / 'output.txt').read_text()}")
    return usage.ru_utime + usage.ru_stime


def timed(command: Sequence[str], directory: Path) -> Callable[[], float]:
    return lambda: cpu_seconds(command, directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "config.yaml").write_text(CONFIG)
        (directory / "plan.yaml").write_text(PLAN)
        expunge = (sys.executable, "-m", "expunge.cli")
        runs = {"import torch": timed((sys.executable, "-c", "import torch"), directory)}
        runs |= {label: timed((*expunge, *rest), directory) for label, rest in COMMANDS.items()}
        cpu_seconds((*expunge, "bench", "run", "plan.yaml", "--store", "store"), directory)
        for run in runs.values():
            run()
        seconds = paired(runs, arguments.rounds)
    write_result(
        "startup",
        {
            "cpu_over_import_torch": {
                label: ratio(times, seconds["import torch"]) for label, times in seconds.items() if label in COMMANDS
            },
            "targets": {label: f"at most {limit}" for label, limit in TARGETS.items()},
        },
    )


if __name__ == "__main__":
    main()
