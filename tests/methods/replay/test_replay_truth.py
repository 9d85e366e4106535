"""Replay against retraining, fine-tuning and closed forms, bit by bit; and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from replay_runs import (
    BARE,
    CPU,
    RECIPE,
    change_provenance,
    count_lost_zeros,
    get_checkpoint,
    hash_checkpoint,
    make_cnn,
    make_mlp,
    train_without,
    with_recipe,
    with_seeds,
    without_state,
)

from expunge.core.errors import ConfigError, MethodError
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.trained import plain_state
from expunge.methods import Context, get_method
from expunge.methods.replay import combine
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune


@pytest.fixture(scope="module")
def mlp(digits, digits_split):
    return make_mlp(digits, digits_split)


@pytest.fixture(scope="module")
def cnn(digits, digits_split):
    return make_cnn(digits, digits_split)


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


@pytest.fixture(params=["mlp", "cnn"])
def original(request):
    return request.getfixturevalue(request.param)


def replay(trained, request, context, **options):
    return get_method("Replay", **{"prefix_epochs": 2, **BARE, **options}).forget(trained, request, context)


# ---- identities


def test_an_empty_request_is_the_identity(original, context):
    for name in ("Replay", "Rewind", "MSA"):
        outcome = get_method(name).forget(original, ForgetRequest(()), context)
        assert outcome.trained.hash == original.hash
        assert (outcome.cost.passes, outcome.rewrote, outcome.dropped) == (0, (), ())
        assert outcome.trained.state is original.state
        assert outcome.trained.provenance.checkpoints == original.provenance.checkpoints


@pytest.mark.parametrize("prefix", ["recorded", "recomputed"])
def test_the_whole_run_replayed_is_retraining(original, context, request_20, digits, prefix):
    """c = 1, k = T, no fine-tuning: Retrain's weights and buffers, bit for bit."""
    outcome = replay(original, request_20, context, prefix_epochs=5, prefix=prefix)
    retrained = get_method("Retrain").forget(original, request_20, context).trained
    assert outcome.trained.hash == retrained.hash == train_without(original, request_20, digits).hash
    assert outcome.trained.hash != original.hash
    assert outcome.trained.provenance.architecture == retrained.provenance.architecture
    assert outcome.guarantee == "empirical"


def test_a_squeezed_run_as_long_as_the_recipe_is_retraining(original, context, request_20):
    outcome = replay(original, request_20, context, prefix_epochs=5, prefix="compressed")
    assert outcome.trained.hash == get_method("Retrain").forget(original, request_20, context).trained.hash


@pytest.mark.parametrize("batch_norm", ["train", "frozen", "re-estimate"])
def test_a_scale_of_zero_is_fine_tuning(original, context, request_20, batch_norm):
    options = {"epochs": 2, "learning_rate": 0.03, "batch_size": 40, "momentum": 0.5, "batch_norm": batch_norm}
    outcome = replay(original, request_20, context, scale=0, **options)
    expected = get_method("FT", **options).forget(original, request_20, context)
    assert outcome.trained.hash == expected.trained.hash
    assert (outcome.cost.trained_records, outcome.cost.forward_records) == (
        expected.cost.trained_records, expected.cost.forward_records
    )  # fmt: skip
    assert (outcome.rewrote, outcome.dropped) == (expected.rewrote, expected.dropped)
    assert outcome.trained.provenance.checkpoints == {}


# ---- the formula


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_theta_hat_is_the_sum(original, context, request_20, digits, scale):
    """Computed with numpy from runs of `train`; the buffers are those of theta_k(D_r)."""
    after = plain_state(replay(original, request_20, context, scale=scale).trained.model)
    with_all, without = get_checkpoint(original, 2), get_checkpoint(train_without(original, request_20, digits), 2)
    parameters = {name for name, _ in original.model.named_parameters()}
    for name, tensor in plain_state(original.model).items():
        if name in parameters:
            last, k_all, k_retain = (t.numpy().astype(np.float64) for t in (tensor, with_all[name], without[name]))
            expected = (last + scale * (k_retain - k_all)).astype(np.float32)
            assert after[name].numpy().tobytes() == expected.tobytes(), name
        else:
            assert torch.equal(after[name], without[name]), name


