"""Replay of models that had their mask from the first step of training on: the prefix has it too."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from replay_runs import (
    BARE,
    CPU,
    change_provenance,
    count_lost_zeros,
    get_checkpoint,
    hash_checkpoint,
    make_cnn,
    make_mlp,
    with_recipe,
    without_state,
)

from expunge.core.errors import MethodError
from expunge.core.mask import Mask
from expunge.core.trained import clone_model, plain_state
from expunge.methods import Context, get_method
from expunge.models import load_trained, save_trained
from expunge.sparsity import Pruning, prune


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


@pytest.fixture(scope="module", params=["synflow", "snip"])
def sparse(request, digits, digits_split, context):
    dense = make_cnn(digits, digits_split)
    return prune(dense, Pruning(0.6, criterion=request.param, layers=("conv", "linear"), schedule="at-init"), context)


def replay(trained, request, context, **options):
    return get_method("Replay", **{"prefix_epochs": 2, **BARE, **options}).forget(trained, request, context)


def test_the_stored_checkpoint_is_of_the_masked_run(sparse):
    early, last = get_checkpoint(sparse, 2), plain_state(sparse.model)
    assert early.keys() == last.keys()
    for name, kept in sparse.mask.kept.items():
        assert not early[name][~kept].any(), name
    assert sparse.provenance.checkpoints["2"]["mask"] == sparse.mask.hash()


@pytest.mark.parametrize("prefix", ["recorded", "recomputed", "compressed"])
def test_the_whole_run_replayed_is_retraining_with_the_mask(sparse, context, request_20, prefix):
    outcome = replay(sparse, request_20, context, prefix_epochs=5, prefix=prefix)
    retrained = get_method("Retrain", mask="same").forget(sparse, request_20, context)
    assert outcome.trained.hash == retrained.trained.hash != sparse.hash
    assert count_lost_zeros(outcome.trained) == 0


def test_stored_and_recomputed_checkpoints_are_equal(sparse, context, request_20):
    stored, again = (replay(sparse, request_20, context, prefix=p) for p in ("recorded", "recomputed"))
    assert stored.trained.hash == again.trained.hash
    assert stored.cost.passes == 2
    assert again.cost.passes > 4
    assert hash_checkpoint(stored.trained, 2) == hash_checkpoint(again.trained, 2)
    assert stored.trained.provenance.checkpoints["2"]["mask"] == sparse.mask.hash()


def test_a_checkpoint_with_another_mask_is_not_used(sparse, context, request_20):
    """It is computed again, as one that is not stored."""
    other = {name: kept.clone() for name, kept in sparse.mask.kept.items()}
    name = next(iter(other))
    first = tuple(torch.nonzero(other[name])[0].tolist())
    other[name][first] = False
    model = with_mask(sparse, Mask(other, sparse.mask.provenance))
    assert replay(model, request_20, context).cost.passes > 4


def with_mask(trained, mask):
    model = clone_model(trained.model)
    mask.apply_(model)
    return dataclasses.replace(trained, model=model, mask=mask)


def test_the_dense_checkpoints_of_the_dense_run_are_not_kept(digits, digits_split, context):
    """Of a model without `keep_epochs` in its recipe, too."""
    dense = make_mlp(digits, digits_split)
    dense = with_recipe(dense, keep_epochs=[])
    sparse = prune(dense, Pruning(0.5, criterion="synflow", layers=("linear",), schedule="at-init"), context)
    assert "early_checkpoints" not in sparse.state
    assert sparse.provenance.checkpoints == {}
    assert "early_checkpoints" in dense.state


@pytest.mark.parametrize("schedule", ["omp", "one-shot", "imp"])
def test_other_schedules_keep_the_dense_checkpoints(digits, digits_split, context, schedule):
    dense = make_mlp(digits, digits_split)
    sparse = prune(dense, Pruning(0.5, layers=("linear",), schedule=schedule), context)
    assert hash_checkpoint(sparse, 2) == hash_checkpoint(dense, 2)
    assert sparse.provenance.checkpoints == dense.provenance.checkpoints


@pytest.mark.parametrize("prefix", ["recorded", "recomputed"])
def test_rewind_starts_from_the_masked_run(sparse, context, request_20, prefix, tmp_path):
    """From the stored one, or run again; the model may have been saved and loaded."""
    method = get_method("Rewind", prefix_epochs=2, prefix=prefix)
    save_trained(sparse, tmp_path / "model")
    outcome = method.forget(load_trained(tmp_path / "model"), request_20, context)
    assert outcome.trained.hash == method.forget(sparse, request_20, context).trained.hash
    assert count_lost_zeros(outcome.trained) == 0


def test_rewind_to_the_start_is_retraining_with_the_mask(sparse, context, request_20):
    after = get_method("Rewind", prefix_epochs=0).forget(sparse, request_20, context).trained
    assert after.hash == get_method("Retrain", mask="same").forget(sparse, request_20, context).trained.hash


@pytest.mark.parametrize("damage", ["missing", "shape", "type"])
def test_damaged_checkpoints_are_refused(sparse, context, request_20, damage):
    state = dict(sparse.state["early_checkpoints"])
    key = next(key for key in state if key.endswith("weight"))
    if damage == "missing":
        del state[key]
    else:
        state[key] = state[key][:1] if damage == "shape" else state[key].double()
    damaged = dataclasses.replace(sparse, state={**sparse.state, "early_checkpoints": state})
    for name in ("Replay", "Rewind", "MSA"):
        with pytest.raises(MethodError, match=f"{key.partition('/')[2]}: the stored checkpoint of epoch 2"):
            get_method(name, prefix_epochs=2).forget(damaged, request_20, context)


def test_the_stored_run_of_another_recipe_is_refused(sparse, context, request_20):
    for changed in (with_recipe(sparse, momentum=0.5), change_provenance(sparse, checkpoints={})):
        with pytest.raises(MethodError, match="not of the run that would be replayed"):
            replay(changed, request_20, context)
    assert replay(without_state(sparse, "early_checkpoints"), request_20, context).cost.passes > 4
