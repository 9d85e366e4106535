"""`check`: every section is looked at, and what it calls an error is what a run would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError
from expunge.experiments.config import check_config
from expunge.workflow import check_inputs, check_run

BASE: dict[str, Any] = {
    "data": {"source": "digits"},
    "model": {"name": "small-cnn", "options": {"widths": [4, 8]}},
    "training": {"recipe": "one-cycle"},
    "sparsity": {"sparsity": 0.5},
    "forget": {"kind": "random", "count": 5, "keep": ["digits-0000"]},
    "method": {"name": "ft"},
    "runtime": {"device": "cpu"},
}


def levels(values: dict[str, Any]) -> dict[str, str]:
    """The worst level of each subject."""
    order = ("ok", "warning", "error")
    found: dict[str, str] = {}
    for finding in check_run(check_config(values)).findings:
        found[finding.subject] = max(found.get(finding.subject, "ok"), finding.level, key=order.index)
    return found


def test_a_whole_configuration() -> None:
    values = {**BASE, "forget": {"kind": "random", "count": 5}}
    check = check_run(check_config(values))
    check_inputs(check_config(values))
    assert (check.usable, check.exit_code) == (True, 0)
    assert {"data", "split", "forget", "training", "sparsity", "method", "runtime"} <= set(levels(values))
    assert levels(values)["method"] == "warning"  # BatchNorm buffers follow the batches
    assert levels({**values, "method": {"name": "FT", "options": {"batch_norm": "frozen"}}})["method"] == "ok"
    assert check.text().endswith("this would run")
    assert check.to_json()["usable"] is True


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("data", {"data": {"source": "digitz"}}),
        ("data", {"data": {"source": "mnist", "dir": "/nowhere"}}),
        ("split", {"split": {"file": "/nowhere.json"}}),
        ("split", {"split": {"group": "subject"}}),
        ("forget", {"forget": {"kind": "ids", "ids": ["nobody"]}}),
        ("forget", {"forget": {"kind": "random", "count": 0}}),
        ("forget", {"forget": {"kind": "random", "fraction": 1.0}}),
        ("model", {"model": {"name": "vgg"}}),
        ("model", {"model": {"name": "small-cnn", "options": {"depth": 3}}}),
        ("model", {"model": {"name": "cnn1d"}}),
        ("model", {"model": {"name": "small-cnn", "weights": "/nowhere.safetensors"}}),
        ("training", {"training": {"recipe": "one-cycle", "epochs": -1}}),
        ("sparsity", {"sparsity": {"schedule": "imp-like"}}),
        ("sparsity", {"sparsity": {"layers": ["attention"]}}),
        ("sparsity", {"model": {"name": "mlp"}}),
        ("method", {"method": {"name": "GAA"}}),
        ("method", {"method": {"name": "GA", "options": {"epoch": 1}}}),
        ("runtime", {"runtime": {"device": "cuda:99"}}),
    ],
)
def test_what_is_called_an_error_is_refused(subject: str, change: dict[str, Any]) -> None:
    values = {**BASE, "forget": {"kind": "random", "count": 5}, **change}
    found = levels(values)
    assert found[subject] == "error", found
    check = check_run(check_config(values))
    assert check.exit_code == 1
    assert next(finding for finding in check.findings if finding.level == "error").message in check.text()
    with pytest.raises(ExpungeError):
        check_inputs(check_config(values))


def test_one_mistake_does_not_hide_another() -> None:
    values = {**BASE, "data": {"source": "digitz"}, "method": {"name": "GAA"}, "training": {"recipe": "two-cycle"}}
    assert {subject for subject, level in levels(values).items() if level == "error"} == {"data", "training", "method"}


def test_a_network_that_cannot_be_patched_is_named_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, before anything is trained; other methods and networks go through."""
    text = (
        "from torch import nn\ndef make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), %s, nn.Linear(8, classes))\n"
    )
    for name, layer in (("curved", "nn.GELU()"), ("bent", "nn.ReLU()")):
        (tmp_path / f"net_{name}.py").write_text(text % layer)
    monkeypatch.chdir(tmp_path)
    values = {**BASE, "sparsity": None, "forget": {"kind": "random", "count": 5}, "method": {"name": "patch"}}
    curved = {**values, "model": {"name": "net_curved:make"}}
    check = check_run(check_config(curved))
    assert not check.usable
    (wrong,) = (finding for finding in check.findings if finding.level == "error")
    assert wrong.subject == "method"
    assert "GELU is not piecewise linear" in wrong.message
    with pytest.raises(ExpungeError, match="GELU"):
        check_inputs(check_config(curved))
    assert levels({**curved, "method": {"name": "GA"}})["method"] != "error"
    assert check_run(check_config({**values, "model": {"name": "net_bent:make"}})).usable
