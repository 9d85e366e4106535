"""What an engine is: it runs tasks in the order of their dependencies and yields their results."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from expunge.core.errors import ExpungeError
from expunge.core.show import repr_fields

#: How often an engine starts a task again whose worker ended, or that could not reach the store.
RETRIES = 3
#: Seconds within which a scheduler must answer.
TIMEOUT = 10.0


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage as a task of an engine.

    Attributes:
        id: of the node.
        title: describes it in the displays of the engine.
        message: JSON text for `run_stage`.
        needs: ids of the tasks whose results it gets, in order; they are before it in the sequence of tasks.
        order: place in the plan; where an engine has priorities, tasks with a smaller one go first.
        resources: what it needs (`Plan.resources`): `gpu`, `cpu`, `memory` in bytes, or a resource with another name.
    """

    id: str
    title: str
    message: str
    needs: tuple[str, ...]
    order: int
    resources: Mapping[str, float]

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a task.

    Attributes:
        id: of the task.
        result: what `run_stage` returned; empty if the engine gave up.
        error: why the engine gave up: a class of its errors and its message.
    """

    id: str
    result: str = ""
    error: str = ""

    __repr__ = repr_fields


class Engine(Protocol):
    """Runs tasks. Dependencies, retries, priorities and resources are those of the engine.

    Attributes:
        name: for messages; an address without credentials.
    """

    name: str

    def execute(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        """Submit all tasks, and yield each when it is finished; what is left is cancelled when the iterator is closed.

        Raises:
            ExpungeError: the engine cannot be reached, or has no worker with the resources that a task needs.
        """

    def count_workers(self) -> int:
        """The number of tasks that run at the same time, as far as the engine says; 1 if it does not."""


class EngineError(ExpungeError):
    """A scheduler cannot be reached, refuses a plan, or lost its workers."""


def find_missing_resources(tasks: Sequence[Task], offers: Sequence[Mapping[str, float]]) -> str | None:
    """Describe the first task that needs more than any worker offers; None if there is none.

    Args:
        tasks: the tasks.
        offers: resources of each worker.

    Example:
        >>> task = Task("1", "train digits", "", (), 0, {"gpu": 1.0})
        >>> find_missing_resources([task], [{"cpu": 2.0}])
        'train digits needs gpu: 1, and no worker has that'
    """
    for task in tasks:
        if not any(all(offer.get(key, 0.0) >= value for key, value in task.resources.items()) for offer in offers):
            needs = ", ".join(f"{key}: {value:g}" for key, value in task.resources.items())
            return f"{task.title} needs {needs}, and no worker has that"
    return None


def check_port(address: str, name: str, hint: str) -> None:
    """Raise EngineError if nothing listens at `host:port`: the libraries would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT).close()
    except OSError as error:
        raise EngineError(f"nothing answers there ({error.strerror or error})", where=name, hint=hint) from error
