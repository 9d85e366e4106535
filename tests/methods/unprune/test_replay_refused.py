"""The rule replay: masks made at initialisation, what it refuses, and what `expunge check` says of its cost."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from replayed_masks import CPU, LAYERS, RECIPE, K, declare, make_dense, of_mask, replay, same, shrink

from expunge.core.errors import ConfigError, MaskError, MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.experiments.config.run_config import check_config
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import train
from expunge.workflow import check_run


@pytest.fixture(scope="module")
def dense(digits: Records, digits_split: Split) -> Trained:
    return make_dense(digits, digits_split)


@pytest.fixture(scope="module")
def request_class(digits: Records, digits_split: Split) -> ForgetRequest:
    """All records of a class: the mask of retraining is another."""
    retain = digits_split.retain
    return ForgetRequest(retain[digits.labels[digits.rows(retain)] == 3])


@pytest.fixture(scope="module")
def context(digits: Records) -> Context:
    return Context(digits, CPU, seed=1)


# ---- masks made at initialisation


@pytest.mark.parametrize(
    ("criterion", "reads"), [("SNIP", True), ("GraSP", True), ("SynFlow", False), ("magnitude", False)]
)
def test_masks_made_at_initialisation(
    criterion: str, reads: bool, dense: Trained, digits: Records, request_class: ForgetRequest, context: Context
) -> None:
    pruning = Pruning(0.6, layers=LAYERS, criterion=criterion, schedule="at-init", scope="layer", options={"rounds": 1})
    sparse = prune(dense, pruning, Context(digits, CPU, seed=2))
    outcome = replay(sparse, request_class, context)
    reference = get_method("Retrain", mask="re-prune").forget(sparse, request_class, context).trained
    assert of_mask(outcome.trained).hash() == of_mask(reference).hash()
    assert (of_mask(outcome.trained).hash() == of_mask(sparse).hash()) == (not reads)
    assert outcome.cost.trained_records == (min(1024, len(reference.split.retain)) if reads else 0)
    line = outcome.trained.provenance.history[-1]
    assert ("nothing was replayed" if reads else "it has nothing to forget") in line
    influence = get_method("Un-prune", rule="influence", method_options={"epochs": 0})
    assert same(influence.forget(sparse, request_class, context).trained, outcome.trained)


# ---- refusals


@pytest.mark.parametrize("name", ["one-shot", "imp"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("prefix", ["recorded", "recomputed"])
def test_a_wrong_order_of_records_is_refused(
    name: str, keep: bool, prefix: str, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    sparse = shrink(dense, digits, name, keep=keep)
    wrong = declare(sparse, seeds={**sparse.provenance.seeds, "order": 1})
    with pytest.raises(MethodError, match=r"not of the run|do not reach the stored rewind checkpoint"):
        replay(wrong, request_20, context, prefix=prefix)


def test_other_weights_of_pruning_time_are_refused(
    dense: Trained, digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context
) -> None:
    """Without any checkpoint to compare with, recomputed weights must give the original's mask."""
    sparse = shrink(dense, digits, "one-shot", keep=False)
    wrong = declare(sparse, seeds={**sparse.provenance.seeds, "order": 1}, checkpoints={})
    wrong = dataclasses.replace(wrong, state={})
    with pytest.raises(MethodError, match="do not give the mask of the original"):
        replay(wrong, request_20, context)
    right = declare(dataclasses.replace(sparse, state={}), checkpoints={})
    assert same(replay(right, request_20, context).trained, replay(sparse, request_20, context).trained)
    network = Architecture.from_json(dense.provenance.architecture)
    other = train(digits, digits_split, network, recipe=RECIPE, seed=6, runtime=CPU)
    imp, of_other = shrink(dense, digits, "imp"), shrink(other, digits, "imp").state["pruning_weights"]
    later = {key: tensor for key, tensor in of_other.items() if not key.startswith("1/")}
    mixed = {**imp.state, "pruning_weights": {**imp.state["pruning_weights"], **later}}
    with pytest.raises(MethodError, match="do not give the mask of the original"):
        replay(dataclasses.replace(imp, state=mixed), request_20, context)
    first = {key: tensor for key, tensor in imp.state["pruning_weights"].items() if key.startswith("1/")}
    for weights, message in (
        (first, "weights that round 2"),
        ({"2/w": torch.ones(1)}, "that round 1"),
        ({"w": 1}, "ROUND/NAME"),
    ):
        with pytest.raises(MethodError, match=message):
            replay(dataclasses.replace(imp, state={**imp.state, "pruning_weights": weights}), request_20, context)


