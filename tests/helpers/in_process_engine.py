"""An engine in this process, which runs tasks in order: what the driver and the task do, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from expunge.experiments.scheduler.engines.base import Finished, Task
from expunge.experiments.scheduler.engines.task import run_stage


class InProcessEngine:
    """Runs each task when its turn comes; `before` may break something, or change the message."""

    name = "in process"

    def __init__(self, before: Callable[[Task], str] | None = None) -> None:
        self.before = before or (lambda task: task.message)
        self.tasks: list[Task] = []

    def count_workers(self) -> int:
        return 1

    def execute(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        results: dict[str, Finished] = {}
        for task in tasks:
            self.tasks.append(task)
            given = [results[i] for i in task.needs]  # an engine gives results in the order of the dependencies
            error = next((one.error for one in given if one.error), "")
            if not error:
                try:
                    text = run_stage(self.before(task), *(one.result for one in given))
                    assert isinstance(json.loads(text), dict)
                    results[task.id] = Finished(task.id, result=text)
                except ConnectionError as failure:
                    error = f"ConnectionError: {failure}"
            if error:
                results[task.id] = Finished(task.id, error=error)
            yield results[task.id]
