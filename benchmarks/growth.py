"""Growth of what expunge itself does: cells of a plan, records of a data set, requests in sequence.

    python benchmarks/growth.py [cells] [records] [requests] [--figure FILE.svg]

`cells`: a plan of 100 to 10,000 cells whose stages do nothing runs in one process; seconds a cell of each part: reading
the plan, the graph and the keys of its stages, the run (its entries are written and synced), a look of the driver of
worker processes at a store in which all is finished, the status. `records`: a split of 10,000 to 1,000,000 records, its
hash, and a request of a tenth of them by their ids. `requests`: 1 to 1,000 requests of one record each, one after the
other, on one model (a perceptron; its method reads only the forgotten record): seconds and bytes of each. Sizes are
measured once each, from small to large; everything runs in this process with one thread.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import write_result

RESULT = Path(__file__).parent / "results" / "growth.json"
CELLS = (100, 300, 1_000, 3_000, 10_000)
RECORDS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
REQUESTS = (1, 3, 10, 30, 100, 300, 1_000)
METHODS = ("Retrain", "FT", "GA", "NegGrad+", "SCRUB")
STAGE = """
import json
from expunge.experiments.stages.registry import register_stage

@register_stage("idle {name}", version=1)
def run(inputs, out):
    if "{name}" == "score":
        scores = [{{"name": "UA", "value": 1.0, "unit": "%", "direction": "reference", "definition": "",
                    "citation": "", "interval": None}}]
        (out / "scores.json").write_text(
            json.dumps({{"kind": "expunge.scores", "schema_version": 2, "scores": scores}}))
    if "{name}" == "forget":
        method = inputs.config["method"]
        (out / "outcome.json").write_text(json.dumps({{
            "kind": "expunge.outcome", "schema_version": 2, "request": {{"records": 1, "record_ids": ["a"]}},
            "method": {{"name": method["name"], "options": method["options"],
                        "guarantee": "exact" if method["name"] == "Retrain" else "empirical"}},
            "cost": {{"trained_records": 1, "forward_records": 0, "retain_records": 1, "seconds": 1.0, "passes": 1.0}},
            "hashes": {{"weights": "0"}},
        }}))
    return "{name}" + str(inputs.config.get("seed", "")) + str(inputs.config.get("method", ""))
"""
NAMES = ("data", "train", "forget", "score")
#: What the process that starts workers does for a plan, besides waiting for them.
DRIVER = ("read the plan", "graph", "look")


class Clock:
    """Seconds of named parts, of the clock and of the processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        gc.collect()
        start, cpu = time.perf_counter(), time.process_time()
        found = call()
        self.seconds[name], self.cpu[name] = time.perf_counter() - start, time.process_time() - cpu
        return found


def register_stages(folder: Path) -> dict[str, str]:
    """A package of stages that do nothing, registered; stage to the name that it is registered by."""
    package = folder / "idle_stages"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in NAMES:
        (package / f"{name}.py").write_text(STAGE.format(name=name))
    sys.path.insert(0, str(folder))
    for name in NAMES:
        importlib.import_module(f"idle_stages.{name}")
    return {name: f"idle {name}" for name in NAMES}


