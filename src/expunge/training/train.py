"""From records to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import DataError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import derive
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.batches import Batches
from expunge.data.records import Records

from .loop import fit, order_seed
from .predict import validator
from .progress import Progress
from .recipes import Recipe
from .recipes import recipe as as_recipe
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
    """Train a dense model on D (retain and forget) from seeded initial weights.

    Args:
        records: where features and labels come from.
        split: which records are trained on, and which validate.
        architecture: what to build.
        recipe: a registered name or a `Recipe`.
        seed: seeds order and augmentation, and the initial weights unless `initial_seed` is given.
        initial_seed: seed of the initial weights alone.
        runtime: device and precision.
        checkpoint: file for resuming after an interruption.
        progress: told of progress.
        label: what this run is called in progress and errors.

    Returns:
        The trained model. Its state holds `rewind_checkpoint`, all tensors after `recipe.rewind_epoch` epochs.

    Raises:
        DataError: no training records.
    """
    recipe = as_recipe(recipe)
    runtime = runtime or Runtime()
    rows = records.rows(split.train)
    if len(rows) == 0:
        raise DataError("the split has no training records", where=records.name)
    first = seed if initial_seed is None else initial_seed
    model = runtime.place(architecture.build(first))
    initial = hash_tensors(dict(model.named_parameters()))
    result = fit(
        model,
        Batches(
            records,
            rows,
            batch_size=recipe.batch_size,
            device=runtime.torch_device,
            augment=recipe.augment,
            channels_last=runtime.channels_last,
        ),
        recipe,
        runtime=runtime,
        seed=order_seed(seed),
        snapshots={recipe.rewind_epoch},
        validate=validator(records, records.rows(split.validation), runtime),
        checkpoint_path=checkpoint,
        progress=progress,
        label=label,
    )
    provenance = Provenance(
        architecture=architecture.to_json(),
        data={"name": records.name, "hash": records.hash},
        recipe=recipe.to_json(),
        seeds={"initial": first, "order": order_seed(seed), "training": seed},
        history=(f"trained on {len(rows)} records for {recipe.epochs} epochs in {result.seconds:.1f} s",),
        initial_weights=initial,
    )
    rewind = result.snapshots.get(recipe.rewind_epoch)
    state = {} if rewind is None else {"rewind_checkpoint": rewind}
    return Trained(model=runtime.release(model), mask=None, split=split, provenance=provenance, state=state)


def prune_seed(seed: int) -> int:
    """The seed of the order of records when a pruned model is trained again."""
    return derive(seed, "prune")
