"""What the tests of replay share: short originals with stored checkpoints, and comparisons bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from expunge.core.early_checkpoints import unpack_checkpoints
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained, plain_state
from expunge.data.records import Records
from expunge.models import Architecture, architecture
from expunge.training import Recipe, Runtime, train

CPU = Runtime("cpu")
RECIPE = Recipe(
    name="test", epochs=5, batch_size=48, learning_rate=0.1, lr_schedule="one-cycle", warmup=0.3, rewind=0.2,
    nesterov=True, keep_epochs=(2,),
)  # fmt: skip
#: Of Replay: theta_hat as it is.
BARE = {"epochs": 0, "re_estimate": 0}


def make_mlp(records: Records, split: Split, recipe: Recipe = RECIPE, seed: int = 5) -> Trained:
    network = Architecture("mlp", {"widths": (12,)}, records.input_shape, records.classes)
    return train(records, split, network, recipe=recipe, seed=seed, runtime=CPU)


def make_cnn(records: Records, split: Split, recipe: Recipe = RECIPE, seed: int = 6) -> Trained:
    """With BatchNorm, normalised by the training records, and with crops and flips."""
    network = architecture("small-cnn", records, split, normalise="training", widths=(4, 6))
    return train(
        records, split, network, recipe=dataclasses.replace(recipe, augment="crop-flip"), seed=seed, runtime=CPU
    )


def train_without(trained: Trained, request: ForgetRequest, records: Records, *, stop: int | None = None) -> Trained:
    """The model that `train` makes without the records; with `stop`, that epoch is a checkpoint."""
    provenance = trained.provenance
    recipe = Recipe(**provenance.recipe)
    if stop is not None:
        recipe = dataclasses.replace(recipe, keep_epochs=(stop,))
    split = dataclasses.replace(trained.split, retain=request.apply(trained.split).retain)
    network = Architecture.from_json(provenance.architecture).remeasure_normalisation(records, split.retain)
    seeds = provenance.seeds
    return train(records, split, network, recipe=recipe, seed=seeds["training"], runtime=CPU)


def get_checkpoint(trained: Trained, epoch: int) -> dict[str, torch.Tensor]:
    return unpack_checkpoints(trained.state["early_checkpoints"])[epoch]


def hash_checkpoint(trained: Trained, epoch: int) -> str:
    return hash_tensors(get_checkpoint(trained, epoch))


def change_provenance(trained: Trained, **fields: object) -> Trained:
    return dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, **fields))


def with_seeds(trained: Trained, **seeds: int) -> Trained:
    return change_provenance(trained, seeds={**trained.provenance.seeds, **seeds})


def with_recipe(trained: Trained, **fields: object) -> Trained:
    return change_provenance(trained, recipe={**trained.provenance.recipe, **fields})


def without_state(trained: Trained, *names: str) -> Trained:
    checkpoints: Mapping[str, Mapping[str, object]] = trained.provenance.checkpoints
    state = {name: tensors for name, tensors in trained.state.items() if name not in names}
    return change_provenance(
        dataclasses.replace(trained, state=state), checkpoints={} if "early_checkpoints" in names else checkpoints
    )


def count_lost_zeros(trained: Trained) -> int:
    """How many pruned weights are not +0.0, with its sign."""
    assert trained.mask is not None
    tensors = plain_state(trained.model)
    wrong = 0
    for name, kept in trained.mask.kept.items():
        pruned = tensors[name][~kept]
        wrong += int((pruned.view(torch.int32) != 0).sum())
    return wrong
