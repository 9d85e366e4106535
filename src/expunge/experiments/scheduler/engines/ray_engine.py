"""Ray: tasks run on a Ray cluster, or on workers that Ray starts on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.experiments.store.addresses import scrub

from .base import RETRIES, EngineError, Finished, Task, check_port, find_missing_resources
from .task import run_stage

INSTALL = 'pip install "expunge[ray]"'


class RayEngine:
    """Runs tasks on Ray.

    Args:
        address: `host:10001` of a Ray client server; empty: Ray as this process has started it, else on this machine.
        workers: tasks at a time of Ray on this machine.
    """

    def __init__(self, address: str, workers: int) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError("Ray is not installed", where="scheduler ray", hint=INSTALL) from error
        self.name = f"ray://{address}" if address else "ray"
        self._address, self._workers = address, workers
        self._slots = 1

    def count_workers(self) -> int:
        return self._slots

    def execute(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        import ray

        with self._connect():
            offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._slots = max(1, int(sum(offer.get("CPU", 0) for offer in offers)))
            missing = find_missing_resources(tasks, [_rename(offer) for offer in offers])
            if missing is not None:
                raise EngineError(
                    missing, where=self.name, hint="start Ray with it: ray start --num-gpus=1, for example"
                )
            function = ray.remote(run_stage)
            refs: dict[str, Any] = {}
            for task in tasks:
                chosen = function.options(**_list_options(task))
                refs[task.id] = chosen.remote(task.message, *(refs[i] for i in task.needs))
            ids = {ref: task_id for task_id, ref in refs.items()}
            waiting = list(ids)
            try:
                while waiting:
                    ray.wait(waiting, num_returns=1)
                    ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
                    for ref in ready:
                        yield _get(ids[ref], ref)
            finally:
                for ref in waiting:
                    with contextlib.suppress(Exception):
                        ray.cancel(ref)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[None]:
        import ray

        if not self._address and ray.is_initialized():
            yield
            return
        if self._address:
            check_port(self._address, self.name, "start Ray on that machine: ray start --head")
            options: dict[str, Any] = {"address": f"ray://{self._address}"}
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send a report to its developers
            options = {"num_cpus": self._workers, "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise EngineError(
                f"no Ray answers ({type(error).__name__}: {scrub(error)})", where=self.name,
                hint="check host and port (10001, that of the client server), and that its versions of Ray and Python "
                "are those of this process",
            ) from error  # fmt: skip
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                ray.shutdown()


def _rename(resources: dict[str, float]) -> dict[str, float]:
    return {{"CPU": "cpu", "GPU": "gpu"}.get(name, name): value for name, value in resources.items()}


def _list_options(task: Task) -> dict[str, Any]:
    """Options of a task: one CPU unless the plan says otherwise."""
    own = dict(task.resources)
    found: dict[str, Any] = {
        "num_cpus": own.pop("cpu", 1),
        "max_retries": RETRIES,
        "retry_exceptions": [ConnectionError],
        "name": task.title,
    }
    if "gpu" in own:
        found["num_gpus"] = own.pop("gpu")
    if "memory" in own:
        found["memory"] = int(own.pop("memory"))
    if own:
        found["resources"] = own
    return found


def _get(task_id: str, ref: Any) -> Finished:
    import ray

    try:
        return Finished(task_id, result=ray.get(ref))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        return Finished(task_id, error=f"{type(cause).__name__}: {cause}")
    except Exception as error:  # of the class that the task raised
        return Finished(task_id, error=f"{type(error).__name__}: {error}")
