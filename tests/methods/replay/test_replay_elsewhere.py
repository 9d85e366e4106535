"""Replay inside Un-prune, interrupted and resumed, and of networks with tied, frozen and declared parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from replay_runs import BARE, CPU, RECIPE, count_lost_zeros, make_cnn, make_mlp
from torch import nn

from expunge.core.errors import Interrupted
from expunge.core.registry import MODELS
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.models.architecture import register_model
from expunge.sparsity import Pruning, prune
from expunge.training import loop, train


@pytest.fixture(scope="module")
def mlp(digits, digits_split):
    return make_mlp(digits, digits_split)


@pytest.fixture(scope="module")
def sparse(digits, digits_split):
    dense = make_cnn(digits, digits_split)
    return prune(dense, Pruning(0.5, layers=("conv", "linear")), Context(digits, CPU))


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


@pytest.mark.parametrize("name", ["Replay", "Rewind", "MSA"])
@pytest.mark.parametrize("rule", ["magnitude", "unchanged"])
def test_inside_un_prune(sparse, context, request_20, name, rule):
    inner = {"prefix_epochs": 2} if name == "Rewind" else {"prefix_epochs": 2, "epochs": 1}
    options = {"rule": rule, "method": name, "method_options": inner}
    outcome = get_method("Un-prune", **options).forget(sparse, request_20, context)
    assert count_lost_zeros(outcome.trained) == 0
    assert outcome.trained.mask.sparsity == sparse.mask.sparsity
    assert (outcome.trained.mask.hash() == sparse.mask.hash()) == (rule == "unchanged")
    assert outcome.guarantee == "empirical"
    assert ("early_checkpoints" in outcome.trained.state) == bool(outcome.trained.provenance.checkpoints)


class Clock:
    now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("run", ["with", "without", "fine-tuning", "rest"])
def test_interrupted_in_any_of_its_runs_it_resumes(sparse, context, request_20, run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())
    if run == "rest":
        method = get_method("Rewind", prefix_epochs=2, prefix="recomputed")
    else:
        method = get_method("Replay", prefix_epochs=3, prefix="recomputed", epochs=3)
    expected = method.forget(sparse, request_20, context)
    part = {"with": ", with", "without": ", without", "fine-tuning": "FT", "rest": "Rewind"}[run]
    stopped = []

    def stop(label, done, total, info):
        if label.endswith(part) and info["epoch"] == (4 if run == "rest" else 2) and not stopped:
            stopped.append(label)
            raise KeyboardInterrupt

    place = tmp_path / "c"
    with pytest.raises(Interrupted):
        method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=place, progress=stop))
    assert len(stopped) == 1
    assert len(list(tmp_path.iterdir())) == 1
    resumed = method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=place))
    assert resumed.trained.hash == expected.trained.hash
    assert resumed.trained.provenance.checkpoints == expected.trained.provenance.checkpoints
    assert resumed.cost.trained_records == expected.cost.trained_records
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["tied", "frozen"])
def test_special_parameters(digits, digits_split, context, request_20, kind):
    """c = 1 and k = T is retraining for tied and for frozen parameters of a custom network, too."""

    class Special(nn.Module):
        """Two layers of one weight, or a frozen first one."""

        def __init__(self, input_shape, classes, normalise):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, classes)
            if kind == "tied":
                self.second.weight = self.first.weight
            else:
                self.first.requires_grad_(False)

        def forward(self, x):
            return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))

    with MODELS.temporary():
        register_model("special")(Special)
        network = Architecture("special", {}, digits.input_shape, digits.classes)
        trained = train(digits, digits_split, network, recipe=RECIPE, seed=4, runtime=CPU)
        retrained = get_method("Retrain").forget(trained, request_20, context).trained
        for prefix in ("recorded", "compressed"):
            method = get_method("Replay", prefix_epochs=5, prefix=prefix, **BARE)
            after = method.forget(trained, request_20, context).trained
            assert after.hash == retrained.hash, prefix
        for name in ("Replay", "Rewind", "MSA"):
            after = get_method(name, prefix_epochs=2).forget(trained, request_20, context).trained
            if kind == "tied":
                assert after.model.first.weight is after.model.second.weight
            else:
                assert torch.equal(after.model.first.weight, trained.model.first.weight)
                assert not torch.equal(after.model.second.weight, trained.model.second.weight)


def test_a_single_record_is_forgotten(mlp, context):
    from expunge.core.request import ForgetRequest

    one = ForgetRequest(mlp.split.retain[:1])
    outcome = get_method("Replay", prefix_epochs=5, **BARE).forget(mlp, one, context)
    assert outcome.trained.hash == get_method("Retrain").forget(mlp, one, context).trained.hash
