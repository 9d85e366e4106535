"""Ctrl-C and SIGTERM, sent by the system to this process in the middle of training."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from command_line import Line

from expunge.models import load_trained
from expunge.training import loop

#: A network that, at its 40th training batch, sends its own process the signal that stands in a file (once).
NETWORK = """\
import os
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.last = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
        self.seen = 0

    def forward(self, x):
        if self.training:
            self.seen += 1
            fuse = Path("fuse")
            if self.seen == 40 and fuse.exists():
                number = int(fuse.read_text())
                fuse.unlink()
                os.kill(os.getpid(), number)
        return self.last(torch.relu(self.norm(self.inner(x.flatten(1)))))
"""


@pytest.fixture(autouse=True)
def _restore_sigint() -> Iterator[None]:
    """A background job of a shell ignores SIGINT, and Python then leaves it ignored: not in these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_resumes_to_the_same_bits(
    line: Line, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(
        loop, "CHECKPOINT_SECONDS", -1.0
    )  # at the end of every epoch, so that the second run resumes mid-way
    monkeypatch.syspath_prepend(str(line.directory))
    place, module = line.directory, f"fused{number}"
    (place / f"{module}.py").write_text(NETWORK)
    arguments = ["train", "config.yaml", f"model={{name: '{module}:Net'}}", "training.epochs=6", "--json"]
    whole = line(*arguments, "-o", "whole", "--store", "other-store")
    assert whole.code == 0, whole.err
    (place / "fuse").write_text(str(int(number)))
    stopped = line(*arguments)
    assert not (place / "fuse").exists(), "the signal was never sent"
    assert (stopped.code, stopped.out) == (130, "")
    assert "run the same command again to resume" in stopped.err
    assert "was interrupted in epoch 5 of 6" in stopped.err  # how much is kept
    assert "resumes after epoch 4" in stopped.err
    assert "Traceback" not in stopped.err
    assert not (place / "runs").exists()
    assert not list(place.glob(".expunge/entries/train/*"))
    (checkpoint,) = place.glob(".expunge/work/*/train.safetensors")
    assert checkpoint.stat().st_size > 1000
    epochs = []
    epoch_of = loop.EpochLoop.run_epoch
    monkeypatch.setattr(
        loop.EpochLoop, "run_epoch", lambda self, epoch, seen: epochs.append(epoch) or epoch_of(self, epoch, seen)
    )
    resumed = line(*arguments)
    assert resumed.code == 0, resumed.err
    assert epochs[0] == 4  # 10 batches an epoch: the signal came in the fourth, which is discarded
    first, second = load_trained(place / "whole"), load_trained(place / "runs/config/trained")
    assert first.hash == second.hash
    assert json.loads(resumed.out)["files"] == json.loads(whole.out)["files"]
    assert not list(place.glob(".expunge/work/*"))
