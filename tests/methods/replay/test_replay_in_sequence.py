"""One request after another: theta_k(D_r) is the checkpoint of the next one. What is saved, and what is not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from replay_runs import (
    BARE,
    CPU,
    RECIPE,
    get_checkpoint,
    hash_checkpoint,
    make_cnn,
    make_mlp,
    train_without,
    with_recipe,
)

from expunge.core.errors import ExpungeError, FileError
from expunge.core.files import read_tensors, write_tensors
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.trained import plain_state
from expunge.methods import Context, get_method
from expunge.models import load_trained, save_trained
from expunge.sparsity import Pruning, prune


@pytest.fixture(scope="module")
def mlp(digits, digits_split):
    return make_mlp(digits, digits_split)


@pytest.fixture(scope="module")
def cnn(digits, digits_split):
    """The rewind checkpoint is of epoch 1, the early ones of epochs 2 and 4."""
    return make_cnn(digits, digits_split, dataclasses.replace(RECIPE, keep_epochs=(2, 4)))


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


@pytest.fixture(scope="module")
def requests(digits_split):
    """Two requests, and both together."""
    a, b = digits_split.retain[:15], digits_split.retain[15:25]
    return ForgetRequest(a), ForgetRequest(b), ForgetRequest(np.concatenate([b, a]))


def replay(trained, request, context, **options):
    return get_method("Replay", **{"prefix_epochs": 2, **BARE, **options}).forget(trained, request, context).trained


def through_a_folder(trained, place):
    save_trained(trained, place)
    return load_trained(place)


@pytest.mark.parametrize("prefix", ["recorded", "recomputed"])
@pytest.mark.parametrize("saved", [False, True])
def test_two_requests_are_one_in_the_checkpoint(cnn, context, requests, prefix, saved, tmp_path):
    first, second, both = requests
    after = replay(cnn, first, context, prefix=prefix)
    if saved:
        after = through_a_folder(after, tmp_path / "first")
    outcome = get_method("Replay", prefix_epochs=2, prefix=prefix, **BARE).forget(after, second, context)
    together = replay(cnn, both, context, prefix=prefix)
    assert hash_checkpoint(outcome.trained, 2) == hash_checkpoint(together, 2)
    assert outcome.trained.provenance.checkpoints == together.provenance.checkpoints
    rewind = [hash_tensors(trained.state["rewind_checkpoint"]) for trained in (outcome.trained, together)]
    assert rewind[0] == rewind[1]
    assert hash_checkpoint(outcome.trained, 2) == hash_checkpoint(train_without(cnn, both, context.records), 2)
    assert outcome.cost.passes == (2 if prefix == "recorded" else pytest.approx(2 + 2 * 275 / 265))
    assert outcome.trained.hash != together.hash  # the difference is carried to other weights


def test_a_checkpoint_before_k_is_kept_too(cnn, context, requests):
    after = replay(cnn, requests[0], context, prefix_epochs=4)
    without = train_without(cnn, requests[0], context.records)
    assert set(after.provenance.checkpoints) == {"2", "4"}
    for epoch in (2, 4):
        assert hash_checkpoint(after, epoch) == hash_checkpoint(without, epoch)
    short = replay(cnn, requests[0], context, prefix_epochs=2)
    assert set(short.provenance.checkpoints) == {"2"}


def test_after_retraining_the_next_request_costs_k_passes(mlp, context, requests):
    """Retrain stores the early checkpoints that `train` would store."""
    first, second, both = requests
    retrained = get_method("Retrain").forget(mlp, first, context)
    assert retrained.carried == ()
    assert retrained.dropped == ("rewind_checkpoint",)
    assert "early_checkpoints" in retrained.rewrote
    without = train_without(mlp, first, context.records)
    assert hash_checkpoint(retrained.trained, 2) == hash_checkpoint(without, 2)
    assert retrained.trained.provenance.checkpoints == without.provenance.checkpoints
    outcome = get_method("Replay", prefix_epochs=2, **BARE).forget(retrained.trained, second, context)
    assert outcome.cost.passes == 2
    whole = get_method("Replay", prefix_epochs=5, **BARE).forget(retrained.trained, second, context).trained
    assert whole.hash == train_without(mlp, both, context.records).hash


def test_retraining_of_a_recipe_that_keeps_none_stores_none(mlp, context, requests):
    retrained = get_method("Retrain").forget(with_recipe(mlp, keep_epochs=[]), requests[0], context)
    assert retrained.trained.state == {}
    assert retrained.trained.provenance.checkpoints == {}
    assert set(retrained.dropped) == {"rewind_checkpoint", "early_checkpoints"}


@pytest.mark.parametrize("schedule", ["omp", "at-init"])
def test_retraining_that_prunes_again_stores_them(mlp, context, requests, schedule):
    criterion = "synflow" if schedule == "at-init" else "magnitude"
    sparse = prune(mlp, Pruning(0.5, criterion=criterion, layers=("linear",), schedule=schedule), context)
    after = get_method("Retrain", mask="re-prune").forget(sparse, requests[0], context).trained
    outcome = get_method("Replay", prefix_epochs=2, **BARE).forget(after, requests[1], context)
    assert outcome.cost.passes == 2
    again = get_method("Replay", prefix_epochs=2, prefix="recomputed", **BARE).forget(after, requests[1], context)
    assert again.trained.hash == outcome.trained.hash


@pytest.mark.parametrize("name", ["FT", "GA", "l1-sparse", "Rewind", "MSA"])
def test_other_methods_drop_the_checkpoints(mlp, context, requests, name):
    options = {"prefix_epochs": 2} if name in ("Rewind", "MSA") else {"epochs": 1}
    outcome = get_method(name, **options).forget(mlp, requests[0], context)
    assert "early_checkpoints" in outcome.dropped
    assert "early_checkpoints" not in outcome.trained.state
    assert outcome.trained.provenance.checkpoints == {}
    assert "checkpoints" not in outcome.trained.provenance.to_json()
    later = get_method("Replay", prefix_epochs=2, **BARE).forget(outcome.trained, requests[1], context)
    assert hash_checkpoint(later.trained, 2) == hash_checkpoint(replay(mlp, requests[2], context), 2)


# ---- what is saved


@pytest.mark.parametrize("options", [{}, {"prefix": "recomputed"}, {"prefix": "compressed"}, {"epochs": 1}])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_neither_the_checkpoint_of_all_nor_the_difference_is_saved(
    cnn, context, requests, options, is_sparse, tmp_path
):
    trained = cnn
    if is_sparse:
        pruning = Pruning(0.5, layers=("conv", "linear"), keep_weights=True)
        trained = prune(cnn, pruning, context)
    after = replay(trained, requests[0], context, **options)
    save_trained(after, tmp_path / "after")
    written = {}
    for path in (tmp_path / "after").rglob("*.safetensors"):
        written |= {f"{path.stem}/{name}": tensor for name, tensor in read_tensors(path)[0].items()}
    with_all, without = get_checkpoint(cnn, 2), get_checkpoint(train_without(cnn, requests[0], context.records), 2)
    secret = [
        trained.state["rewind_checkpoint"],
        with_all,
        get_checkpoint(cnn, 4),
        trained.state.get("pruning_weights", {}),
    ]
    secret.append({name: without[name] - with_all[name] for name in with_all})
    same = {
        (key, name)
        for key, tensor in written.items()
        for tensors in secret
        for name, hidden in tensors.items()
        if hidden.is_floating_point() and hidden.shape == tensor.shape and torch.equal(hidden, tensor) and hidden.any()
    }
    assert same == set()
    assert len(written) >= 10
    if options.get("prefix") == "compressed":
        assert not [key for key in written if "checkpoint" in key]
    text = (tmp_path / "after" / "trained.json").read_text()
    for checkpoint in cnn.provenance.checkpoints.values():
        assert checkpoint["records"] not in text


def test_a_saved_model_keeps_what_its_checkpoints_state(cnn, tmp_path):
    loaded = through_a_folder(cnn, tmp_path / "model")
    assert loaded.provenance.checkpoints == cnn.provenance.checkpoints
    assert hash_checkpoint(loaded, 4) == hash_checkpoint(cnn, 4)
    assert loaded.provenance.recipe["keep_epochs"] == [2, 4]


DAMAGES = {
    "not a mapping": [1, 2],
    "no mapping inside": {"2": "abc"},
    "no fields": {"2": {}},
    "count": {"2": {"records": "a", "count": -1, "run": "b"}},
    "count as text": {"2": {"records": "a", "count": "9", "run": "b"}},
    "run": {"2": {"records": "a", "count": 9, "run": 7}},
    "mask": {"2": {"records": "a", "count": 9, "run": "b", "mask": []}},
    "no number": {"two": {"records": "a", "count": 9, "run": "b"}},
    "path": {"../x": {"records": "a", "count": 9, "run": "b"}},
    "zero": {"0": {"records": "a", "count": 9, "run": "b"}},
    "huge": {"9" * 5000: {"records": "a", "count": 9, "run": "b"}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_statements_are_refused_by_key(mlp, tmp_path, damage):
    save_trained(mlp, tmp_path / "model")
    path = tmp_path / "model" / "trained.json"
    body = json.loads(path.read_text())
    body["provenance"]["checkpoints"] = DAMAGES[damage]
    path.write_text(json.dumps(body))
    with pytest.raises(FileError, match="checkpoints") as caught:
        load_trained(tmp_path / "model")
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("name", ["../x", "2", "two/fc.weight", "/fc", "2/", "-1/a", "0/a", f"{'9' * 5000}/a", "²/a"])
def test_damaged_names_of_tensors_are_refused(mlp, context, requests, tmp_path, name):
    """Written as a hostile hand would: the recorded hash is that of the file."""
    save_trained(mlp, tmp_path / "model")
    tensors = {name: torch.zeros(2)}
    write_tensors(tmp_path / "model" / "state" / "early_checkpoints.safetensors", tensors)
    path = tmp_path / "model" / "trained.json"
    body = json.loads(path.read_text())
    body["hashes"]["state"]["early_checkpoints"] = hash_tensors(tensors)
    path.write_text(json.dumps(body))
    with pytest.raises(ExpungeError, match="EPOCH/NAME") as caught:
        replay(load_trained(tmp_path / "model"), requests[0], context)
    assert len(str(caught.value)) < 500


def test_a_changed_checkpoint_file_is_refused(mlp, tmp_path):
    save_trained(mlp, tmp_path / "model")
    state = dict(mlp.state["early_checkpoints"])
    key = next(iter(state))
    state[key] = state[key] + 1
    write_tensors(tmp_path / "model" / "state" / "early_checkpoints.safetensors", state)
    with pytest.raises(FileError, match="does not have the hash"):
        load_trained(tmp_path / "model")


def test_checkpoints_have_all_tensors(cnn):
    for epoch in (2, 4):
        assert get_checkpoint(cnn, epoch).keys() == plain_state(cnn.model).keys()
