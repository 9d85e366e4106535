"""From a request to a certificate that the independent checker accepts."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Line
from expunge_check.cli import main as check

from expunge.core.errors import ModelError
from expunge.core.files import read_tensors
from expunge.patches.network.trace import trace
from expunge.workflow.certify import _select_points

PATCH = ["method.name=patch", "method.options={}", "forget.fraction=0.01"]


@pytest.fixture
def patched(line: Line) -> Line:
    assert line("forget", "config.yaml", *PATCH).code == 0
    return line


def test_a_request_gives_a_certificate(patched: Line) -> None:
    at = ["--model", "runs/config/unlearned"]
    result = patched("certify", "config.yaml", *at, "--inputs", "the inputs")
    assert result.code == 0, result.err
    words = shlex.split(result.out.splitlines()[-1].partition("expunge-check ")[2])
    assert check([*words, "--json", "verdicts.json"]) == 0
    verdicts = json.loads((patched.directory / "verdicts.json").read_text())
    count = len(read_tensors(patched.directory / "the inputs/forgotten.safetensors")[0]["inputs"])
    assert verdicts["points"] == count > 0
    assert not any("lie outside" in note for note in verdicts["notes"])  # each point is in the region of its own patch
    body = patched("certify", "config.yaml", *at, "--json").json  # into the same directory, without the records
    assert (body["certificate"], body["inputs"], body["patches"]) == ("runs/config/certificate", None, count)


def test_what_cannot_be_certified(patched: Line) -> None:
    (patched.directory / "mine").mkdir()
    (patched.directory / "mine/notes.txt").write_text("mine")
    at = ["--model", "runs/config/unlearned"]
    for place in (["-o", "mine"], ["--inputs", "mine"]):
        result = patched("certify", "config.yaml", *at, *place)
        assert result.code == 2, result.err
        assert "did not write: notes.txt" in result.err
        assert [path.name for path in (patched.directory / "mine").iterdir()] == ["notes.txt"]
    for one, other in (("both", "both"), ("both", "both/in"), ("both/in", "both")):
        result = patched("certify", "config.yaml", *at, "-o", one, "--inputs", other)
        assert (result.code, "must not be in the certificate" in result.err) == (2, True)
        assert not (patched.directory / "both").exists()
    assert patched("certify", "config.yaml", *at, "-o", "done").code == 0
    (patched.directory / "done/verdicts.json").write_text("{}")
    assert "did not write: verdicts.json" in patched("certify", "config.yaml", *at, "-o", "done").err
    assert patched("forget", "config.yaml", "-o", "plain").code == 0
    result = patched("certify", "config.yaml", "--model", "plain")
    assert (result.code, "has no patches" in result.err) == (2, True)
    assert "no such file" in patched("certify", "config.yaml", "--model", "nowhere").err
    assert not Path("runs/config/certificate").exists()


def test_the_point_of_a_patch_is_predicted_with_its_label() -> None:
    """Two records share a pattern; the first is predicted differently and was not patched."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    network, x = trace(model.eval(), (2,)), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    state = {"pattern": torch.tensor([[3]], dtype=torch.uint8), "label": torch.tensor([1])}
    trained: Any = SimpleNamespace(model=SimpleNamespace(current_network=lambda: network), state={"patches": state})
    assert _select_points(trained, x, Path("run")).tolist() == x[1:].tolist()
    with pytest.raises(ModelError, match="pattern and the label of patch 0"):
        _select_points(trained, x[:1], Path("run"))
