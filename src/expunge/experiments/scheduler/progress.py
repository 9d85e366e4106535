"""Report the progress of a running plan: finished stages, the current stage, remaining time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from expunge.core.errors import printable
from expunge.experiments.results.table import format_duration


@dataclasses.dataclass(frozen=True)
class PlanProgress:
    """Progress of a plan.

    Attributes:
        done, failed, total: numbers of stages.
        seconds_left: estimate from finished stages of similar cost, or None without any.
        seconds_spent: total duration of the finished stages.
    """

    done: int
    failed: int
    total: int
    seconds_left: float | None
    seconds_spent: float


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
        left = "" if progress.seconds_left is None else f"about {format_duration(progress.seconds_left)} left"
        failed = f"  {progress.failed} failed" if progress.failed else ""
        completed = progress.done + progress.failed
        self._bars.update(self._all, completed=completed, total=progress.total, note=left + failed)

    def log(self, text: str) -> None:
        text = printable(text)
        self._bars.update(self._step, visible=False)
        if self._lines and self._last is not None:
            done = f"[{self._last.done}/{self._last.total}]"
            self._console.print(f"{done} {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        note = " ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in info.items()
        )
        label, note = printable(label, lines=False), printable(note, lines=False)
        self._bars.update(self._step, description=f"  {label}", completed=done, total=total, note=note, visible=True)


def estimate_left(left: Mapping[str, int], seconds: Mapping[str, list[float]], workers: int) -> float | None:
    """Estimate the seconds for the remaining stages.

    Args:
        left: cost group (see `cost_group`) to the number of remaining stages.
        seconds: cost group to the durations of finished stages; a group without any takes the mean over all groups.
        workers: processes that share the work.
    """
    durations = [value for values in seconds.values() for value in values]
    if not durations or not left:
        return None if left else 0.0
    overall = sum(durations) / len(durations)
    total = 0.0
    for group, count in left.items():
        known = seconds.get(group) or []
        total += count * (sum(known) / len(known) if known else overall)
    return total / max(1, workers)