def test_what_cannot_be_replayed_is_refused_before_training(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    sparse, imp = shrink(dense, digits), shrink(dense, digits, "imp")
    method = get_method("Un-prune", rule="replay", prefix_epochs=K)
    for schedule in ("gradual", "soft-filter"):
        with pytest.raises(MethodError, match=rf"{schedule} did not rank.*\n?.*imp, omp, one-shot"):
            method.check_pruning(schedule, keep_weights=False)
    for schedule in ("omp", "one-shot", "imp", "at-init"):
        method.check_pruning(schedule, keep_weights=False)
    seeds = {name: seed for name, seed in sparse.provenance.seeds.items() if name != "order"}
    cases: list[tuple[Trained, dict[str, Any], str]] = [
        (declare(sparse, recipe={}), {}, "the recipe of the original model is not recorded"),
        (declare(sparse, seeds=seeds), {}, "order of records is not recorded"),
        (imp, {"prefix": "compressed"}, "a compressed recipe does not reach"),
        (dataclasses.replace(imp, state={}), {}, r"the rewind checkpoint.*is not stored"),
        (declare(imp, recipe={**imp.provenance.recipe, "rewind": 0.75}), {}, "do not reach the rewind checkpoint"),
    ]
    for trained, options, message in cases:
        with pytest.raises(MethodError, match=message):
            get_method("Un-prune", rule="replay", **{"prefix_epochs": K, **options}).check_state(trained)
    without = dataclasses.replace(declare(sparse, seeds=seeds), state={})
    with pytest.raises(MethodError, match="order of records is not recorded"):
        get_method("Un-prune", rule="replay", prefix_epochs=K, prefix="compressed").check_state(without)
    with pytest.raises(ConfigError, match="not a number of epochs of a recipe of 4"):
        get_method("Un-prune", rule="replay", prefix_epochs=5).check_state(sparse)
    with pytest.raises(MethodError, match="with scale=0, replay adds nothing"):
        get_method("Un-prune", rule="replay", scale=0.0)
    for option in ({"prefix": "stored"}, {"replay_weights": "old"}, {"prefix_epochs": 0}, {"scale": float("inf")}):
        with pytest.raises(MethodError, match=next(iter(option))):
            get_method("Un-prune", rule="replay", **option)


def test_weights_of_every_round_are_stored_on_request(dense: Trained, digits: Records) -> None:
    """Each round's mask is that of the rule for the weights that are stored for it."""
    imp = shrink(dense, digits, "imp")
    assert same(imp, shrink(dense, digits, "imp", keep=False))
    rounds = {key.partition("/")[0] for key in imp.state["pruning_weights"]}
    assert rounds == {"1", "2", "3"}
    for name, parameter in plain_parameters(dense.model).items():
        assert torch.equal(imp.state["pruning_weights"][f"1/{name}"], parameter)
    third = imp.state["pruning_weights"]
    zeros = sum(int((third[f"3/{name}"] == 0).sum()) for name in of_mask(imp).kept)
    assert zeros == round(0.75 * of_mask(imp).total)
    with pytest.raises(ConfigError, match="keep_weights has no effect with gradual"):
        Pruning(schedule="gradual", keep_weights=True)
    with pytest.raises((MethodError, MaskError), match="already sparse"):
        get_method("Un-prune", rule="influence").check_state(imp)


# ---- `expunge check`


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "trains 3 epochs on D_r and 10 on D, besides the inner method; .* trains 19 epochs on D_r"),
        ({"keep_weights": True}, "trains 3 epochs on D_r and 0 on D"),
        ({"schedule": "one-shot"}, "trains 3 epochs on D_r and 10 on D, besides the inner method; .* trains 10 epochs"),
        ({"schedule": "imp", "options": {"rate": 0.5}}, "trains 12 epochs on D_r and 37 on D.* trains 46 epochs"),
        ({"schedule": "imp", "options": {"rate": 0.5}, "keep_weights": True}, "trains 12 epochs on D_r and 9 on D"),
        ({"schedule": "imp", "options": {"rate": 0.5}, "epochs": "full"}, "and 40 on D.* trains 50 epochs"),
        ({"schedule": "gradual"}, "the schedule gradual did not rank"),
        ({"schedule": "at-init"}, None),
    ],
    ids=str,
)
def test_check_says_what_would_be_trained(changes: dict[str, Any], message: str | None) -> None:
    values = {
        "data": {"source": "digits"},
        "model": {"name": "mlp", "options": {"widths": [8]}},
        "training": {"recipe": "one-cycle", "epochs": 10, "rewind": 0.1, "keep_epochs": [3]},
        "sparsity": {"sparsity": 0.9, "layers": ["linear"], **changes},
        "forget": {"by": "random", "count": 5},
        "method": {"name": "Un-prune", "options": {"rule": "replay", "prefix_epochs": 3}},
        "runtime": {"device": "cpu"},
    }
    found = [finding for finding in check_run(check_config(values)).findings if finding.subject == "method"]
    if message is None:
        assert [finding.level for finding in found] == ["ok"]
    else:
        assert re.search(message, found[-1].message)
        assert found[-1].level == ("error" if "did not" in message else "ok")
        assert ("sparsity.keep_weights=true" in found[-1].hint) == (" on D" in message and " 0 on D" not in message)


def test_check_refuses_epochs_that_the_recipe_does_not_have() -> None:
    values = {
        "data": {"source": "digits"},
        "model": {"name": "mlp", "options": {"widths": [8]}},
        "training": {"recipe": "one-cycle", "epochs": 2},
        "sparsity": {"sparsity": 0.9, "layers": ["linear"]},
        "forget": {"by": "random", "count": 5},
        "method": {"name": "Un-prune", "options": {"rule": "replay", "prefix_epochs": 3}},
        "runtime": {"device": "cpu"},
    }
    errors = [finding.message for finding in check_run(check_config(values)).findings if finding.level == "error"]
    assert len(errors) == 1
    assert "not a number of epochs of a recipe of 2" in errors[0]
