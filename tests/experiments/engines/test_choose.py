"""`--scheduler`: names and addresses that mean nothing are refused at once, with the reason."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Lab

from expunge.cli.app import run
from expunge.core.errors import ConfigError
from expunge.experiments import load_plan, run_plan
from expunge.experiments.scheduler.engines import dask_engine
from expunge.experiments.scheduler.engines.base import EngineError, Task, find_missing_resources
from expunge.experiments.scheduler.engines.choose import open_engine
from expunge.experiments.scheduler.progress import NullReporter


def choose(scheduler: str, workers: int = 1):
    return open_engine(scheduler, workers, NullReporter())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("slurm", "there is no scheduler 'slurm'"),
        ("dsak", "did you mean 'dask'"),
        ("http://host:80", r"there is no scheduler 'http://\.\.\.'"),
        ("processes://host:1", r"there is no scheduler"),
        ("dask+tls", "there is no scheduler"),
        ("dask://", "the URL names no place"),
        ("dask://host", "an address is HOST:PORT"),
        ("dask://host:0", "an address is HOST:PORT"),
        ("ray://host:port", "an address is HOST:PORT"),
        ("ray://host:10001/path", "an address is HOST:PORT"),
        ("dask://me:secret@host:8786", "must not have a user or a password"),
        ("dask://host:8786?token=secret", r"must not have keys \(\?\.\.\.\)"),
    ],
)
def test_what_means_nothing_is_refused(scheduler: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose(scheduler)
    assert "secret" not in str(caught.value)


def test_the_default_is_the_process_pool() -> None:
    assert choose("processes", 4) is None


@pytest.mark.parametrize(("scheduler", "library"), [("dask", "distributed"), ("ray", "ray")])
def test_an_extra_that_is_not_installed(scheduler: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf'is not installed\n  hint: pip install "expunge\[{scheduler}\]"'):
        choose(scheduler)


def test_workers_of_a_cluster_are_started_elsewhere() -> None:
    with pytest.raises(ConfigError, match="are started elsewhere"):
        choose("dask://127.0.0.1:8786", 2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(("scheme", "library"), [("dask", "distributed"), ("ray", "ray")])
def test_a_scheduler_that_does_not_answer(lab: Lab, scheme: str, library: str) -> None:
    pytest.importorskip(library)
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"nothing answers there \(Connection refused\)"):
        run_plan(
            load_plan(lab.plan), store=lab.store, stages=lab.stages, scheduler=f"{scheme}://127.0.0.1:{free_port()}"
        )
    assert time.monotonic() - started < 90
    assert lab.started() == []


@contextlib.contextmanager
def another_server(greeting: bytes) -> Iterator[int]:
    """The port of a program that sends this to whoever connects, and then waits."""
    held = []

    def serve() -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                connection, _ = listener.accept()
                connection.sendall(greeting)
                held.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in held:
        connection.close()


@pytest.mark.parametrize("greeting", [b"", b"220", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(8)])
def test_another_program_at_the_port_of_dask(lab: Lab, greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of Dask would wait without end for a greeting, as from a scheduler with TLS, or allocate 10^18 bytes."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_engine, "TIMEOUT", 0.2)
    with another_server(greeting) as port, pytest.raises(EngineError, match="is not a Dask scheduler"):
        run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, scheduler=f"dask://127.0.0.1:{port}")
    assert lab.started() == []


def test_the_command_line_says_it(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.root)
    assert run(["bench", "run", str(lab.plan), "--scheduler", "dask://me:secret@host:1"]) == 2
    assert run(["bench", "run", str(lab.plan), "--store", "s3://ID:secret@bucket/x"]) == 2
    error = capsys.readouterr().err
    assert error.count("must not have a user or a password") == 2
    assert "secret" not in error
    assert not Path(".expunge").exists()


def test_purge_says_that_it_searches_no_url(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.root / "ids.txt").write_text("a\n")
    assert run(["purge", "--ids", str(lab.root / "ids.txt"), "--store", "s3://bucket/store"]) == 2
    assert "only folders are searched, not a URL" in capsys.readouterr().err


def test_resources_that_no_worker_has() -> None:
    task = Task("1", "train digits", "", (), 0, {"gpu": 1.0, "memory": 4.0})
    assert find_missing_resources([task], [{"gpu": 1.0}, {"memory": 8.0}]) is not None  # each has a part only
    assert find_missing_resources([task], [{}, {"gpu": 2.0, "memory": 4.0}]) is None