def write_plan(folder: Path, count: int) -> Path:
    """A plan of `count` cells."""
    body = {
        "name": f"cells-{count}",
        "base": {"data": {"source": "digits"}, "model": {"name": "mlp"}, "training": {"recipe": "one-cycle"},
                 "forget": {"by": "random", "fraction": 0.1}},
        "grid": {"method": [{"name": name} for name in METHODS], "seed": list(range(count // len(METHODS)))},
    }  # fmt: skip
    path = folder / f"cells-{count}.yaml"
    path.write_text(json.dumps(body))  # JSON is YAML
    return path


def measure_cells(count: int, stages: dict[str, str], base: str | None) -> dict[str, Any]:
    from expunge.experiments import get_plan_status, load_plan, run_plan
    from expunge.experiments.scheduler.status import PlanState
    from expunge.experiments.scheduler.watch import Watcher
    from expunge.experiments.stages.registry import load_stage_table
    from expunge.experiments.store.store import Store

    clock = Clock()
    with tempfile.TemporaryDirectory(dir=base) as name:
        path, store = write_plan(Path(name), count), Path(name) / "store"
        plan = clock.time("read the plan", lambda: load_plan(path))
        table = load_stage_table(stages)
        clock.time("graph", lambda: PlanState(plan, Store(store), table))
        reporter = Counting()
        run = clock.time("run", lambda: run_plan(plan, store=store, stages=stages, reporter=reporter))
        assert run.computed == run.total == 1 + count // len(METHODS) + 2 * count, run.failures[:2]
        watcher = Watcher(PlanState(plan, Store(store), table), 0.0)
        clock.time("look", watcher.look)
        clock.time("look again", watcher.look)
        clock.time("status", lambda: get_plan_status(plan, store=store, stages=stages))
        clock.time("run again", lambda: run_plan(plan, store=store, stages=stages))
    return {
        "cells": count,
        "stages": run.total,
        "cpu_milliseconds_a_cell": {part: 1e3 * seconds / count for part, seconds in clock.cpu.items()},
        "milliseconds_a_cell": {part: 1e3 * seconds / count for part, seconds in clock.seconds.items()},
        "driver_cpu_milliseconds_a_cell": 1e3 * sum(clock.cpu[part] for part in DRIVER) / count,
    }


class Counting:
    """A reporter that receives all progress, as the bar does."""

    def __init__(self) -> None:
        self.updates = 0

    def update(self, progress: object) -> None:
        self.updates += 1

    def log(self, text: str) -> None:
        pass

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        pass


def measure_records(count: int) -> dict[str, Any]:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.data import Records, forget_ids, make_split

    rng = np.random.default_rng(0)
    ids = np.array([f"record-{number:07d}" for number in range(count)])
    features = rng.random((count, 1), dtype=np.float32)
    labels = rng.integers(0, 10, count)
    clock = Clock()
    records = clock.time("records", lambda: Records("rows", ids, labels, tuple("0123456789"), features))
    split = clock.time("split", lambda: make_split(records))
    chosen = [str(name) for name in rng.permutation(split.train)[: count // 10]]
    request: ForgetRequest = clock.time("request", lambda: forget_ids(records, split, chosen))
    clock.time("apply", lambda: request.apply(split))
    clock.time("rows", lambda: records.rows(request.record_ids))
    clock.time("hash of the records", lambda: records.hash)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "split.json"
        clock.time("save the split", lambda: split.save(path))
        clock.time("read the split", lambda: Split.load(path))
        size = path.stat().st_size
    return {"records": count, "requested": len(chosen), "seconds": clock.seconds,
            "cpu_seconds": clock.cpu, "split_bytes": size}  # fmt: skip


def measure_requests(counts: tuple[int, ...], base: str | None) -> list[dict[str, Any]]:
    """Requests in sequence: what the last of so many takes, and how large the saved model is."""
    import torch

    import expunge
    from expunge.core.files import write_json

    records = expunge.load_records("digits")
    torch.set_num_threads(1)
    split = expunge.make_split(records, validation=0.05, non_members=0.05, test=0.1)
    network = expunge.architecture("mlp", records, split, widths=(16,))
    trained = expunge.train(records, split, network, recipe=expunge.get_recipe("one-cycle", epochs=1))
    method = expunge.get_method("GA", epochs=1, learning_rate=1e-6)
    context = expunge.Context(records, runtime=expunge.Runtime("cpu"))
    order = np.random.default_rng(0).permutation(split.train)
    found, spent, cpu = [], [], []
    with tempfile.TemporaryDirectory(dir=base) as name:
        for number in range(1, max(counts) + 1):
            start, used = time.perf_counter(), time.process_time()
            request = expunge.forget_ids(records, trained.split, [str(order[number - 1])])
            outcome = method.forget(trained, request, context)
            trained = outcome.trained
            spent.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
            if number in counts:
                start = time.perf_counter()
                folder = Path(name) / str(number)
                expunge.save_trained(trained, folder)
                write_json(folder / "outcome.json", "expunge.outcome", 2, outcome.to_json())
                saving = time.perf_counter() - start
                sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
                last, used = spent[-10:], sum(cpu[-10:]) / len(cpu[-10:])
                found.append(
                    {"requests": number, "seconds_of_the_last": sum(last) / len(last),
                     "cpu_seconds_of_the_last": used, "seconds_to_save": saving, "bytes": sizes}
                )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["cells", "records", "requests"])
    parser.add_argument("--sizes", type=int, nargs="*", help="only these")
    parser.add_argument("--add", action="store_true", help="keep the other sizes that the result file has")
    parser.add_argument("--folder", help="where the stores are written; default: the system's temporary directory")
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("EXPUNGE_MAX_PLAN_NODES", str(10**8))  # 10,000 cells of a plan with 2,000 seeds
    body: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        stages = register_stages(Path(name))
        for part in arguments.parts:
            sizes = {"cells": CELLS, "records": RECORDS, "requests": REQUESTS}[part]
            kept = tuple(size for size in sizes if size in (arguments.sizes or sizes))
            body[part] = measure_requests(kept, arguments.folder) if part == "requests" else []
            for size in kept if part != "requests" else ():
                found = measure_cells(size, stages, arguments.folder) if part == "cells" else measure_records(size)
                body[part].append(found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    if arguments.add and RESULT.exists():
        body = merge(json.loads(RESULT.read_text()), body)
    if arguments.no_write:
        print(json.dumps(body))
    else:
        write_result("growth", body)


def merge(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The sizes of an earlier run of this machine that this one has not measured again, and those of this one."""
    found: dict[str, Any] = {}
    for part in ("cells", "records", "requests"):
        rows = {row[part]: row for row in [*before.get(part, []), *now.get(part, [])]}
        found[part] = [rows[size] for size in sorted(rows)]
    return found


if __name__ == "__main__":
    main()
