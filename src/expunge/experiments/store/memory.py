"""The peak memory of a part of a run, in a process that lives longer. Does not import torch.

Linux keeps the peak resident memory of a process (`VmHWM`) and resets it on request (`/proc/self/clear_refs`, see
proc(5)). Other systems keep only the peak since the start of the process, which is that of the part if it grew.
"""

from __future__ import annotations

import resource
import sys
import threading
from types import TracebackType
from typing import Any

_STATUS, _CLEAR = "/proc/self/status", "/proc/self/clear_refs"
#: What resets the peak resident memory when it is written to `_CLEAR`.
_RESET = "5"


class PeakMemory:
    """Measures the peak resident memory of this process while a block runs, and that of a GPU.

    Blocks may be nested or run in several threads: each has the peak of the whole process during its own time. Memory
    of other processes, such as those that read streamed records, does not count.

    Example:
        >>> with PeakMemory() as memory:
        ...     block = bytes(64 * 2**20)
        >>> memory.to_json()["resident"] > 64 * 2**20
        True
    """

    def __init__(self) -> None:
        self._before = self._peak = 0
        self._exact = False
        self._resident: int | None = None
        self._gpu: int | None = None

    def __enter__(self) -> PeakMemory:
        with _LOCK:
            _note_peaks()
            self._exact = _reset_peak()
            self._before = 0 if self._exact else _read_peak()
            _ACTIVE.append(self)
        cuda = _find_cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _LOCK:
            _note_peaks()
            _ACTIVE.remove(self)
        if self._exact or self._peak > self._before:
            self._resident = self._peak
        cuda = _find_cuda()
        if cuda is not None:
            self._gpu = int(cuda.max_memory_allocated())

    def to_json(self) -> dict[str, Any]:
        """`resident`: bytes, or None if the system does not tell; `gpu`: bytes that torch allocated, if it used one."""
        return {"resident": self._resident, **({} if self._gpu is None else {"gpu": self._gpu})}


_LOCK = threading.Lock()
_ACTIVE: list[PeakMemory] = []


def _note_peaks() -> None:
    """Give the peak so far to every open block, before it is reset for another."""
    peak = _read_peak() if _ACTIVE else 0
    for block in _ACTIVE:
        block._peak = max(block._peak, peak)


def _reset_peak() -> bool:
    """Let the peak begin again at what is resident now; False if the system cannot."""
    try:
        with open(_CLEAR, "w", encoding="ascii") as file:
            file.write(_RESET)
    except OSError:
        return False
    return True


def _read_peak() -> int:
    """Peak resident bytes of this process since the last reset."""
    try:
        with open(_STATUS, encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _find_cuda() -> Any:
    """`torch.cuda`, if this process uses a GPU already."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
