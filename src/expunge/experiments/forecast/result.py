"""What a forecast says, and how it is printed."""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.core.show import plural, repr_fields, shorten_names
from expunge.experiments.results.table import format_duration

from .history import Estimate


@dataclasses.dataclass(frozen=True)
class StageForecast:
    """What stages of one kind that are left are expected to take.

    Attributes:
        stages: the kind, in words: name, method, model, data source.
        count: number of stages.
        seconds: mean duration of one; None: unknown.
        low, high: range of about 95 % of them; None: unknown.
        memory: largest peak resident memory of a process that runs one, in bytes; None: unknown.
        basis: what the numbers rest on.
    """

    stages: str
    count: int
    seconds: float | None
    low: float | None
    high: float | None
    memory: int | None
    basis: str

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Time and memory of what is left of a plan.

    Attributes:
        stages: the stages that are left, by kind.
        workers: number of processes that share them.
        seconds: until the last of them ends, from now; None: of none anything is known.
        low, high: range of about 95 %.
        unknown: number of stages of which nothing is known; they are not in `seconds`.
        memory: the `workers` largest peaks added, in bytes; None: unknown.
    """

    stages: tuple[StageForecast, ...]
    workers: int
    seconds: float | None
    low: float | None
    high: float | None
    unknown: int
    memory: int | None

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def render(self) -> str:
        """The forecast as text: one line for each kind of stages, and one for the whole."""
        if not self.stages:
            return "no stage is left"
        known = [row for row in self.stages if row.seconds is not None]
        lines = []
        if known:
            cells = [("left", "stage", "seconds each", "memory", "basis")]
            cells += [
                (str(r.count), r.stages, format_range(r.seconds, r.low, r.high), format_memory(r.memory), r.basis)
                for r in known
            ]
            widths = [max(len(row[column]) for row in cells) for column in range(4)]
            lines = [
                "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in cells
            ]
        if self.unknown:
            names = shorten_names(row.stages for row in self.stages if row.seconds is None)
            lines.append(f"{plural(self.unknown, 'stage')} of which nothing is known: {names}")
        if self.seconds is None:
            return "\n".join([*lines, "time left: unknown"])
        unknown = ", without the stages of which nothing is known" if self.unknown else ""
        memory = "" if self.memory is None else f"; up to {format_memory(self.memory)} of memory"
        time = format_range(self.seconds, self.low, self.high)
        lines.append(f"time left: {time} with {plural(self.workers, 'worker')}{memory}{unknown}")
        return "\n".join(lines)


def join_row(stages: str, estimates: list[Estimate]) -> StageForecast:
    """The row of the stages of one kind.

    Args:
        stages: the kind.
        estimates: of each stage, with one basis.
    """
    first, count = estimates[0], len(estimates)
    peaks = [found.memory for found in estimates if found.memory is not None]
    memory = max(peaks) if peaks else None
    durations = [found.seconds for found in estimates if found.seconds is not None]
    ranges = [found.range for found in estimates if found.range is not None]
    if not durations:
        return StageForecast(stages, count, None, None, None, memory, first.basis)
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return StageForecast(stages, count, sum(durations) / count, low, high, memory, first.basis)


def format_range(seconds: float | None, low: float | None, high: float | None) -> str:
    """A duration with its range, in words.

    Example:
        >>> format_range(90.0, 70.0, 120.0), format_range(None, None, None)
        ('1 min 30 s (1 min 10 s to 2 min 0 s)', 'unknown')
    """
    if seconds is None:
        return "unknown"
    shown = _format_seconds(seconds)
    if low is None or high is None:
        return shown
    return f"{shown} ({_format_seconds(low)} to {_format_seconds(high)})"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 9.5 else format_duration(seconds)


def format_memory(size: int | None) -> str:
    """Bytes in MiB, or `?`."""
    return "?" if size is None else f"{size / 2**20:,.0f} MiB"
