"""Report the progress of a running plan: finished stages, the current stage, remaining time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from expunge.core.errors import printable
from expunge.core.show import plural
from expunge.experiments.results.table import format_duration


@dataclasses.dataclass(frozen=True)
class PlanProgress:
    """Progress of a plan.

    Attributes:
        done, failed, total: numbers of stages.
        seconds_left: forecast from finished stages (docs/plans.md, "Forecast"); None: nothing is known.
        seconds_spent: total duration of the finished stages.
        low, high: range of about 95 % of `seconds_left`.
        workers: number of processes that share the stages.
        unknown: number of stages of which nothing is known; they are not in `seconds_left`.
    """

    done: int
    failed: int
    total: int
    seconds_left: float | None
    seconds_spent: float
    low: float | None = None
    high: float | None = None
    workers: int = 1
    unknown: int = 0

    def describe(self, clock: Callable[[], float] = time.time) -> str:
        """When the plan ends, in words; empty if nothing is known.

        Args:
            clock: returns seconds since 1970.

        Example:
            >>> PlanProgress(1, 0, 3, 120.0, 60.0, 90.0, 150.0, 2).describe(lambda: 0.0).partition(", ends")[0]
            'about 2 min 0 s left (1 min 30 s to 2 min 30 s) with 2 workers'
        """
        if self.seconds_left is None:
            return ""
        found = f"about {format_duration(self.seconds_left)} left"
        if self.low is not None and self.high is not None:
            found += f" ({format_duration(self.low)} to {format_duration(self.high)})"
        if self.workers > 1:
            found += f" with {self.workers} workers"
        if self.done + self.failed < self.total:
            found += f", ends at {_format_time(clock(), self.seconds_left)}"
        if self.unknown:
            found += f", without {plural(self.unknown, 'stage')} of unknown duration"
        return found


def _format_time(now: float, later: float) -> str:
    """The local time in `later` seconds, with the date if it is another day."""
    end, today = time.localtime(now + later), time.localtime(now)
    return time.strftime("%H:%M" if end[:3] == today[:3] else "%Y-%m-%d %H:%M", end)


class Reporter(Protocol):
    """Receives the progress of a running plan."""

    def update(self, progress: PlanProgress) -> None:
        """A stage finished or failed."""

    def log(self, text: str) -> None:
        """One line about a finished or failed stage."""

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        """Progress inside the running stage."""


class NullReporter:
    """Shows nothing."""

    def update(self, progress: PlanProgress) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        pass


def wants_progress(reporter: Reporter) -> bool:
    """Whether a reporter does anything with the progress; else nothing need be forecast."""
    return getattr(type(reporter), "update", None) is not NullReporter.update


class PlanBar:
    """A progress bar on standard error: stages done, time left, current stage. Without a terminal, a line per stage."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=self._lines,
        )
        self._all = self._bars.add_task(printable(title, lines=False), total=None, note="")
        self._step = self._bars.add_task("", total=None, note="", visible=False)
        self._last: PlanProgress | None = None

    def __enter__(self) -> PlanBar:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def update(self, progress: PlanProgress) -> None:
        self._last = progress
        left = progress.describe()
        failed = f"  {progress.failed} failed" if progress.failed else ""
        completed = progress.done + progress.failed
        self._bars.update(self._all, completed=completed, total=progress.total, note=left + failed)

    def log(self, text: str) -> None:
        text = printable(text)
        self._bars.update(self._step, visible=False)
        if self._lines and self._last is not None:
            left = self._last.describe()
            text = f"[{self._last.done}/{self._last.total}] {text}{f'; {left}' if left else ''}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        note = " ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in info.items()
        )
        label, note = printable(label, lines=False), printable(note, lines=False)
        self._bars.update(self._step, description=f"  {label}", completed=done, total=total, note=note, visible=True)
