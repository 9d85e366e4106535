"""A store that is full or read-only: one error that names it, in one process and in several; reading it works."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from laboratory import Lab

from expunge.core.errors import ExpungeError, StoreError
from expunge.experiments import get_plan_status, load_plan, run_plan


def go(lab: Lab, **options: Any) -> Any:
    return run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_named_and_the_run_can_go_on(lab: Lab, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(lab.root))
    lab.behave("if name == 'prune': raise OSError(28, 'No space left on device', '/full/file')")
    with pytest.raises(ExpungeError, match=r"store/entries/prune/.*the disk is full"):
        go(lab, workers=workers)
    assert list(lab.store.glob("failures/*")) == []
    assert list(lab.store.glob("entries/*/.*")) == []
    lab.behave("pass")
    assert go(lab, workers=workers).exit_code == 0


def test_a_full_disk_that_takes_no_log_either(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers write to their logs is lost: /dev/full has no space."""
    monkeypatch.syspath_prepend(str(lab.root))
    (lab.store / "logs").mkdir(parents=True)
    for number in range(2):
        (lab.store / "logs" / f"worker-{number}.log").symlink_to("/dev/full")
    lab.behave("if name == 'train': raise OSError(28, 'No space left on device', '/full/file')")
    with pytest.raises(ExpungeError, match=r"store/entries/train/.*the disk is full"):
        go(lab, workers=2)


def test_workers_without_a_place_for_logs(lab: Lab) -> None:
    lab.store.mkdir()
    (lab.store / "logs").write_text("a file")
    with pytest.raises(StoreError, match=r"store: the store cannot be written \(File exists\)"):
        go(lab, workers=2)


def test_the_status_of_a_read_only_store(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that have been begun have a lock file, which the status looks at and does not open for writing."""
    lab.behave("if name == 'prune': raise ValueError('broken')")
    go(lab)
    true = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT) and str(path).startswith(str(lab.store)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return true(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    status = get_plan_status(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    assert sum(counts["failed"] for counts in status.stages.values()) > 0
    with pytest.raises(StoreError, match=r"store: the store cannot be written \(Read-only file system\)"):
        go(lab)
