"""Methods on a model that was trained with AdamW, warm-up, clipping and label smoothing; methods that use AdamW."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import DataError, MethodError
from expunge.core.request import ForgetRequest
from expunge.core.seeds import RecordedOrder, derive, epoch_order
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model, plain_state
from expunge.data.records import Records
from expunge.methods import get_method
from expunge.methods.replay.noise_bound import check_covered_recipe
from expunge.methods.unprune.influence import training_time
from expunge.models import Architecture
from expunge.training import Context, Recipe, Runtime, fit, train
from expunge.training.checkpoint import load_state

RECIPE = Recipe(
    epochs=3, batch_size=64, learning_rate=0.01, weight_decay=0.1, optimiser="adamw", lr_schedule="linear",
    lr_update="step", warmup_steps=3, clip_norm=1.0, label_smoothing=0.1, no_decay="bias-and-norm", keep_epochs=(1,),
)  # fmt: skip
EXACT = {"prefix_epochs": 3, "scale": 1.0, "epochs": 0, "re_estimate": 0}


@pytest.fixture(scope="module")
def adaptive(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    network = Architecture("mlp", {"widths": (12,), "batch_norm": True}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=RECIPE, seed=5, runtime=cpu)


@pytest.fixture
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=9)


def test_a_full_replay_is_retrain_bit_for_bit(adaptive: Trained, request_20: ForgetRequest, context: Context) -> None:
    retrained = get_method("Retrain").forget(adaptive, request_20, context)
    assert retrained.guarantee == "exact"
    assert retrained.trained.hash != adaptive.hash
    replayed = get_method("Replay", **EXACT).forget(adaptive, request_20, context)
    assert replayed.trained.hash == retrained.trained.hash


def test_retrain_is_a_training_without_the_records(
    adaptive: Trained, request_20: ForgetRequest, context: Context, digits: Records, cpu: Runtime
) -> None:
    """The same as training on D_r as if D_f had never been there (the inputs are not normalised)."""
    after = request_20.apply(adaptive.split)
    fresh = dataclasses.replace(after, forget=())
    network = Architecture.from_json(adaptive.provenance.architecture)
    expected = train(digits, fresh, network, recipe=RECIPE, seed=5, runtime=cpu)
    assert get_method("Retrain").forget(adaptive, request_20, context).trained.hash == expected.hash


def test_rewind_starts_the_optimiser_without_state(
    adaptive: Trained, request_20: ForgetRequest, context: Context, cpu: Runtime
) -> None:
    """The moments of AdamW are not part of a checkpoint: the rest of the schedule runs with new ones."""
    rewound = get_method("Rewind", prefix_epochs=1).forget(adaptive, request_20, context).trained
    model = clone_model(adaptive.model)
    stored = adaptive.state["early_checkpoints"]
    load_state(model, {name.removeprefix("1/"): tensor for name, tensor in stored.items()})
    rows = context.records.rows(request_20.apply(adaptive.split).retain)
    run = Context(context.records, cpu, adaptive.provenance.seeds["order"])
    fit(model, rows, RECIPE, run, start=1)
    for name, tensor in plain_state(model).items():
        assert torch.equal(tensor, plain_state(rewound.model)[name]), name


def test_a_recorded_order_is_repeated_by_retraining(
    adaptive: Trained, request_20: ForgetRequest, context: Context, digits: Records
) -> None:
    """A recorded order that is that of the seed gives the same retrained model; another order gives another."""
    rows = digits.rows(adaptive.split.train)
    seed = adaptive.provenance.seeds["order"]
    epochs = [rows[epoch_order(digits.keys[rows], seed, epoch)] for epoch in range(RECIPE.epochs)]
    same = dataclasses.replace(context, order=RecordedOrder(tuple(digits.record_ids[part] for part in epochs)))
    other = dataclasses.replace(context, order=RecordedOrder(tuple(digits.record_ids[part[::-1]] for part in epochs)))
    expected = get_method("Retrain").forget(adaptive, request_20, context).trained.hash
    assert get_method("Retrain").forget(adaptive, request_20, same).trained.hash == expected
    assert get_method("Retrain").forget(adaptive, request_20, other).trained.hash != expected
    replay = get_method("Replay", prefix="recomputed", **EXACT)
    assert replay.forget(adaptive, request_20, same).trained.hash == expected
    with pytest.raises(MethodError, match="do not reach the stored rewind checkpoint"):
        replay.forget(adaptive, request_20, other)
    new = get_method("Retrain", seeds="new")
    assert (
        new.forget(adaptive, request_20, other).trained.hash == new.forget(adaptive, request_20, context).trained.hash
    )
    tuned = get_method("FT", epochs=1)
    after, without = (tuned.forget(adaptive, request_20, one).trained.hash for one in (other, context))
    assert after == without, "a method's own training is not the recorded one"
    short = dataclasses.replace(context, order=RecordedOrder((digits.record_ids[epochs[0]],)))
    with pytest.raises(DataError, match="epoch 2 was not recorded"):
        get_method("Retrain").forget(adaptive, request_20, short)


@pytest.mark.parametrize("name", ["FT", "GA", "RL", "l1-sparse", "SalUn", "Replay"])
def test_masks_hold_under_adamw(name: str, sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    method = get_method(name, epochs=1, optimiser="adamw", clip_norm=0.5, learning_rate=1e-3, weight_decay=0.1)
    after = method.forget(sparse, request_20, context).trained
    assert after.hash != sparse.hash
    assert sparse.mask is not None
    for tensor, kept in sparse.mask.kept.items():
        pruned = plain_state(after.model)[tensor][~kept]
        assert not pruned.any()
        assert not torch.signbit(pruned).any()
    plain = get_method(name, epochs=1, learning_rate=1e-3, weight_decay=0.1).forget(sparse, request_20, context).trained
    assert plain.hash != after.hash


def test_ft_with_adamw_is_a_plain_loop(
    mlp: Trained, request_20: ForgetRequest, context: Context, digits: Records
) -> None:
    options = {"optimiser": "adamw", "clip_norm": 0.5, "label_smoothing": 0.1, "learning_rate": 1e-3}
    method = get_method("FT", epochs=2, batch_size=64, weight_decay=0.1, **options)
    outcome = method.forget(mlp, request_20, context)
    model = clone_model(mlp.model).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    rows = digits.rows(request_20.apply(mlp.split).retain)
    features = torch.from_numpy(np.asarray(digits.features)).float() / 255
    labels = torch.from_numpy(digits.labels)
    for epoch in range(2):
        order = rows[epoch_order(digits.keys[rows], derive(9, "method", "FT"), epoch)]
        for batch in torch.from_numpy(order).split(64):
            loss = nn.functional.cross_entropy(model(features[batch]), labels[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimiser.step()
    for name, tensor in plain_state(model).items():
        assert torch.equal(tensor, plain_state(outcome.trained.model)[name]), name


def test_formulas_of_sgd_are_refused(adaptive: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(MethodError, match="trained by adamw"):
        training_time(RECIPE, 100)
    with pytest.raises(MethodError, match="not plain SGD"):
        check_covered_recipe(RECIPE, "Rewind.noise")
    with pytest.raises(MethodError, match="not that of the training objective"):
        get_method("Warnecke-1").forget(adaptive, request_20, context)
    get_method("Warnecke-1", weight_decay=0.0).forget(adaptive, request_20, context)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("prefix", ["recorded", "recomputed"])
def test_rewind_with_moments_is_one_run_whose_records_change(
    optimiser: str, prefix: str, digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context
) -> None:
    """A plain loop with one optimiser: an epoch on D, then the others on D_r."""
    network = Architecture("mlp", {"widths": (12,)}, digits.input_shape, digits.classes)
    recipe = Recipe(
        epochs=3, batch_size=64, learning_rate=0.01, weight_decay=0.1, optimiser=optimiser, keep_epochs=(1,),
        keep_moments=True,
    )  # fmt: skip
    trained = train(digits, digits_split, network, recipe=recipe, seed=5, runtime=context.runtime)
    assert "optimiser_moments" in trained.list_influence_state()
    outcome = get_method("Rewind", prefix_epochs=1, prefix=prefix).forget(trained, request_20, context)
    get_method("Rewind", prefix_epochs=1, rest=1, prefix=prefix).forget(trained, request_20, context)
    get_method("Replay", prefix_epochs=1, prefix="compressed", epochs=0).forget(trained, request_20, context)
    assert "optimiser_moments" not in outcome.trained.state
    assert "optimiser_moments" in outcome.dropped
    model = network.build(5).train()
    made: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
        if optimiser == "sgd"
        else torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    )
    features = torch.from_numpy(np.asarray(digits.features)).float() / 255
    labels = torch.from_numpy(digits.labels)
    for epoch in range(3):
        rows = digits.rows(digits_split.retain if epoch == 0 else request_20.apply(digits_split).retain)
        order = rows[epoch_order(digits.keys[rows], trained.provenance.seeds["order"], epoch)]
        for batch in torch.from_numpy(order).split(64):
            made.zero_grad()
            nn.functional.cross_entropy(model(features[batch]), labels[batch]).backward()
            made.step()
    for name, tensor in plain_state(model).items():
        assert torch.equal(tensor, plain_state(outcome.trained.model)[name]), name
