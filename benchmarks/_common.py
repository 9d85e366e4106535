"""What the benchmarks share: the machine they ran on, paired ratios, peak memory, result files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def cpu_flags() -> set[str]:
    """Instruction-set flags of the CPU, empty where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def machine() -> dict[str, Any]:
    """Hardware, versions and date of a run."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    flags = cpu_flags()
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    scale = 1024 if sys.platform != "darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def paired(seconds: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every timed function once a round, in turn (forwards, then backwards), so that all share the noise."""
    found: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(rounds):
        names = list(seconds) if turn % 2 == 0 else list(reversed(seconds))
        for name in names:
            found[name].append(seconds[name]())
    return found


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the round-by-round ratio."""
    values = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": quarters[0], "high": quarters[2], "rounds": len(values)}


def write_result(name: str, body: dict[str, Any], path: Path | None = None) -> Path:
    """Write `benchmarks/results/<name>.json`, or another file, and print it."""
    path = path or Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, "machine": machine(), **body}, indent=2) + "\n"
    path.write_text(text)
    print(text)
    return path
