"""Custom networks that cannot be trained, copied or saved: one decision of `check` and the run, before any training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge.core.errors import FileError, ModelError
from expunge.core.files import staged_directory, write_tensors
from expunge.experiments.config.run_config import check_config
from expunge.models import Architecture
from expunge.training import Context, Recipe, Runtime
from expunge.training.loop import fit
from expunge.workflow import check_inputs, check_run
from expunge.workflow.output import check_output, check_writable

_COUNTER = itertools.count()
NETWORKS = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


class Linear(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)
        self.mean = torch.zeros(64)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Keeps(Linear):
    def forward(self, x):
        self.hidden = self.layer(x.flatten(1))
        return self.hidden


class Auxiliary(Linear):
    def forward(self, x):
        y = self.layer(x.flatten(1))
        return (y, y) if self.training else y


class WithoutGradient(Linear):
    def forward(self, x):
        with torch.no_grad():
            return self.layer(x.flatten(1))


class Rounds(Linear):
    def forward(self, x):
        return self.layer(x.flatten(1)).argmax(1, keepdim=True).expand(-1, 10).float()


class InPlace(Linear):
    def forward(self, x):
        y = torch.sigmoid(self.layer(x.flatten(1)))
        return y.add_(1) if self.training else y


class Unsaved(Linear):
    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean = 0.5 * self.mean + x.detach().mean(0)
        return self.layer(x - self.mean)


class NotPersistent(Linear):
    def __init__(self, classes):
        super().__init__(classes)
        self.register_buffer("centre", torch.zeros(64), persistent=False)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.centre += x.detach().mean(0)
        return self.layer(x - self.centre)


class Grows(Linear):
    def forward(self, x):
        if self.training:
            self.extra = nn.Parameter(torch.zeros(2))
        return self.layer(x.flatten(1))


class FailsInTraining(Linear):
    def forward(self, x):
        if self.training:
            raise ValueError("not here")
        return self.layer(x.flatten(1))


def make(input_shape, classes, kind):
    layers = {
        "legacy weight_norm": lambda: flat(weight_norm(nn.Linear(64, classes))),
        "legacy spectral_norm": lambda: flat(spectral_norm(nn.Linear(64, classes))),
        "pruning hook": lambda: flat(prune.l1_unstructured(nn.Linear(64, classes), "weight", amount=0.5)),
        "lazy norm": lambda: flat(nn.LazyBatchNorm1d(), nn.Linear(64, classes)),
        "lazy instance norm": lambda: nn.Sequential(nn.LazyInstanceNorm2d(affine=True), flat(nn.Linear(64, classes))),
        "frozen": lambda: flat(nn.Linear(64, classes)).requires_grad_(False),
        "lazy linear": lambda: flat(nn.LazyLinear(classes)),
        "weight_norm": lambda: flat(parametrizations.weight_norm(nn.Linear(64, classes))),
        "spectral_norm": lambda: flat(parametrizations.spectral_norm(nn.Linear(64, classes))),
        "no statistics": lambda: flat(nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, classes)),
    }
    return layers[kind]() if kind in layers else globals()[kind](classes)
"""
REFUSED = {
    "legacy weight_norm": "cannot be copied: it keeps a tensor that autograd computed",
    "legacy spectral_norm": "a hook computes 1.weight",
    "pruning hook": "cannot be copied",
    "Keeps": "cannot be copied",
    "lazy norm": "a lazy layer",
    "lazy instance norm": "a lazy layer",
    "frozen": "no parameter is trainable",
    "Auxiliary": "in training mode the network returns a tuple",
    "WithoutGradient": "has no gradient",
    "Rounds": "has no gradient",
    "InPlace": "cannot be differentiated",
    "Unsaved": "tensors that are not in the state",
    "NotPersistent": "tensors that are not in the state",
    "Grows": "adds, removes or reshapes",
    "FailsInTraining": r"cannot be run in training mode \(ValueError: not here, odd_networks_\d+\.py line \d+\)",
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name = f"odd_networks_{next(_COUNTER)}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    return name


def configuration(module: str, kind: str, **training: Any) -> Any:
    values = {
        "data": {"source": "digits"},
        "model": {"name": f"{module}:make", "options": {"kind": kind}},
        "training": {"recipe": "one-cycle", "epochs": 1, **training},
        "forget": {"by": "random", "count": 5},
        "method": {"name": "FT", "options": {"epochs": 1}},
        "runtime": {"device": "cpu"},
    }
    return check_config(values, trust=[module])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_check_and_the_run_refuse_alike(module: str, kind: str) -> None:
    config = configuration(module, kind)
    errors = [f"{f.message}" for f in check_run(config).findings if f.level == "error"]
    with pytest.raises(ModelError, match=REFUSED[kind]) as caught:
        check_inputs(config)
    assert len(errors) == 1
    assert errors[0].endswith(caught.value.what)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["lazy linear", "weight_norm", "spectral_norm", "Linear"])
