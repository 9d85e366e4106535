"""Every method either shares its batches among processes, or says why it runs on one; no process is started here."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method, method_names
from expunge.methods.registry import method_class
from expunge.training import Runtime
from expunge.training.processes import team
from expunge.training.processes.sending import unpack

NAMES = method_names()
#: Methods for whole classes, and options with which a method trains quickly.
WHOLE_CLASS = ("mask-logit", "Boundary Expand", "UNSIR")
OPTIONS: dict[str, dict[str, Any]] = {"MSG": {"layers": ("linear",)}, "L2UL": {"examples": 2, "attack_steps": 2}}


class Started(Exception):
    """The helpers of a run would be started now."""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[team.Job]:
    """The jobs that would be sent, made again from their bytes."""
    found: list[team.Job] = []

    def start(self: team.Team, packed: bytes, threads: int) -> None:
        found.append(unpack(packed))
        raise Started

    monkeypatch.setattr(team.Team, "_start", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return found


def forget(name: str, trained: Trained, request: ForgetRequest, records: Records) -> bool:
    """Run a method with two processes; whether it got as far as starting them."""
    fields = {field.name for field in dataclasses.fields(method_class(name))}  # type: ignore[arg-type]
    quick = {key: value for key, value in {"epochs": 1, "batch_size": 16, "budget": 2}.items() if key in fields}
    context = Context(records, Runtime("cpu", devices=2), seed=1)
    try:
        get_method(name, **{**quick, **OPTIONS.get(name, {})}).forget(trained, request, context)
    except Started:
        return True
    return False


@pytest.mark.parametrize("name", [n for n in NAMES if not method_class(n).trains])
def test_each_method(name: str, mlp: Trained, request_20: ForgetRequest, digits: Records, jobs: list[team.Job]) -> None:
    request = request_20
    if name in WHOLE_CLASS:
        rows = digits.rows(mlp.split.retain)
        request = ForgetRequest(mlp.split.retain[digits.labels[rows] == 3], forgotten_class=3)
    started = forget(name, mlp, request, digits)
    reason = method_class(name).one_process
    assert started == (reason == ""), reason
    for job in jobs:
        assert job.records.hash == digits.hash or name in ("RL", "SalUn", "UNSIR", *WHOLE_CLASS, "Boundary Shrink")
        assert job.runtime.devices == 2


def test_reasons_read_as_sentences() -> None:
    for name in NAMES:
        reason = method_class(name).one_process
        assert not reason or (reason[0].islower() and not reason.endswith(".")), name


def test_a_loss_that_is_not_declared_is_refused(
    mlp: Trained, request_20: ForgetRequest, digits: Records, jobs: list[team.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: SCRUB without its reason would be found out."""
    monkeypatch.setattr(method_class("SCRUB"), "one_process", "")
    with pytest.raises(ExpungeError, match="not declared to be a mean over records"):
        forget("SCRUB", mlp, request_20, digits)
    assert jobs == []
