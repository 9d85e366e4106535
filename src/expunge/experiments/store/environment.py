"""Describe the machine and the software: processor, cores, memory, versions. Does not import torch."""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def hardware() -> dict[str, Any]:
    """Processor model, cores that this process may use, memory in GiB, operating system; and GPUs, if it has used any.

    The key `accelerators` is absent if the process has not used CUDA: a GPU that did nothing says nothing about a run.
    """
    names = _accelerators()
    return {**_machine(), "accelerators": names} if names else dict(_machine())


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


@functools.cache
def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": count_cores(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect the results, from their installed metadata."""
    found = {"python": platform.python_version()}
    for name in ("expunge", "torch", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a distribution"
    return found
