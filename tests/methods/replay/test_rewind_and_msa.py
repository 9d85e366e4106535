"""Rewind against retraining and continued training; MSA against closed forms; costs and what outcomes state."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from replay_runs import CPU, RECIPE, get_checkpoint, make_cnn, make_mlp, train_without, with_recipe, without_state

from expunge.core.early_checkpoints import describe_checkpoint, pack_checkpoints
from expunge.core.errors import MethodError
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.trained import clone_model, plain_state
from expunge.data.batches import Batches
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, fit
from expunge.training.checkpoint import load_state

#: Without momentum, a run that stops and goes on is the run that does not stop.
PLAIN = dataclasses.replace(RECIPE, momentum=0.0, nesterov=False)


@pytest.fixture(scope="module")
def mlp(digits, digits_split):
    return make_mlp(digits, digits_split)


@pytest.fixture(scope="module")
def cnn(digits, digits_split):
    return make_cnn(digits, digits_split)


@pytest.fixture(scope="module")
def plain(digits, digits_split):
    return make_cnn(digits, digits_split, PLAIN)


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


def rewind(trained, request, context, **options):
    return get_method("Rewind", **{"prefix_epochs": 2, **options}).forget(trained, request, context)


def with_clean_checkpoint(trained, request, digits, epoch=2):
    """The original with theta_k(D_r) as its checkpoint."""
    without = train_without(trained, request, digits)
    ids = request.apply(trained.split).retain
    provenance = trained.provenance
    stated = describe_checkpoint(ids, provenance.recipe, provenance.seeds, provenance.initial_weights)
    state = {**trained.state, "early_checkpoints": pack_checkpoints({epoch: get_checkpoint(without, epoch)})}
    provenance = dataclasses.replace(provenance, checkpoints={str(epoch): stated})
    return dataclasses.replace(trained, state=state, provenance=provenance)


# ---- Rewind


@pytest.mark.parametrize("select", ["last", "best"])
def test_from_the_initial_weights_it_is_retraining(digits, digits_split, context, request_20, select):
    trained = make_cnn(digits, digits_split, dataclasses.replace(RECIPE, select=select))
    outcome = rewind(trained, request_20, context, prefix_epochs=0)
    expected = get_method("Retrain").forget(trained, request_20, context)
    assert outcome.trained.hash == expected.trained.hash
    assert outcome.trained.provenance.architecture == expected.trained.provenance.architecture
    assert outcome.trained.provenance.trained_on == expected.trained.provenance.trained_on  # it can be a reference
    assert outcome.carried == ()
    assert set(outcome.rewrote) == {"weights", "batch_norm", "normalisation"}
    assert (outcome.cost.trained_records, outcome.cost.forward_records) == (
        expected.cost.trained_records, expected.cost.forward_records
    )  # fmt: skip


def test_of_a_sparse_model_it_is_retraining_with_the_same_mask(cnn, context, request_20):
    """If the original's second training has the order of the first."""
    sparse = prune(cnn, Pruning(0.5, layers=("conv", "linear"), schedule="one-shot"), context)
    seeds = {name: seed for name, seed in sparse.provenance.seeds.items() if name != "pruning_order"}
    sparse = dataclasses.replace(sparse, provenance=dataclasses.replace(sparse.provenance, seeds=seeds))
    outcome = rewind(sparse, request_20, context, prefix_epochs=0)
    assert outcome.trained.hash == get_method("Retrain", mask="same").forget(sparse, request_20, context).trained.hash
    assert "mask" in outcome.carried


def test_the_rest_is_the_rest_of_the_recipe(plain, digits, context, request_20):
    """From the checkpoint of D_r, without momentum: training that did not stop; the outcome says that it is clean."""
    clean = with_clean_checkpoint(plain, request_20, digits)
    outcome = rewind(clean, request_20, context)
    assert outcome.trained.hash == train_without(plain, request_20, digits).hash
    assert "it has not seen them" in outcome.trained.provenance.history[-1]
    assert outcome.carried == ()
    dirty = rewind(plain, request_20, context)
    assert dirty.trained.hash != outcome.trained.hash
    assert "it has seen them" in dirty.trained.provenance.history[-1]


def test_replay_needs_the_checkpoint_of_all_records(plain, digits, context, request_20):
    clean = with_clean_checkpoint(plain, request_20, digits)
    with pytest.raises(MethodError, match="has seen other records"):
        get_method("Replay", prefix_epochs=2).forget(clean, request_20, context)


def test_stored_and_recomputed_checkpoints_give_the_same(cnn, context, request_20, digits_split):
    stored, again = (rewind(cnn, request_20, context, prefix=p) for p in ("recorded", "recomputed"))
    assert stored.trained.hash == again.trained.hash
    size, count = len(digits_split.retain), len(request_20.record_ids)
    assert stored.cost.trained_records == 3 * (size - count)
    assert again.cost.trained_records == 3 * (size - count) + 2 * size
    assert stored.cost.passes == 3


