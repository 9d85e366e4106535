"""Ensembles of networks that cannot be stacked are trained one by one, with the reason; others are stacked."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from expunge.core.errors import ModelError, TrainingError
from expunge.core.split import Split, as_ids
from expunge.core.trained import plain_state
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.stackable import find_stacking_obstacle
from expunge.training.ensemble.train import Ensemble, train_ensemble

RECIPE = Recipe(epochs=1, batch_size=20, learning_rate=0.1)
#: A network and what prevents stacking, as far as it is known beforehand.
OBSTACLES = {
    "make/lstm": "",
    "make/gru": "",
    "make/dropout": "draws random numbers",
    "Noisy": "draws random numbers",
    "Branching": "vmap does not support",
    "TiedHeads": "",
}
STACKABLE = ("make/scale", "make/raw", "FrozenFirst")


def network(name: str) -> Architecture:
    factory, _, kind = name.partition("/")
    return Architecture(f"any_layers:{factory}", {"kind": kind} if kind else {}, (1, 8, 8), 10)


def members() -> list[Member]:
    return [Member(np.arange(60), seed=1), Member(np.arange(40, 100), seed=2)]


def run(name: str, digits: Records, cpu: Runtime, engine: str = "auto") -> Ensemble:
    return train_ensemble(digits, network(name), members(), recipe=RECIPE, runtime=cpu, engine=engine, label="toys")


def differences(ensemble: Ensemble, name: str, digits: Records, cpu: Runtime) -> list[float]:
    """Largest difference of each member from the same member trained by `fit`."""
    found = []
    for index, member in enumerate(members()):
        model = network(name).build(member.seeds["initial"])
        fit(model, member.rows, RECIPE, Context(digits, cpu, member.seeds["order"]))
        state = ensemble.state(index)
        found.append(max(float((state[k].double() - t.double()).abs().max()) for k, t in plain_state(model).items()))
    return found


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_stacked_is_trained_one_by_one(
    name: str, digits: Records, cpu: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ensemble = run(name, digits, cpu)
    assert differences(ensemble, name, digits, cpu) == [0, 0]
    if ensemble.engine == "vmap":
        pytest.fail("it was stacked")
    assert OBSTACLES[name] in ensemble.obstacle
    assert caplog.messages == [f"toys: the models are trained one by one, because {ensemble.obstacle}"]
    rest = digits.record_ids[100:]
    split = Split(digits.record_ids[:60], as_ids(()), as_ids(()), rest, as_ids(()))
    assert ensemble.obstacle in ensemble.as_trained(0, digits, split).provenance.history[0]
    with pytest.raises(TrainingError, match="stacked training is not possible"):
        run(name, digits, cpu, engine="vmap")


@pytest.mark.parametrize("name", STACKABLE)
def test_what_can_be_stacked_is(name: str, digits: Records, cpu: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    ensemble = run(name, digits, cpu)
    assert (ensemble.engine, ensemble.obstacle, caplog.messages) == ("vmap", "", [])
    assert max(differences(ensemble, name, digits, cpu)) < 1e-4


def test_frozen_layers_stay_frozen_when_stacked(digits: Records, cpu: Runtime) -> None:
    ensemble = run("FrozenFirst", digits, cpu, engine="vmap")
    for index, member in enumerate(members()):
        begin = plain_state(network("FrozenFirst").build(member.seeds["initial"]))
        assert torch.equal(ensemble.state(index)["first.weight"], begin["first.weight"])
        assert not torch.equal(ensemble.state(index)["head.weight"], begin["head.weight"])


def test_the_probe_changes_nothing(digits: Records, cpu: Runtime) -> None:
    before = torch.get_rng_state()
    assert find_stacking_obstacle(digits, network("make/scale"), np.arange(5), cpu) is None
    assert find_stacking_obstacle(digits, network("make/scale"), np.arange(1), cpu) is None  # one record
    assert find_stacking_obstacle(digits, network("make/dropout"), np.arange(5), cpu) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_other_results_are_an_obstacle(digits: Records, cpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a stacked loss that is off by a factor, and one with the right value but no gradient."""
    from expunge.training.ensemble import stackable

    real = stackable.stacked_losses
    for wrong in (lambda loss: loss * 1.1, lambda loss: loss.detach() + 0 * loss):
        monkeypatch.setattr(stackable, "stacked_losses", lambda *args, wrong=wrong: wrong(real(*args)))
        found = stackable.find_stacking_obstacle(digits, network("make/raw"), np.arange(20), cpu)
        assert found is not None
        assert "gives other results" in found


def test_networks_that_cannot_be_trained_are_refused(digits: Records, cpu: Runtime) -> None:
    frozen = Architecture("any_layers:make_frozen", {}, (1, 8, 8), 10)
    with pytest.raises(ModelError, match="no parameter is trainable"):
        train_ensemble(digits, frozen, members(), recipe=RECIPE, runtime=cpu)
