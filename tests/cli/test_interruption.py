"""Ctrl-C and SIGTERM, sent by the system to a real process in the middle of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CONFIG

from expunge.models import load_trained

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


def expunge(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    # Checkpoints at every epoch's end, so that the second run goes on mid-way.
    code = (
        "import sys; from expunge.training import loop; loop.CHECKPOINT_SECONDS = -1.0\n"
        "from expunge.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path, number: int) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "fused.py").write_text(NETWORK)
    arguments = ["train", "config.yaml", "model={name: 'fused:Net'}", "training.epochs=6", "--json"]
    whole = expunge(tmp_path, *arguments, "-o", "whole", "--store", "other-store")
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "fuse").write_text(str(number))
    stopped = expunge(tmp_path, *arguments)
    assert (stopped.returncode, stopped.stdout) == (130, "")
    assert "the same command goes on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob(".expunge/entries/train/*"))
    (checkpoint,) = tmp_path.glob(".expunge/work/*/train.safetensors")
    assert checkpoint.stat().st_size > 1000
    (tmp_path / "fuse").unlink(missing_ok=True)
    resumed = expunge(tmp_path, *arguments)
    assert resumed.returncode == 0, resumed.stderr
    first, second = load_trained(tmp_path / "whole"), load_trained(tmp_path / "runs/config/trained")
    assert first.hash == second.hash
    assert json.loads(resumed.stdout)["files"] == json.loads(whole.stdout)["files"]
    assert not list(tmp_path.glob(".expunge/work/*"))