def test_the_sum_is_formed_in_float64():
    """In float32, a + (b - a) is b for some of the entries only."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(10_000, generator=generator) for _ in range(2))
    assert torch.equal(combine({"w": a}, {"w": a}, {"w": b})["w"], b)
    assert not torch.equal(a + (b - a), b)


def test_stored_and_recomputed_checkpoints_are_equal(original, context, request_20, digits_split):
    stored = replay(original, request_20, context)
    again = replay(original, request_20, context, prefix="recomputed")
    bare = replay(without_state(original, "early_checkpoints", "rewind_checkpoint"), request_20, context)
    assert stored.trained.hash == again.trained.hash == bare.trained.hash
    count, size = len(request_20.record_ids), len(digits_split.retain)
    assert stored.cost.trained_records == 2 * (size - count)
    assert again.cost.trained_records == bare.cost.trained_records == 2 * (size - count) + 2 * size
    assert hash_checkpoint(stored.trained, 2) == hash_checkpoint(again.trained, 2) == hash_checkpoint(bare.trained, 2)


def test_a_fraction_counts_epochs_of_the_recipe(mlp, context, request_20):
    assert (
        replay(mlp, request_20, context, prefix_epochs=0.4).trained.hash
        == replay(mlp, request_20, context).trained.hash
    )


def test_a_compressed_prefix_squeezes_the_schedule(mlp, context, request_20, digits, digits_split):
    """Both runs are those of `train` with the recipe in two epochs."""
    short = dataclasses.replace(RECIPE, epochs=2, keep_epochs=())
    with_all = make_mlp(digits, digits_split, short)
    without = train_without(with_all, request_20, digits)
    tensors = (dict(t.model.named_parameters()) for t in (mlp, with_all, without))
    expected = combine(*tensors)
    outcome = replay(mlp, request_20, context, prefix="compressed")
    assert hash_tensors(dict(outcome.trained.model.named_parameters())) == hash_tensors(expected)
    size = len(digits_split.retain)
    assert outcome.cost.trained_records == 2 * (2 * size - len(request_20.record_ids))
    assert "early_checkpoints" not in outcome.trained.state
    assert outcome.trained.provenance.checkpoints == {}


def test_buffers_are_re_estimated_on_retained_records(cnn, context, request_20, digits):
    """On a sample of D_r, for theta_hat: equal to a direct re-estimation of the model without it."""
    bare = replay(cnn, request_20, context).trained
    outcome = replay(cnn, request_20, context, re_estimate=2048)
    rows = context.records.rows(outcome.trained.split.retain)
    first = plain_state(outcome.trained.model)
    x = torch.from_numpy(np.asarray(digits.features[rows])).float() / 255
    bn = next(name for name in first if name.endswith("running_mean")).removesuffix(".running_mean")
    seen = {}
    bare.model.get_submodule(bn).register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        bare.model.train()(x)
    assert torch.allclose(first[f"{bn}.running_mean"], seen["x"].mean((0, 2, 3)), atol=1e-4)
    assert outcome.cost.forward_records == len(rows)
    few = replay(cnn, request_20, context, re_estimate=50)
    assert few.cost.forward_records == 50
    assert few.trained.hash not in (bare.hash, outcome.trained.hash)


def test_fine_tuning_after_replay_is_that_of_ft(cnn, context, request_20):
    theta_hat = replay(cnn, request_20, context).trained
    outcome = replay(cnn, request_20, context, epochs=2, learning_rate=0.02)
    stand_in = dataclasses.replace(cnn, model=theta_hat.model, provenance=theta_hat.provenance)
    tuned = get_method("FT", epochs=2, learning_rate=0.02).forget(stand_in, request_20, context).trained
    assert outcome.trained.hash == tuned.hash


# ---- refused by hash, and by the rewind checkpoint


def with_retain(trained, ids):
    return dataclasses.replace(trained, split=dataclasses.replace(trained.split, retain=ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: with_seeds(t, order=t.provenance.seeds["order"] + 1), "not of the run"),
        (lambda t: with_recipe(t, learning_rate=0.2), "not of the run"),
        (lambda t: with_recipe(t, epochs=6), "not of the run"),
        (lambda t: with_recipe(t, augment="crop-flip"), "not of the run"),
        (lambda t: with_seeds(t, initial=t.provenance.seeds["initial"] + 1), "initial weights do not have the hash"),
        (lambda t: change_provenance(with_seeds(t, initial=7), initial_weights=""), "not of the run"),
        (lambda t: with_retain(t, t.split.retain[1:]), "other records"),
    ],
)  # fmt: skip
def test_a_stored_checkpoint_of_another_run_is_refused(mlp, context, request_20, change, message):
    with pytest.raises(MethodError, match=message):
        replay(change(mlp), request_20, context)


@pytest.mark.parametrize("fields", [{"select": "best"}, {"rewind": 0.6}, {"name": "other"}, {"keep_epochs": [1, 2, 3]}])
def test_fields_without_effect_on_the_first_epochs_do_not_matter(mlp, context, request_20, fields):
    assert replay(with_recipe(mlp, **fields), request_20, context).cost.passes == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda t: with_seeds(t, order=t.provenance.seeds["order"] + 1),
        lambda t: with_recipe(t, learning_rate=0.11),
        lambda t: with_recipe(t, batch_size=40),
        lambda t: change_provenance(with_seeds(t, initial=7), initial_weights=""),
        lambda t: with_retain(t, t.split.retain[20:]),
    ],
)
def test_a_recomputed_run_has_to_reach_the_rewind_checkpoint(mlp, context, digits_split, change):
    request = ForgetRequest(digits_split.retain[-20:])
    with pytest.raises(MethodError, match="do not reach the stored rewind checkpoint"):
        replay(change(mlp), request, context, prefix="recomputed")


def test_rounding_of_another_machine_passes(mlp, context, request_20):
    """Another processor rounds differently: the stored checkpoint may differ in its last bits."""
    stored = mlp.state["rewind_checkpoint"]
    generator = torch.Generator().manual_seed(0)
    near = {
        name: tensor * (1 + 1e-6 * torch.randn(tensor.shape, generator=generator))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in stored.items()
    }
    moved = dataclasses.replace(mlp, state={**mlp.state, "rewind_checkpoint": near})
    assert replay(moved, request_20, context, prefix="recomputed").cost.passes > 4


def test_another_number_of_threads_passes(cnn, context, request_20):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        outcome = replay(cnn, request_20, context, prefix="recomputed")
    finally:
        torch.set_num_threads(threads)
    assert outcome.cost.passes > 4


@pytest.mark.parametrize("name", ["Replay", "Rewind", "MSA"])
def test_what_is_not_recorded_is_named(mlp, context, request_20, name):
    method = get_method(name, prefix_epochs=2)
    seeds = dict(mlp.provenance.seeds)
    for change, message in (
        ({"recipe": {}}, "recipe of the original model is not recorded"),
        ({"seeds": {"initial": seeds["initial"]}}, "order of records is not recorded"),
        ({"seeds": {"order": seeds["order"]}}, "neither the original's initial weights nor their seed"),
    ):
        with pytest.raises(MethodError, match=message):
            method.forget(change_provenance(mlp, **change), request_20, context)
    for wrong in (6, 2.5):
        with pytest.raises(ConfigError, match="not a number of epochs of a recipe of 5"):
            get_method(name, prefix_epochs=wrong).forget(mlp, request_20, context)


def test_a_compressed_prefix_needs_no_order_of_the_original(mlp, context, request_20):
    """Weights from elsewhere, with a recipe and stored initial weights: both runs share an order of their own."""
    initial = Architecture.from_json(mlp.provenance.architecture).build(mlp.provenance.seeds["initial"])
    adopted = without_state(change_provenance(mlp, seeds={}, weights_from="0" * 64), "early_checkpoints")
    state = {"initial_weights": dict(initial.named_parameters())}
    adopted = dataclasses.replace(adopted, state=state)
    outcome = replay(adopted, request_20, context, prefix="compressed")
    assert outcome.trained.hash != mlp.hash
    assert outcome.trained.hash == replay(adopted, request_20, context, prefix="compressed").trained.hash
    with pytest.raises(MethodError, match="order of records is not recorded"):
        replay(adopted, request_20, context)


# ---- masks


@pytest.mark.parametrize("criterion", ["magnitude", "filter-l2"])
def test_pruned_weights_stay_plus_zero(cnn, context, request_20, criterion):
    granularity = "filter" if criterion == "filter-l2" else "weight"
    sparse = prune(cnn, Pruning(0.5, criterion=criterion, granularity=granularity, layers=("conv",)), context)
    for options in ({}, {"epochs": 1}, {"scale": -1.5, "re_estimate": 64}, {"prefix": "compressed", "epochs": 1}):
        after = replay(sparse, request_20, context, **options).trained
        assert after.mask.hash() == sparse.mask.hash()
        assert count_lost_zeros(after) == 0
    for name in ("Rewind", "MSA"):
        after = get_method(name, prefix_epochs=2).forget(sparse, request_20, context).trained
        assert count_lost_zeros(after) == 0
        assert after.mask.hash() == sparse.mask.hash()


def test_the_difference_is_restricted_to_kept_weights(cnn, context, request_20, digits):
    sparse = prune(cnn, Pruning(0.5, layers=("conv", "linear")), context)
    after = plain_state(replay(sparse, request_20, context).trained.model)
    with_all, without = get_checkpoint(cnn, 2), get_checkpoint(train_without(cnn, request_20, digits), 2)
    for name, tensor in sparse.model.named_parameters():
        expected = tensor.detach().double() + without[name].double() - with_all[name].double()
        if name in sparse.mask.kept:
            expected = torch.where(sparse.mask.kept[name], expected, 0.0)
        assert torch.equal(after[name], expected.float()), name
