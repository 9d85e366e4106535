"""SIGKILL of workers and of drivers at random moments of a plan, until it has been enough."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from .clusters import find_free_port, find_worker_processes, start_dask
from .plans import MEDIUM, ONE_THREAD, QUICK, command_line, keep_reference, read_table, write_plan


def count_entries(store: Path) -> int:
    return len(list(store.glob("entries/*/*/entry.json")))


class Progress:
    """What has been done in a folder so far; written after each kill, and read when the same command runs again."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {"seed": seed}
        assert found["seed"] == seed, f"{path} is of seed {found['seed']}"
        self.kills: list[dict[str, Any]] = found.get("kills", [])
        self.exit_codes: list[int] = found.get("exit_codes", [])
        self.removals: int = found.get("removals", 0)
        self.before: float = found.get("seconds", 0.0)
        self.seed, self.started = seed, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.started

    def write(self) -> None:
        body = {"seed": self.seed, "kills": self.kills, "exit_codes": self.exit_codes, "removals": self.removals}
        self.path.write_text(json.dumps({**body, "seconds": round(self.seconds, 1)}, indent=2) + "\n")

    def draw(self) -> random.Random:
        """Random numbers for the next kill: the same ones after an interruption."""
        return random.Random(f"{self.seed} {len(self.kills)} {self.removals}")


def measure_kills(folder: Path, kills: int, seed: int, quick: bool) -> dict[str, Any]:
    plan, store = write_plan(folder, QUICK if quick else MEDIUM, "kills"), folder / "killed"
    reference, result = keep_reference(plan, folder), folder / "killed.json"
    progress, port = Progress(folder / "kills.progress.json", seed), find_free_port()
    command = command_line(plan, str(store), result, f"dask://127.0.0.1:{port}")
    with start_dask(folder, port, [[], []]) as processes:
        while True:
            with open(folder / "driver.log", "ab") as log:
                driver = subprocess.Popen(
                    command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.DEVNULL, stderr=log
                )
            try:
                while driver.poll() is None and len(progress.kills) < kills:
                    kill_one(driver, processes[1:], store, progress)
                code = driver.wait()
            finally:
                driver.kill()  # if this process was interrupted
            progress.exit_codes.append(code)
            progress.write()
            print(f"run {len(progress.exit_codes)}: exit code {code}, {len(progress.kills)} kills", flush=True)
            if code == 0 and len(progress.kills) >= kills:
                break
            if code == 0:  # all finished before the last kill
                remove_entries(store, progress)
    killed = [kill["process"] for kill in progress.kills]
    return {
        "kills": {name: killed.count(name) for name in ("worker", "driver")},
        "seed": seed,
        "runs": len(progress.exit_codes),
        "exit_codes": progress.exit_codes,
        "seconds": round(progress.seconds, 1),
        "partly_written_entries": len(list(store.glob("entries/*/.*"))),
        "cells": len(read_table(result)),
        "equal_to_the_process_pool": read_table(result) == read_table(reference),
    }


def kill_one(driver: subprocess.Popen[bytes], nannies: list[Any], store: Path, progress: Progress) -> None:
    """Wait for an entry and a random time, then kill a worker or the driver, unless the driver has ended."""
    draw, before = progress.draw(), count_entries(store)
    while driver.poll() is None and count_entries(store) == before:
        time.sleep(0.1)  # a stage is finished between two kills
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(draw.uniform(0, 2))
        return
    workers = sorted(find_worker_processes(nannies))
    if draw.random() < 0.25 or not workers:
        driver.kill()
        driver.wait()
        name = "driver"
    else:
        try:
            os.kill(draw.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return
        name = "worker"
    progress.kills.append({"process": name, "entries": count_entries(store), "seconds": round(progress.seconds, 1)})
    progress.write()


def remove_entries(store: Path, progress: Progress) -> None:
    """Have some stages run again: half of the originals, and all that was made from originals."""
    progress.removals += 1
    entries = sorted(store.glob("entries/train/*"))
    for entry in progress.draw().sample(entries, len(entries) // 2):
        shutil.rmtree(entry)
    for kind in ("forget", "score"):
        shutil.rmtree(store / "entries" / kind)
    progress.write()
