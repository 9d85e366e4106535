"""Dask: tasks run on the workers of a `distributed` scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from expunge.core.errors import ConfigError
from expunge.experiments.scheduler.progress import Reporter
from expunge.experiments.store.addresses import scrub

from .base import RETRIES, TIMEOUT, EngineError, Finished, Task, check_port, find_missing_resources
from .task import run_stage

INSTALL = 'pip install "expunge[dask]"'
#: Names of the resources that workers declare: `dask worker --resources "GPU=1 MEMORY=16e9"`.
_NAMES = {"gpu": "GPU", "memory": "MEMORY", "cpu": "CPU"}

#: What a listener of Dask sends first: the bytes of its greeting (about 200), as an unsigned integer.
_LENGTH = struct.Struct("Q")
_LONGEST_GREETING = 2**20


class DaskEngine:
    """Runs tasks on a Dask cluster.

    Args:
        address: `host:8786` of a scheduler; empty: a cluster of processes on this machine, for one run.
        workers: processes of the cluster on this machine, with one thread each.
        secure: use TLS, as the configuration of Dask sets it up.
        reporter: receives notes.
    """

    def __init__(self, address: str, workers: int, reporter: Reporter, *, secure: bool = False) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise ConfigError("Dask is not installed", where="scheduler dask", hint=INSTALL) from error
        self.name = f"dask://{address}" if address else "dask"
        self._address, self._workers, self._secure = address, workers, secure
        self._reporter = reporter
        self._client: Any = None

    def count_workers(self) -> int:
        found = 0 if self._client is None else sum(self._client.nthreads().values())
        return max(1, found)

    def execute(self, tasks: Sequence[Task]) -> Iterator[Finished]:
        import distributed

        with self._connect() as client:
            self._client = client
            self._check_workers(client, tasks)
            run = os.urandom(4).hex()
            futures: dict[str, Any] = {}
            for task in tasks:
                futures[task.id] = client.submit(
                    run_stage,
                    task.message,
                    *(futures[i] for i in task.needs),
                    key=f"{task.title.partition(' ')[0]}-{run}-{task.id[:16]}",
                    pure=False,
                    retries=RETRIES,
                    priority=-task.order,
                    resources={_NAMES.get(name, name): value for name, value in task.resources.items()} or None,
                )
            ids = {future.key: task_id for task_id, future in futures.items()}
            try:
                for future in distributed.as_completed(list(futures.values()), loop=client.loop, raise_errors=False):
                    task_id = ids[future.key]
                    if future.status == "finished":
                        yield Finished(task_id, result=future.result())
                    elif future.status == "error":
                        error = future.exception()
                        yield Finished(task_id, error=f"{type(error).__name__}: {error}")
                    else:
                        raise EngineError(
                            "the connection to the scheduler was lost", where=self.name,
                            hint="completed stages are in the store; run the same command again to resume",
                        )  # fmt: skip
            finally:
                with contextlib.suppress(Exception):
                    client.cancel(list(futures.values()))
                self._client = None

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        import distributed

        quiet = logging.getLogger("distributed")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # each lost connection is a line of it
        cluster = client = None
        try:
            if self._address:
                check_port(
                    self._address, self.name, f"start one: dask scheduler --port {self._address.rpartition(':')[2]}"
                )
                if not self._secure and not _is_dask(self._address):
                    raise EngineError(
                        "what answers there is not a Dask scheduler", where=self.name,
                        hint="check host and port (8786, not that of the dashboard); dask+tls:// is for one with TLS",
                    )  # fmt: skip
                target: Any = f"{'tls' if self._secure else 'tcp'}://{self._address}"
            else:
                cluster = target = distributed.LocalCluster(
                    n_workers=self._workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
                )
            try:
                client = distributed.Client(target, timeout=TIMEOUT, set_as_default=False, name="expunge")
            except Exception as error:
                raise EngineError(
                    f"no Dask scheduler answers ({type(error).__name__}: {scrub(error)})", where=self.name,
                    hint="check host and port, and that its version of Dask is that of this process",
                ) from error  # fmt: skip
            yield client
        finally:
            for opened in (client, cluster):
                if opened is not None:
                    with contextlib.suppress(Exception):
                        opened.close(timeout=TIMEOUT)
            quiet.setLevel(level)

    def _check_workers(self, client: Any, tasks: Sequence[Task]) -> None:
        """Raise if no worker has the resources of a task, or one cannot import it: the plan would wait without end."""
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            self._reporter.log(f"{self.name}: no worker has come yet; waiting")
            client.wait_for_workers(1)
            workers = client.scheduler_info(n_workers=-1)["workers"]
        names = {value: key for key, value in _NAMES.items()}
        offers = [
            {names.get(key, key): value for key, value in worker["resources"].items()} for worker in workers.values()
        ]
        missing = find_missing_resources(tasks, offers)
        if missing is not None:
            raise EngineError(
                missing, where=self.name,
                hint='workers declare what they have: dask worker ... --resources "GPU=1 MEMORY=16e9"',
            )  # fmt: skip
        # Of the standard library, so that each of them can read the call itself.
        module = f"{run_stage.__module__}:__name__"
        answers = {f"the worker at {name}": answer for name, answer in
                   client.run(pkgutil.resolve_name, module, on_error="return").items()}  # fmt: skip
        try:
            client.run_on_scheduler(pkgutil.resolve_name, module)
        except Exception as error:
            answers["the scheduler"] = error
        for who, answer in answers.items():
            if isinstance(answer, ImportError):
                raise EngineError(
                    f"{who} cannot import expunge ({type(answer).__name__}: {scrub(answer)})", where=self.name,
                    hint="install the packages of this machine where the scheduler and the workers run",
                )  # fmt: skip


def _is_dask(address: str) -> bool:
    """Whether a listener of Dask is at `host:port`: it sends the length of its greeting at once.

    A client of Dask would wait for that without end, or allocate what another program's answer means as a length.
    """
    host, _, port = address.rpartition(":")
    content = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT) as connection:
            while len(content) < _LENGTH.size:
                part = connection.recv(_LENGTH.size - len(content))
                if not part:
                    return False
                content += part
    except OSError:
        return False
    return bool(0 < _LENGTH.unpack(content)[0] <= _LONGEST_GREETING)
