"""Scores of the error bound of [Jia2023]: distances by brute force, and a recursion along the steps taken."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from measured import names_with

from expunge.core.errors import MaskError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Records
from expunge.evaluation import Score, ScoreInputs
from expunge.evaluation.error_bound import unroll
from expunge.evaluation.registry.measure import measure_score
from expunge.evaluation.scores.error_bound import _recover_path
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, Runtime, train

PLAIN = Recipe(epochs=3, batch_size=48, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
GA = {"epochs": 2, "batch_size": 8, "learning_rate": 0.02, "momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture(scope="module")
def plain(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    """A perceptron after plain SGD."""
    network = Architecture("mlp", {"widths": (12,)}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=PLAIN, seed=2, runtime=cpu)


@pytest.fixture(scope="module")
def masked(plain: Trained, digits: Records, cpu: Runtime) -> Trained:
    return prune(
        plain, Pruning(sparsity=0.7, layers=("linear",), criterion="SNIP", schedule="at-init"), Context(digits, cpu)
    )


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def inputs(
    original: Trained, outcome: Outcome, request: ForgetRequest, records: Records, retrained: Trained | None = None
) -> ScoreInputs:
    return ScoreInputs(
        trained=outcome.trained, original=original, retrained=retrained, request=request, records=records,
        outcome=outcome.to_json(), bound=True,
    )  # fmt: skip


def score_error_bound(given: ScoreInputs) -> dict[str, float]:
    found = [measure_score(name, given) for name in names_with("bound")]
    return {score.name: score.value for score in found if isinstance(score, Score)}


UNPRUNE = {"rule": "influence", "method": "GA", "method_options": GA}


@pytest.mark.parametrize(
    ("model", "name", "options"), [("plain", "GA", GA), ("masked", "GA", GA), ("masked", "Un-prune", UNPRUNE)]
)
def test_the_recursion_follows_the_steps_that_were_taken(
    model: str, name: str, options: dict[str, Any], request: pytest.FixtureRequest, request_20: ForgetRequest,
    context: Context, digits: Records,
) -> None:  # fmt: skip
    """Training, the method's ascent, the change of masks: SGD along the path ends at the unlearned weights."""
    original: Trained = request.getfixturevalue(model)
    outcome = get_method(name, **options).forget(original, request_20, context)
    path = _recover_path(inputs(original, outcome, request_20, digits), PLAIN)
    assert path is not None
    masks, steps, rates = path
    last = 0 if outcome.trained.mask is None else 1  # a step of rate 0, which applies the final mask
    assert len(masks) == len(steps) == len(rates) == 3 * 7 + 2 * 3 + last
    if outcome.trained.mask is not None:
        assert masks[-1] is not None
        assert (masks[-1].hash(), rates[-1]) == (outcome.trained.mask.hash(), 0.0)
    dense = Architecture.from_json(original.provenance.architecture).build(original.provenance.seeds["initial"])
    run = unroll(dense, *path, sigma_steps=1)
    if outcome.trained.mask is not None:
        outcome.trained.mask.apply_(dense)
    ended = {name: p.detach() + run.change[name] for name, p in dense.named_parameters()}
    for name, parameter in outcome.trained.model.named_parameters():
        torch.testing.assert_close(ended[name], parameter.detach(), rtol=1e-4, atol=1e-5, msg=name)
    still = {name: p.detach() for name, p in original.model.named_parameters()}
    assert max(float((ended[name] - still[name]).abs().max()) for name in still) > 1e-3, "GA moved nothing"


def test_distances_by_hand(masked: Trained, request_20: ForgetRequest, context: Context, digits: Records) -> None:
    outcome = get_method("GA", **GA).forget(masked, request_20, context)
    retrained = get_method("Retrain").forget(masked, request_20, context)
    found = score_error_bound(inputs(masked, outcome, request_20, digits, retrained.trained))
    assert set(found) == set(names_with("bound"))
    assert len(found) == 12
    expected = float((flat(outcome.trained.model) - flat(retrained.trained.model)).norm())
    assert found["Distance"] == pytest.approx(expected, rel=1e-5)
    start = Architecture.from_json(masked.provenance.architecture).build(masked.provenance.seeds["initial"])
    assert masked.mask is not None
    masked.mask.apply_(start)
    span = float((flat(retrained.trained.model) - flat(start)).norm())
    assert found["Relative distance"] == pytest.approx(expected / span, rel=1e-4)
    assert (found["eta"], found["t"]) == (pytest.approx(0.1), 3 * 7)  # 290 records in batches of 48
    assert found["Bound"] == pytest.approx(0.1**2 * 21 * found["Travelled"] * found["sigma"])
    assert found["Recursion residual"] <= found["Recursion bound"] * (1 + 1e-6)
    # the proposition's GA: every epoch takes the gradients of D_f at theta_0 back
    rows = digits.rows(request_20.record_ids)
    assert digits.features is not None
    x, y = torch.from_numpy(np.array(digits.features)[rows]).float() / 255, torch.from_numpy(digits.labels[rows])
    loss = torch.nn.functional.cross_entropy(start.eval()(x), y, reduction="sum")
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    forget_grad = torch.cat(
        [
            (s * masked.mask.kept[n]).double().reshape(-1) if n in masked.mask.kept else s.double().reshape(-1)
            for (n, _), s in zip(start.named_parameters(), gradients, strict=True)
        ]
    )
    undone = flat(masked.model) + 0.1 * 3 / 48 * forget_grad
    expected = float((undone - flat(retrained.trained.model)).norm())
    assert found["Distance at theta_0"] == pytest.approx(expected, rel=1e-4)


def test_the_reference_is_at_distance_zero(
    masked: Trained, request_20: ForgetRequest, context: Context, digits: Records
) -> None:
    retrained = get_method("Retrain").forget(masked, request_20, context)
    values = score_error_bound(inputs(masked, retrained, request_20, digits, retrained.trained))
    assert values["Distance"] == 0
    assert "Recursion residual" not in values


@pytest.mark.parametrize("change", [{"momentum": 0.9}, {"weight_decay": 1e-4}, {"lr_schedule": "cosine"}])
def test_no_recursion_if_training_was_not_plain(
    masked: Trained, request_20: ForgetRequest, context: Context, digits: Records, change: dict[str, Any]
) -> None:
    outcome = get_method("GA", **GA).forget(masked, request_20, context)
    other = dataclasses.replace(PLAIN, **change)
    assert _recover_path(inputs(masked, outcome, request_20, digits), other) is None
    body = copy.deepcopy(get_method("Un-prune", **UNPRUNE).forget(masked, request_20, context).to_json())
    del body["method"]["options"]["method_options"]["batch_size"]  # as recorded if it was left at its default
    unrecorded = ScoreInputs(trained=masked, original=masked, request=request_20, records=digits, outcome=body)
    assert _recover_path(unrecorded, PLAIN) is None
    moving = get_method("GA", **{**GA, "momentum": 0.9}).forget(masked, request_20, context)
    assert _recover_path(inputs(masked, moving, request_20, digits), PLAIN) is None


def test_a_model_without_its_initial_weights_is_refused(
    plain: Trained, request_20: ForgetRequest, context: Context, digits: Records
) -> None:
    outcome = get_method("GA", **GA).forget(plain, request_20, context)
    lost: Provenance = dataclasses.replace(plain.provenance, seeds={})
    without_seeds = dataclasses.replace(plain, provenance=lost)
    with pytest.raises(MaskError, match="initial weights and the recipe"):
        score_error_bound(inputs(without_seeds, outcome, request_20, digits, plain))
