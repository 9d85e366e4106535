"""Training a dense model from initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from expunge.core import early_checkpoints
from expunge.core.errors import DataError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import derive
from expunge.core.show import plural
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Records

from .context import Context
from .loop import fit, order_seed
from .predict import make_validator
from .progress import Progress
from .recipes import Recipe, get_recipe
from .runtime import Runtime

if TYPE_CHECKING:
    from expunge.models import Architecture


def train(
    records: Records,
    split: Split,
    architecture: Architecture,
    *,
    recipe: str | Recipe = "one-cycle",
    seed: int = 0,
    initial_seed: int | None = None,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    label: str = "train",
) -> Trained:
    """Train a dense model on D (the retain and the forget set) from seeded initial weights.

    Args:
        records: features and labels.
        split: assigns the records to training (`retain`, `forget`) and validation.
        architecture: the network to build.
        recipe: a registered name or a `Recipe`.
        seed: seeds the order and the augmentation, and the initial weights unless `initial_seed` is given.
        initial_seed: seed of the initial weights.
        runtime: device and precision.
        checkpoint: file for resuming after an interruption.
        progress: callback for progress in records.
        label: name of this run in progress and errors.

    Returns:
        The trained model. Its state has `rewind_checkpoint`, all tensors after `recipe.rewind_epoch` epochs; and
        `early_checkpoints`, those after each of `recipe.keep_epochs`, with `optimiser_moments` if the recipe keeps
        them.

    Raises:
        DataError: the split has no training records, or has forgotten ones.
        ConfigError: the recipe is unknown.
        TrainingError: the loss is not finite.
        Interrupted: Ctrl-C; see `expunge.training.fit`.

    >>> import expunge
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> recipe = expunge.get_recipe("one-cycle", epochs=1)
    >>> trained = expunge.train(records, split, network, recipe=recipe, seed=0)
    >>> trained.mask is None, sorted(trained.state)
    (True, ['rewind_checkpoint'])
    >>> again = expunge.train(records, split, network, recipe=recipe, seed=0)
    >>> again.hash == trained.hash
    True
    """
    recipe = get_recipe(recipe)
    runtime = runtime or Runtime()
    check_nothing_forgotten(split)
    rows = records.rows(split.train)
    if len(rows) == 0:
        raise DataError("the split has no training records", where=records.name)
    initial_seed = seed if initial_seed is None else initial_seed
    model = runtime.place(architecture.build(initial_seed))
    initial_hash = hash_tensors(dict(model.named_parameters()))
    context = Context(records, runtime, order_seed(seed), checkpoint, progress)
    validate = make_validator(records, records.rows(split.validation), runtime)
    snapshots = {recipe.rewind_epoch, *recipe.kept_epochs}
    result = fit(model, rows, recipe, context, snapshots=snapshots, validate=validate, label=label)
    seeds = {"initial": initial_seed, "order": order_seed(seed), "training": seed}
    kept = {epoch: result.snapshots[epoch] for epoch in recipe.kept_epochs}
    provenance = Provenance(
        architecture=architecture.to_json(),
        data={"name": records.name, "hash": records.hash},
        recipe=recipe.to_json(),
        seeds=seeds,
        history=(
            f"trained on {plural(len(rows), 'record')} for {plural(recipe.epochs, 'epoch')} in {result.seconds:.1f} s",
        ),
        initial_weights=initial_hash,
        checkpoints={
            str(epoch): early_checkpoints.describe_checkpoint(split.train, recipe.to_json(), seeds, initial_hash)
            for epoch in kept
        },
    )
    rewind = result.snapshots.get(recipe.rewind_epoch)
    state: dict[str, Mapping[str, torch.Tensor]] = {} if rewind is None else {"rewind_checkpoint": rewind}
    if kept:
        state[early_checkpoints.STATE] = early_checkpoints.pack_checkpoints(kept)
    if kept and recipe.keep_moments:
        moments = {epoch: result.moments[epoch] for epoch in kept}
        state[early_checkpoints.MOMENTS] = early_checkpoints.pack_checkpoints(moments)
    return Trained(model=runtime.release(model), mask=None, split=split, provenance=provenance, state=state)


def check_nothing_forgotten(split: Split, where: object = None) -> None:
    """Raise DataError if a split has forgotten or corrected records: training from scratch would use them as they were.

    Args:
        split: the split to train with.
        where: the file that it was read from.
    """
    if len(split.forget):
        raise DataError(
            f"the split records {len(split.forget)} records as forgotten; training from scratch would train on them "
            "again",
            where=where,
            hint="use the split.json of the original model; or import the unlearned model: model.weights=...",
        )
    if split.corrections:
        count = plural(sum(len(correction.record_ids) for correction in split.corrections), "record")
        raise DataError(
            f"the split records corrections of {count}; training from scratch would use their old values",
            where=where,
            hint="train on the corrected data; or import the corrected model: model.weights=...",
        )


def prune_seed(seed: int) -> int:
    """Return the seed of the order of records when a pruned model is retrained."""
    return derive(seed, "prune")
