"""Peak memory of a piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(name)


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Peak resident memory of this process above what it held when the block began, in MiB.

    The yielded list gets one number when the block ends; it stays empty where the system cannot tell (Linux only).
    """
    found: list[float] = []
    before = None
    with contextlib.suppress(OSError, ValueError):
        _RESET.write_text("5")  # forget the peak so far
        before = _status("VmRSS")
    yield found
    if before is not None:
        with contextlib.suppress(OSError, ValueError):
            found.append(max(0.0, _status("VmHWM") - before))
