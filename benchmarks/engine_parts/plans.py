"""The plan of the benchmark in several sizes, its runs, and what is compared of its tables."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

PLAN = """
name: engines
base:
  data: {{source: digits}}
  model: {{name: small-cnn}}
  training: {{recipe: one-cycle, epochs: {epochs}}}
  forget: {{by: random, fraction: 0.1}}
  runtime: {{device: cpu}}
grid:
  method: [{{name: Retrain}}, {{name: FT}}]
  seed: {seeds}
"""


@dataclasses.dataclass(frozen=True)
class Size:
    """Epochs of each training, and the seeds of the grid."""

    epochs: int
    seeds: range


#: For the clock. A seed takes about 0.6 s of CPU and 0.055 to 0.07 s an epoch: 140 to 175 s.
LARGE = Size(150, range(16))
#: For kills and networks.
MEDIUM = Size(8, range(16))
#: For a damaged entry, and to warm workers.
SMALL = Size(1, range(100, 104))
#: For every part with `--quick`.
QUICK = Size(4, range(4))
#: Each process of a run computes with one thread.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def write_plan(folder: Path, size: Size, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(PLAN.format(epochs=size.epochs, seeds=list(size.seeds)))
    return path


def read_table(path: Path) -> Any:
    """Hashes and scores of all cells, without times."""
    cells = json.loads(path.read_text())["cells"]
    return [
        (cell["labels"], cell["state"], cell.get("hashes"), {k: v for k, v in cell["scores"].items() if k != "RTE"})
        for cell in cells
    ]


def run(plan: Path, store: str, results: Path, **options: Any) -> float:
    """Run a plan with `run_plan`; returns wall seconds."""
    from expunge.experiments import load_plan, run_plan

    loaded = load_plan(plan)
    started = time.perf_counter()
    done = run_plan(loaded, store=store, results=results, **options)
    seconds = time.perf_counter() - started
    assert done.exit_code == 0, done.failures
    return seconds


def command_line(plan: Path, store: str, results: Path, scheduler: str) -> list[str]:
    arguments = ["bench", "run", str(plan), "--store", store, "--results", str(results), "--scheduler", scheduler]
    return [sys.executable, "-m", "expunge.cli", *arguments]


def keep_reference(plan: Path, folder: Path) -> Path:
    """The table of the process pool, computed once in a folder."""
    path = folder / f"{plan.stem}-reference.json"
    if not path.exists():
        run(plan, str(folder / f"{plan.stem}-reference"), path, workers=2)
    return path
