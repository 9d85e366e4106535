"""Schedules: when scores are taken, and what is trained afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training import checkpoint as checkpoints
from expunge.training.loop import fit
from expunge.training.predict import validator
from expunge.training.progress import Progress
from expunge.training.recipes import recipe as as_recipe
from expunge.training.runtime import Runtime
from expunge.training.train import prune_seed

from .criteria import scores as score_weights
from .layers import prunable
from .select import select_global


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What every schedule is told. The fields are those of `prune`."""

    records: Records
    sparsity: float
    layers: tuple[str, ...]
    criterion: str
    epochs: str
    runtime: Runtime
    seed: int
    checkpoint: Path | None
    progress: Progress | None


Schedule = Callable[[Trained, Pruning], Trained]
_SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Register a function `(trained, pruning) -> pruned` under a name."""

    def keep(function: Schedule) -> Schedule:
        _SCHEDULES[name] = function
        return function

    return keep


def schedule_names() -> list[str]:
    """The registered schedules."""
    return sorted(_SCHEDULES)


def prune(
    trained: Trained,
    records: Records,
    *,
    sparsity: float = 0.95,
    layers: Sequence[str] = ("conv",),
    criterion: str = "magnitude",
    schedule: str = "omp",
    epochs: str = "remaining",
    runtime: Runtime | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """A sparse model from a dense one; the dense one is left as it is.

    Args:
        trained: the dense model, with the state that the schedule needs (`omp`: the rewind checkpoint).
        records: the records it was trained on.
        sparsity: share of the prunable weights to remove, in [0, 1).
        layers: kinds of layers that take part, `conv` and `linear`; paper A: `("conv",)`.
        criterion: what ranks the weights.
        schedule: `omp`: one-shot magnitude pruning over all layers together, rewinding, training with the mask.
        epochs: after rewinding train the `remaining` epochs of the recipe, or its `full` number (paper A).
        runtime: device and precision.
        seed: seeds the order of records of the second training.
        checkpoint: file for resuming.
        progress: told of progress.

    Raises:
        MaskError: the density cannot be had, or the state that the schedule needs is missing.
        ConfigError: unknown schedule, criterion, kind of layer or `epochs`.
    """
    if schedule not in _SCHEDULES:
        raise ConfigError(f"unknown schedule {schedule!r}", hint=unknown_name_hint(schedule, _SCHEDULES))
    if epochs not in ("remaining", "full"):
        raise ConfigError(f"epochs is `remaining` or `full`, not {epochs!r}", where="sparsity")
    if trained.mask is not None:
        raise MaskError("the model is sparse already", hint="prune the dense model it came from")
    return _SCHEDULES[schedule](
        trained,
        Pruning(records, sparsity, tuple(layers), criterion, epochs, runtime or Runtime(), seed, checkpoint, progress),
    )


@register_schedule("omp")
def one_shot_with_rewinding(trained: Trained, pruning: Pruning) -> Trained:
    """OMP, paper A: rank the final weights over all layers, rewind every tensor, train on with the mask.

    Every tensor goes back to the rewind checkpoint, BatchNorm buffers and classifier included; the optimiser starts
    anew and the learning-rate schedule stands where it stood at the checkpoint.
    """
    rewind = trained.state.get("rewind_checkpoint")
    if rewind is None:
        raise MaskError(
            "the trained model has no rewind checkpoint",
            hint="train it with expunge, which keeps one (recipe field `rewind`)",
        )
    if not trained.provenance.recipe:
        raise MaskError(
            "the recipe of the dense model is not known, so it cannot be trained on with a mask",
            hint="train it with expunge, or record a recipe in its provenance",
        )
    recipe = as_recipe(trained.provenance.recipe)
    runtime = pruning.runtime
    ranked = score_weights(pruning.criterion, prunable(trained.model, pruning.layers))
    mask = Mask(
        select_global(ranked, pruning.sparsity),
        MaskProvenance(
            criterion=pruning.criterion,
            scope="global",
            granularity="weight",
            layers=pruning.layers,
            schedule="omp",
            scores_hash=hash_tensors(ranked),
            details={"rewind_epoch": recipe.rewind_epoch, "epochs": pruning.epochs, "records": trained.split.base_hash},
        ),
    )
    model = runtime.place(clone_model(trained.model))
    checkpoints.load_state(model, rewind)
    start = recipe.rewind_epoch
    records, split = pruning.records, trained.split
    order = prune_seed(pruning.seed)
    result = fit(
        model,
        Batches(
            records,
            records.rows(split.train),
            batch_size=recipe.batch_size,
            device=runtime.torch_device,
            augment=recipe.augment,
            channels_last=runtime.channels_last,
        ),
        recipe,
        runtime=runtime,
        seed=order,
        mask=mask,
        start=start,
        stop=recipe.epochs + (start if pruning.epochs == "full" else 0),
        validate=validator(records, records.rows(split.validation), runtime),
        checkpoint_path=pruning.checkpoint,
        progress=pruning.progress,
        label=f"prune to {100 * pruning.sparsity:g} %",
    )
    provenance = dataclasses.replace(
        trained.provenance.then(
            f"pruned (omp) to {100 * mask.sparsity:.2f} % sparsity, rewound to epoch {start}, "
            f"trained for {len(result.history)} epochs in {result.seconds:.1f} s"
        ),
        seeds={**trained.provenance.seeds, "pruning_order": order},
    )
    return Trained(
        model=runtime.release(model),
        mask=mask,
        split=split,
        provenance=provenance,
        state={**trained.state, "pruning_scores": ranked},
    )
