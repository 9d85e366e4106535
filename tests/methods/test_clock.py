"""The clock of a method: what torch loads and sets up at the first step of a process is not part of the cost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.training import Runtime
from expunge.training import runtime as runtime_module


def test_the_first_step_of_a_process_is_not_timed(
    mlp: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "warm_up", lambda self: time.sleep(0.3))
    method = get_method("FT", epochs=0)
    started_at = time.perf_counter()
    assert method.forget(mlp, request_20, Context(digits, cpu)).cost.seconds < time.perf_counter() - started_at - 0.3


def test_the_first_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No generator is drawn from, and the step is taken once."""
    monkeypatch.setattr(runtime_module, "_WARM", set())
    steps = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a, **k: steps.append(1) or real(self, *a, **k))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Runtime("cpu").warm_up()
    Runtime("cpu").warm_up()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert steps == [1]
    Runtime("cpu", precision="bf16").warm_up()
    assert steps == [1, 1]


def test_a_fresh_process_does_not_pay_for_torch() -> None:
    """Measured on the first method of a process: most of its wall-clock time is not its cost."""
    code = """
        import time, expunge
        records = expunge.load_records("digits")
        split = expunge.make_split(records, seed=0)
        network = expunge.architecture("mlp", records, split, widths=(4,))
        from expunge.core.trained import Provenance, Trained
        trained = Trained(network.build(0), None, split, Provenance(network.to_json()), {})
        request = expunge.forget_random(records, split, count=5, seed=0)
        start = time.perf_counter()
        outcome = expunge.get_method("FT", epochs=1).forget(trained, request, expunge.Context(records, seed=0))
        print(outcome.cost.seconds, time.perf_counter() - start)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    seconds, wall = map(float, done.stdout.split())
    assert seconds < wall / 2
