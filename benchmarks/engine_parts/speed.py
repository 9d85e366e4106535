"""Wall seconds of a plan with one worker and with two, on Dask and on Ray."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from .plans import LARGE, ONE_THREAD, QUICK, SMALL, read_table, run, write_plan

#: Seconds that a stage of the plan without computation waits; it has 29 stages.
WAIT, QUICK_WAIT = 4.2, 0.2
#: Seconds of work that the plan must have: stage seconds with one worker.
LEAST_WORK = 120.0
ENGINES = (("dask", 1), ("dask", 2), ("ray", 1), ("ray", 2))


def time_engine(engine: str, workers: int, folder: Path, waits: bool, quick: bool) -> dict[str, Any]:
    """Start workers, warm them, and time the large plan; in a process of its own."""
    large, small = write_plan(folder, QUICK if quick else LARGE, "large"), write_plan(folder, SMALL, "small")
    stages: dict[str, str] = {}
    if waits:
        large, stages = build_waiting(folder, quick)
    if engine == "dask":
        import distributed

        cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
        options = {"scheduler": f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"}
    elif engine == "ray":
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        options = {"scheduler": "ray", "workers": workers}
    else:
        options = {"workers": workers}
    name = f"{engine}-{workers}-{os.getpid()}"
    if engine != "processes":
        run(small, str(folder / f"warm-{name}"), folder / "warm.json", **options)
    before = read_busy()
    used = -count_cpu_seconds()
    wall = run(large, str(folder / f"store-{name}"), folder / f"{engine}-{workers}.json", stages=stages, **options)
    used += count_cpu_seconds()
    busy = [after - start for after, start in zip(read_busy(), before, strict=True)]
    from expunge.experiments import read_results

    seconds = read_results(folder / f"{engine}-{workers}.json")["made"]["seconds"]
    return {
        "seconds": round(wall, 1),
        "stage_seconds": round(seconds, 1),
        "worker_cpu_seconds": round(used, 1),
        "with_a_core_each": round(wall - seconds / workers + used / workers, 1),
        "machine_busy": round(busy[0] / sum(busy), 3),
    }


def build_waiting(folder: Path, quick: bool) -> tuple[Path, dict[str, str]]:
    """The plan and the stages of the tests' laboratory, which compute nothing and wait; it is built once."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))
    from laboratory import Lab, build

    lab = Lab(folder, "waiting_stages")
    if not lab.plan.exists():
        lab = build(folder, "waiting_stages")
        lab.behave(f"time.sleep({QUICK_WAIT if quick else WAIT})")
    sys.path.append(str(folder))
    return lab.plan, lab.stages


def count_cpu_seconds() -> float:
    """CPU seconds of the processes that this one has started, so far."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def read_busy() -> list[float]:
    """Busy and idle seconds of all cores since the machine started."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return [(sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), idle / os.sysconf("SC_CLK_TCK")]


def measure_speed(folder: Path, rounds: int, waits: bool, quick: bool) -> dict[str, Any]:
    """Time each engine in turn; what a folder has already is not timed again."""
    path = folder / ("waiting.progress.json" if waits else "speed.progress.json")
    found: dict[str, list[Any]] = json.loads(path.read_text()) if path.exists() else {}

    def add(engine: str, workers: int) -> None:
        row = call_part(engine, workers, folder, waits, quick)
        if engine != "processes":
            row["equal"] = read_table(folder / f"{engine}-{workers}.json") == read_table(folder / "processes-2.json")
        found.setdefault(f"{engine} {workers}", []).append(row)
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(engine, workers, row, flush=True)

    if "processes 2" not in found:
        add("processes", 2)
    for turn in range(rounds):
        for engine, workers in ENGINES if turn % 2 == 0 else ENGINES[::-1]:
            if len(found.get(f"{engine} {workers}", [])) <= turn:
                add(engine, workers)
    rows = {f"{engine} {workers}": found[f"{engine} {workers}"] for engine, workers in ENGINES}
    ratios = {
        key: {
            engine: [
                round(one[key] / two[key], 3) for one, two in zip(rows[f"{engine} 1"], rows[f"{engine} 2"], strict=True)
            ]
            for engine in ("dask", "ray")
        }
        for key in ("seconds", "with_a_core_each")
    }
    work = min(row["stage_seconds"] for row in [*rows["dask 1"], *rows["ray 1"]])
    size = QUICK if quick else LARGE
    wait = QUICK_WAIT if quick else WAIT
    return {
        "plan": f"29 stages of {wait} s" if waits else {"epochs": size.epochs, "seeds": len(size.seeds)},
        "work_seconds": work,
        "enough_work": work >= LEAST_WORK,
        "processes 2": found["processes 2"][0],
        **rows,
        "one_to_two_workers": ratios,
        "equal_to_the_process_pool": all(row["equal"] for group in rows.values() for row in group),
        "cells": len(read_table(folder / "processes-2.json")),
    }


def call_part(engine: str, workers: int, folder: Path, waits: bool, quick: bool) -> dict[str, Any]:
    """`time_engine` in a process of its own; with the CPU seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(folder)])
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
    script = str(Path(__file__).parents[1] / "engines.py")
    command = [sys.executable, script, "part", "--folder", str(folder), "--engine", engine, "--workers", str(workers)]
    command += [*(["--waits"] if waits else []), *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout.splitlines()[-1]), "cpu_seconds": round(used, 1)}
