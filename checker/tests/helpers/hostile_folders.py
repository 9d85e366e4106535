"""Folders that try to exhaust the machine, and a run of the command in a process of its own that is watched."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from forging import forged, operation, save

SOURCE = Path(__file__).parents[2] / "src"
MIB = 2**20


@dataclasses.dataclass
class Ran:
    """Result of a command: exit code, output, seconds, peak resident memory in MiB."""

    code: int
    out: str
    err: str
    seconds: float
    memory: float


def run(
    *arguments: str | Path, timeout: float = 60, address_space: int = 8 * 1024 * MIB, cwd: Path | None = None
) -> Ran:
    """Run `expunge-check` in a separate process with limited address space."""
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from expunge_check.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "status = Path('/proc/self/status')\n"
        "found = re.search(r'VmHWM:\\s*(\\d+)', status.read_text()) if status.exists() else None\n"
        "print('peak', found.group(1) if found else 0, file=sys.stderr)\n"
        "raise SystemExit(code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.environ.get("CHECKER_SOURCE", str(SOURCE)), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True,
        timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space)),
    )  # fmt: skip
    *err, last = done.stderr.rstrip("\n").split("\n") if "peak" in done.stderr else [done.stderr, "peak 0"]
    return Ran(done.returncode, done.stdout, "\n".join(err), time.monotonic() - start, int(last.split()[1]) / 1024)


def run_in_turn(folders: list[Path], timeout: float = 60, address_space: int = 8 * 1024 * MIB) -> list[Ran]:
    """Run `expunge-check` on each folder, one after the other in one separate process with limited address space."""
    code = (
        "import contextlib, io, json, sys\n"
        "from expunge_check.cli import main\n"
        "found = []\n"
        "for folder in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        code = main([folder])\n"
        "    found.append([code, out.getvalue(), err.getvalue()])\n"
        "print(json.dumps(found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.environ.get("CHECKER_SOURCE", str(SOURCE)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)], env=environment, capture_output=True, text=True,
        timeout=timeout, check=True, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space)),
    )  # fmt: skip
    return [Ran(code, out, err, 0.0, 0.0) for code, out, err in json.loads(done.stdout)]


def doubling(place: Path, times: int = 29) -> Path:
    """Return a network that repeatedly concatenates its input with itself and then truncates it."""
    operations = [operation("input", [], [2])]
    operations += [operation("concat", [i, i], [2 ** (i + 2)], axis=0) for i in range(times - 1)]
    operations.append(operation("slice", [times - 1], [2], axis=0, start=0, stop=2, step=1))
    operations.append(operation("relu", [times], [2], slope=0.0))
    return written_blindly(place, operations, {}, [[0, 1]], logits=0.5)


def wide_kernel(place: Path, places: int = 5_000_001) -> Path:
    """An average pool whose window has five million places."""
    pool = operation(
        "average_pool",
        [0],
        [2, 1],
        kernel=[places],
        stride=[1],
        padding=[places // 2],
        count_padding=True,
        adaptive=False,
    )
    operations = [operation("input", [], [2, 1]), pool, operation("reshape", [1], [2])]
    return written_blindly(place, [*operations, operation("relu", [2], [2], slope=0.0)], {}, [[1, 1]])


def many_classes(place: Path, patches: int = 2000, classes: int = 2000, width: int = 64) -> Path:
    """Many patches of many classes."""
    operations = [
        operation("input", [], [2]),
        operation("linear", [0], [width], {"weight": "a"}),
        operation("relu", [1], [width], slope=0.0),
        operation("linear", [2], [classes], {"weight": "b"}),
    ]
    tensors = {"a": np.eye(width, 2), "b": np.zeros((classes, width))}
    return written_blindly(place, operations, tensors, (np.arange(patches)[:, None] >> np.arange(width)) & 1)


def long_list(place: Path, length: int = 20_000, patches: int = 2000) -> Path:
    """Return a list of many small operations with many patches."""
    operations = [operation("input", [], [11])]
    operations += [operation("reshape", [i], [11]) for i in range(length)]
    bits = (np.arange(patches)[:, None] >> np.arange(11)) & 1
    return written_blindly(place, [*operations, operation("relu", [length], [11], slope=0.0)], {}, bits)


def shared_weight(place: Path, times: int = 2000, width: int = 512) -> Path:
    """Return a network in which many operations use (and would copy) one weight."""
    operations = [operation("input", [], [width])]
    operations += [operation("linear", [i], [width], {"weight": "w"}) for i in range(times)]
    operations.append(operation("slice", [times], [2], axis=0, start=0, stop=2, step=1))
    operations.append(operation("relu", [times + 1], [2], slope=0.0))
    return written_blindly(place, operations, {"w": np.zeros((width, width))}, [[1, 1]])


#: Folders beyond the default limits, and the option that each refusal names.
HOSTILE = {
    doubling: "--max-memory",
    wide_kernel: "--max-work",
    many_classes: "--max-work",
    long_list: "--max-work",
    shared_weight: "--max-memory",
}


def written_blindly(place: Path, operations: Any, tensors: Any, bits: Any, logits: float = 0.0) -> Path:
    """Write a folder with given recorded logits, without computing anything."""
    classes = operations[-1]["shape"][0]
    return save(forged(operations, tensors, bits, logits=np.full((1, classes), logits)), place)
