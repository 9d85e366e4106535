"""What a running plan shows: stages done, what is being worked on, time left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from expunge.core.errors import printable
from expunge.experiments.results.table import duration


@dataclasses.dataclass(frozen=True)
class Tally:
    """Where a plan stands.

    Attributes:
        done, failed, total: stages.
        seconds_left: estimate from the stages of the same kind that are finished, or None where nothing is known.
        spent: seconds that the finished stages took, added up.
    """

    done: int
    failed: int
    total: int
    seconds_left: float | None
    spent: float


class Reporter(Protocol):
    """Told how a plan goes on."""

    def tally(self, tally: Tally) -> None: ...

    def event(self, text: str) -> None: ...

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None: ...


class Silent:
    """Shows nothing."""

    def tally(self, tally: Tally) -> None:
        pass

    def event(self, text: str) -> None:
        pass

    def step(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        pass


class PlanBar:
    """A bar on standard error: stages done, time left, the stage at hand; one line a stage if that is no terminal."""

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
        self._last: Tally | None = None

    def __enter__(self) -> PlanBar:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def tally(self, tally: Tally) -> None:
        self._last = tally
        left = "" if tally.seconds_left is None else f"about {duration(tally.seconds_left)} left"
        bad = f"  {tally.failed} failed" if tally.failed else ""
        self._bars.update(self._all, completed=tally.done + tally.failed, total=tally.total, note=left + bad)

    def event(self, text: str) -> None:
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
    """Seconds for the stages that are left, from the mean of finished stages of the same kind (else of any kind)."""
    every = [value for values in seconds.values() for value in values]
    if not every or not left:
        return None if left else 0.0
    overall = sum(every) / len(every)
    total = 0.0
    for kind, count in left.items():
        known = seconds.get(kind) or []
        total += count * (sum(known) / len(known) if known else overall)
    return total / max(1, workers)