def test_others_are_accepted_by_both(module: str, kind: str) -> None:
    config = configuration(module, kind)
    assert check_run(config).usable
    check_inputs(config)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["Keeps", "frozen", "Auxiliary", "WithoutGradient", "InPlace", "Unsaved"])
def test_training_in_python_refuses_too(module: str, kind: str, digits: expunge.Records, cpu: Runtime) -> None:
    """Before the first epoch, and the model that was given is not changed."""
    with expunge.core.trust.trusting([module]):
        model = Architecture(f"{module}:make", {"kind": kind}, (1, 8, 8), 10).build(0)
    before = expunge.core.hash_tensors(model.state_dict())
    with pytest.raises(ModelError, match=REFUSED[kind]):
        fit(model, np.arange(40), Recipe(epochs=1, batch_size=20), Context(digits, cpu))
    assert expunge.core.hash_tensors(model.state_dict()) == before


def test_batches_of_one_record(module: str, digits: expunge.Records, cpu: Runtime) -> None:
    """BatchNorm without running statistics cannot normalise one record; a last batch of one joins the one before it."""
    count = 1150  # the training part of the digits
    refused = configuration(module, "no statistics", batch_size=1)
    split_sizes = [f.message for f in check_run(refused).findings if f.subject == "split"]
    assert f"retain {count}" in split_sizes[0]
    errors = [f.message for f in check_run(refused).findings if f.level == "error"]
    assert len(errors) == 1
    assert "a batch of one record has no statistics" in errors[0]
    with pytest.raises(ModelError, match="a batch of one record has no statistics"):
        check_inputs(refused)
    for kind, size in (("no statistics", count - 1), ("no statistics", count - 2), ("Linear", 1)):
        accepted = configuration(module, kind, batch_size=size)
        assert check_run(accepted).usable
        check_inputs(accepted)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1, track_running_stats=False), torch.nn.Flatten())
    model.append(torch.nn.BatchNorm1d(64, track_running_stats=False)).append(torch.nn.Linear(64, 10))
    with pytest.raises(ModelError, match="a batch of one record has no statistics"):
        fit(model, np.arange(41), Recipe(epochs=1, batch_size=1), Context(digits, cpu))
    assert fit(model, np.arange(41), Recipe(epochs=1, batch_size=20), Context(digits, cpu)).trained_records == 41


@pytest.mark.parametrize("name", ["a" * 300, "sub/" + "a" * 300, "a" * 300 + "/sub", "\u00e9" * 150, "a\0b"])
def test_names_that_the_system_cannot_have(name: str, tmp_path: Path) -> None:
    for check in (check_output, check_writable):
        with pytest.raises(FileError, match="cannot be created"):
            check(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 255, "\u00e9" * 127])
def test_long_names_are_written(name: str, tmp_path: Path) -> None:
    """Files are written under a temporary name beside their own, which was too long for the system."""
    check_output(tmp_path / name)
    with staged_directory(tmp_path / name) as staged:
        (staged / "file").write_text("1")
    assert (tmp_path / name / "file").read_text() == "1"
    write_tensors(tmp_path / "out" / name, {"a": torch.zeros(2)})
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
