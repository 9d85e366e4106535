"""Stores on S3: moto's server on this machine, with the clients that a user has."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import Lab

from expunge.core.errors import StoreError
from expunge.experiments import get_plan_status, load_plan, run_plan
from expunge.experiments.store.shared import open_store

pytest.importorskip("s3fs")
pytest.importorskip("flask")
server = pytest.importorskip("moto.server")
ID, SECRET = "made-up-access-id", "made-up-secret-key"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in an empty bucket."""
    import fsspec

    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")  # servers of a process share
    urllib.request.urlopen(reset, timeout=60).close()  # what they store
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("studies")
    yield "s3://studies/store"
    running.stop()


def table(run: Any) -> Any:
    return [(cell["labels"], cell["state"], cell["scores"]) for cell in run.results["cells"]]


def test_a_plan_on_s3(lab: Lab, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    plan = load_plan(lab.plan)
    first = run_plan(plan, store=bucket, stages=lab.stages)
    assert first.computed == 29
    assert table(first) == table(run_plan(plan, store=lab.store, stages=lab.stages))
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(lab.root / "another machine"))
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    entry = files.ls("studies/store/entries/score", detail=False)[0]
    name = json.loads(files.cat_file(f"{entry}/entry.json"))["files"]["scores.json"]["sha256"]
    files.pipe_file(f"{entry}/{name}", files.cat_file(f"{entry}/{name}").replace(b"fake", b"fate"))
    again = run_plan(plan, store=bucket, stages=lab.stages)
    assert len(lab.started()) == 29 + 29 + 1  # both stores, and the one that was damaged
    assert table(again) == table(first)
    assert get_plan_status(plan, store=bucket, stages=lab.stages).finished
    texts = [path.read_text() for path in lab.root.rglob("*.json")]
    texts += [files.cat_file(path).decode(errors="replace") for path in files.find("studies/store")]
    assert not any(ID in text or SECRET in text for text in texts)


def test_without_credentials(lab: Lab, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(lab.root))
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"the store cannot be read \(NoCredentialsError") as caught:
        run_plan(load_plan(lab.plan), store=bucket, stages=lab.stages)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert time.monotonic() - started < 120
    assert lab.started() == []


def test_a_bucket_that_does_not_exist(lab: Lab, bucket: str) -> None:
    with pytest.raises(StoreError, match=r"the store cannot be written .*bucket does not exist"):
        run_plan(load_plan(lab.plan), store="s3://elsewhere/store", stages=lab.stages)
    assert not open_store("s3://elsewhere/store").exists()
