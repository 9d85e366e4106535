"""Progress of long computations: a callback, and a bar with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expunge.core.errors import printable

#: Progress callback: a label, the number of records done, the total number of records, and numbers to display.
Progress = Callable[[str, int, int, dict[str, Any]], None]


class ProgressBar:
    """A rich progress bar on standard error; use it as a context manager and pass it as `progress`."""

    def __init__(self, *, transient: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}", markup=False),
            console=Console(stderr=True),
            transient=transient,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressBar:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def __call__(self, label: str, done: int, total: int, info: dict[str, Any]) -> None:
        label = printable(label, lines=False)
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, rate="", info="")
        text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items())
        text = printable(text, lines=False)
        task = self._tasks[label]
        speed = self._bars.tasks[task].speed
        rate = "" if not speed else f"{speed:,.0f} records/s"
        self._bars.update(task, completed=done, total=total, info=text, rate=rate)
        if done >= total:
            self._bars.update(task, visible=False)