@pytest.mark.parametrize("epochs", [5, 0.95])
def test_nothing_remains_after_the_last_epoch(cnn, context, request_20, epochs):
    with pytest.raises(MethodError, match="no epoch of the recipe remains after epoch 5"):
        rewind(cnn, request_20, context, prefix_epochs=epochs)


@pytest.mark.parametrize("rest", [1, 2, 3, 7])
def test_a_shorter_rest_follows_the_squeezed_schedule(cnn, context, request_20, digits, rest):
    """Against a loop with the rates computed here: position p of the rest is k + p (T - k) / rest of the recipe."""
    outcome = rewind(cnn, request_20, context, rest=rest)
    recipe = Recipe(**cnn.provenance.recipe)
    rows = digits.rows(outcome.trained.split.retain)
    model = clone_model(outcome.trained.model)
    checkpoint = get_checkpoint(cnn, 2)
    load_state(model, {name: t for name, t in checkpoint.items() if not name.startswith("normalise.")})
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = Batches(digits, rows, batch_size=48, augment="crop-flip")
    for epoch in range(rest):
        model.train()
        for step, (x, y) in enumerate(batches.epoch(cnn.provenance.seeds["order"], epoch)):
            optimiser.param_groups[0]["lr"] = recipe.rate(2 + (epoch + step / len(batches)) * 3 / rest)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    if rest == 3:
        assert outcome.history[0]["learning_rate"] == pytest.approx(recipe.rate(2 + (len(batches) - 1) / len(batches)))
    for name, tensor in plain_state(model).items():
        assert torch.allclose(plain_state(outcome.trained.model)[name], tensor, atol=1e-5), name
    assert outcome.cost.trained_records == rest * len(rows)


def test_a_frozen_parameter_stays(cnn, context, request_20):
    frozen = dataclasses.replace(cnn, model=clone_model(cnn.model))
    name, parameter = next(iter(frozen.model.named_parameters()))
    initial = Architecture.from_json(cnn.provenance.architecture).build(cnn.provenance.seeds["initial"])
    with torch.no_grad():
        parameter.copy_(dict(initial.named_parameters())[name])
    parameter.requires_grad_(False)
    for method in ("Rewind", "MSA"):
        after = get_method(method, prefix_epochs=0).forget(frozen, request_20, context).trained
        assert torch.equal(dict(after.model.named_parameters())[name], parameter), method


# ---- MSA


def msa(trained, request, context, **options):
    return get_method("MSA", **{"prefix_epochs": 2, **options}).forget(trained, request, context)


def test_one_record_has_no_variance_to_estimate():
    with pytest.raises(MethodError, match="re_estimate"):
        get_method("MSA", re_estimate=1)


@pytest.mark.parametrize("original", ["mlp", "cnn"])
def test_factors_of_zero_change_nothing(original, context, request_20, request):
    trained = request.getfixturevalue(original)
    outcome = msa(trained, request_20, context, alpha=0.0, beta=0.0)
    assert outcome.trained.hash == trained.hash
    assert (outcome.cost.passes, outcome.rewrote) == (0, ())
    assert set(outcome.dropped) == {"rewind_checkpoint", "early_checkpoints"}


def test_the_arithmetic_is_that_of_two_trainings(cnn, digits, context, request_20):
    """theta_D - alpha (theta_1 - theta_0) + beta (theta_2 - theta_0), trained here by `fit` from the checkpoint."""
    options = {"epochs": 2, "learning_rate": 0.02, "batch_size": 16, "alpha": 1.5, "beta": 0.5, "re_estimate": 0}
    outcome = msa(cnn, request_20, context, retain_sample=30, **options)
    method = get_method("MSA", **options)
    from expunge.core.seeds import derive, epoch_order

    seed = derive(context.seed, "method", "MSA")
    retain = digits.rows(outcome.trained.split.retain)
    sample = retain[epoch_order(digits.keys[retain], derive(context.seed, "msa", "retain"), 0)[:30]]
    found = {}
    for name, rows in (("forget", digits.rows(request_20.record_ids)), ("retain", sample)):
        model = clone_model(cnn.model)
        load_state(model, get_checkpoint(cnn, 2))
        network = Architecture.from_json(cnn.provenance.architecture).remeasure_normalisation(
            digits, outcome.trained.split.retain
        )
        normalise = {n: t for n, t in plain_state(network.build(0)).items() if n.startswith("normalise.")}
        load_state(model, normalise)
        fit(model, rows, method.make_recipe(cnn), dataclasses.replace(context, seed=seed))
        found[name] = {n: p.detach().double() for n, p in model.named_parameters()}
    start = {n: t.double() for n, t in get_checkpoint(cnn, 2).items()}
    for name, parameter in cnn.model.named_parameters():
        expected = parameter.detach().double() - 1.5 * (found["forget"][name] - start[name])
        expected = expected.float().double() + 0.5 * (found["retain"][name] - start[name])
        assert torch.allclose(dict(outcome.trained.model.named_parameters())[name].double(), expected, atol=1e-6), name
    assert outcome.cost.trained_records == 2 * (20 + 30)
    buffers = {n: t for n, t in plain_state(outcome.trained.model).items() if "running" in n}
    assert hash_tensors(buffers) == hash_tensors({n: plain_state(cnn.model)[n] for n in buffers})


