"""What the parts start around a plan: Dask as its command line starts it, network namespaces, a server of S3."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .plans import ONE_THREAD


def find_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def start_dask(folder: Path, port: int, wrap: list[list[str]], host: str = "127.0.0.1") -> Iterator[list[Any]]:
    """A scheduler, and a worker with a nanny for each command prefix; yields their processes."""
    python = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    first = wrap[0]
    environment = {**os.environ, **ONE_THREAD}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*first, *python, "--host", host, "--port", str(port), "--no-dashboard"],
                                env=environment, **options)]  # fmt: skip
    try:
        for number, prefix in enumerate(wrap):
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"{host}:{port}", "--nthreads", "1"]
            worker += ["--no-dashboard", "--local-directory", str(folder / f"dask-{number}"), "--name", f"w{number}"]
            own = {**environment, "EXPUNGE_CACHE_DIR": str(folder / f"cache-{number}")}
            started.append(subprocess.Popen([*prefix, *worker], env=own, **options))
        yield started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def find_worker_processes(nannies: list[Any]) -> list[int]:
    """Process ids of the workers that nannies have started."""
    import psutil

    found = []
    for nanny in nannies:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(nanny.pid).children(recursive=True)
            found += [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    return found


@contextlib.contextmanager
def two_namespaces() -> Iterator[list[list[str]]]:
    """Two network namespaces joined by a pair of virtual interfaces; yields the command prefixes."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SystemExit("network namespaces need root, and the program ip")
    names = [f"expunge-{os.getpid()}-{end}" for end in "ab"]
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [
        ["ip", "link", "add", "exp-a", "netns", names[0], "type", "veth", "peer", "name", "exp-b", "netns", names[1]]
    ]
    for name, device, number in zip(names, ("exp-a", "exp-b"), (1, 2), strict=True):
        prefix = ["ip", "-n", name]
        commands += [[*prefix, "addr", "add", f"10.77.0.{number}/24", "dev", device]]
        commands += [[*prefix, "link", "set", device, "up"], [*prefix, "link", "set", "lo", "up"]]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextlib.contextmanager
def start_s3(prefix: list[str], host: str, port: int) -> Iterator[None]:
    """moto's S3 server with a bucket `store`; the environment names it, with made-up credentials."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "made-up-id", "AWS_SECRET_ACCESS_KEY": "made-up-secret"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    code = f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"
    server = subprocess.Popen(
        [*prefix, sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='store')"
    try:
        for _ in range(60):
            time.sleep(1)
            if (
                subprocess.run([*prefix, sys.executable, "-c", make], stderr=subprocess.DEVNULL, check=False).returncode
                == 0
            ):
                break
        yield
    finally:
        server.terminate()
        server.wait()