def test_one_step_has_a_closed_form(mlp, digits, context, request_20):
    """One whole-batch step: theta_D + eta (alpha g(D_f) - beta g(sample)) with gradients at theta_0."""
    options = {"epochs": 1, "batch_size": 1000, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}
    outcome = msa(mlp, request_20, context, alpha=2.0, beta=1.0, retain_sample=10_000, **options)
    gradients = []
    for ids in (request_20.record_ids, outcome.trained.split.retain):
        rows = digits.rows(ids)
        model = clone_model(mlp.model)
        load_state(model, get_checkpoint(mlp, 2))
        x = torch.from_numpy(np.array(digits.features)[rows]).float() / 255
        loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(digits.labels[rows]))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for old, new, forget, retain in zip(
        mlp.model.parameters(), outcome.trained.model.parameters(), *gradients, strict=True
    ):
        assert torch.allclose(new, old + 0.1 * (2.0 * forget - retain), atol=1e-6)


def test_a_checkpoint_that_has_seen_them_is_labelled_or_refused(mlp, digits, context, request_20):
    outcome = msa(mlp, request_20, context)
    assert "it has seen them), so this is task-vector negation" in outcome.trained.provenance.history[-1]
    with pytest.raises(MethodError, match="epoch 2 has seen records of the request"):
        msa(mlp, request_20, context, dirty="refuse")
    with pytest.raises(MethodError, match="epoch 2 has seen records of the request"):
        msa(mlp, request_20, context, dirty="refuse", prefix="recomputed")
    for trained, options in ((mlp, {"prefix_epochs": 0}), (with_clean_checkpoint(mlp, request_20, digits), {})):
        clean = msa(trained, request_20, context, dirty="refuse", **options)
        assert "negation" not in clean.trained.provenance.history[-1]


def test_costs_are_exact(mlp, cnn, context, request_20, digits_split):
    size, count = len(digits_split.retain), len(request_20.record_ids)
    options = {"epochs": 3}
    stored = msa(mlp, request_20, context, **options)
    assert stored.cost.trained_records == 3 * 2 * count
    assert msa(mlp, request_20, context, prefix="recomputed", **options).cost.trained_records == 6 * count + 2 * size
    assert msa(without_state(mlp, "early_checkpoints"), request_20, context, **options).cost.trained_records == (
        6 * count + 2 * size
    )
    assert msa(mlp, request_20, context, prefix_epochs=0, **options).cost.trained_records == 6 * count
    assert msa(mlp, request_20, context, beta=0.0, **options).cost.trained_records == 3 * count
    with_buffers = msa(cnn, request_20, context, **options)
    assert with_buffers.cost.forward_records == size - count
    assert with_buffers.trained.provenance.checkpoints == {}
    assert {"rewind_checkpoint", "early_checkpoints"} == set(with_buffers.dropped)


def test_outcomes_state_what_was_recomputed(cnn, context, request_20):
    """Replay: the checkpoints of D_r. Weights are rewritten in part only where an entry did not change."""
    replayed = get_method("Replay", prefix_epochs=2, epochs=1).forget(cnn, request_20, context)
    assert {"weights", "batch_norm", "normalisation", "early_checkpoints"} <= set(replayed.rewrote)
    assert replayed.dropped == ()
    assert "rewind_checkpoint" in replayed.trained.state
    assert {"early_checkpoints", "rewind_checkpoint", "batch_norm"} == set(replayed.recomputed)
    rewound = rewind(cnn, request_20, context)
    assert set(rewound.dropped) == {"rewind_checkpoint", "early_checkpoints"}
    assert rewound.recomputed == ()


def test_patches_are_dropped(digits, digits_split, context):
    trained = make_mlp(digits, digits_split)
    request = ForgetRequest(digits_split.retain[:2])
    patched = get_method("patch").forget(trained, request, context).trained
    later = ForgetRequest(digits_split.retain[2:12])
    for name in ("Replay", "Rewind", "MSA"):
        with_patches = get_method(name, prefix_epochs=2, prefix="recomputed").forget(patched, later, context)
        assert "patches" in with_patches.dropped, name
        assert "patches" not in with_patches.trained.state
        assert with_patches.trained.provenance.architecture["name"] == "mlp"
    stand_in = dataclasses.replace(patched.split, retain=patched.split.retain)
    plain = dataclasses.replace(without_state(trained, "early_checkpoints", "rewind_checkpoint"), split=stand_in)
    bare = {"prefix_epochs": 2, "epochs": 0}
    expected = get_method("Replay", **bare).forget(plain, later, context).trained
    assert get_method("Replay", **bare).forget(patched, later, context).trained.hash == expected.hash


def test_another_recipe_is_refused(mlp, context, request_20):
    for name in ("Rewind", "MSA"):
        with pytest.raises(MethodError, match="not of the run that would be replayed"):
            get_method(name, prefix_epochs=2).forget(with_recipe(mlp, learning_rate=0.3), request_20, context)
