"""Pruning a trained model: criterion x granularity x scope x schedule."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, MaskError
from expunge.core.mask import Mask
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.sparsity.channels.layers import kind_names
from expunge.sparsity.criteria.registry import get_criterion
from expunge.sparsity.masks.consistency import ranked_sparsity
from expunge.sparsity.masks.rule import Rule, rule_of
from expunge.sparsity.schedules.options import REWINDING, STEPWISE, check_composition, check_options
from expunge.sparsity.schedules.registry import Pruning, get_schedule, schedule_names
from expunge.training.loop import Fit
from expunge.training.progress import Progress
from expunge.training.runtime import Runtime

from .schedules import after_training, from_initialisation  # noqa: F401 (they register schedules)

__all__ = ["prune", "prune_again", "schedule_names"]

SCORE_RECORDS = 1024


def prune(
    trained: Trained,
    records: Records,
    *,
    sparsity: float | None = None,
    layers: Sequence[str] = ("conv",),
    criterion: str = "magnitude",
    granularity: str = "weight",
    scope: str = "global",
    schedule: str = "omp",
    epochs: str = "remaining",
    score_records: int = SCORE_RECORDS,
    keep_weights: bool = False,
    options: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    fits: list[Fit] | None = None,
) -> Trained:
    """A sparse model from a dense one; the dense one is left as it is.

    Args:
        trained: the dense model, with the state that the schedule needs (`omp`, `imp`: the rewind checkpoint;
            `at-init`, `gradual`, `soft-filter`: the seed of its initial weights and its recipe).
        records: the records it was trained on.
        sparsity: share of the prunable weights (or coupled channels) to remove, in [0, 1); None: 0.95, or that of an
            N:M pattern.
        layers: kinds of layers that take part, `conv` and `linear`, or one of them; paper A: `("conv",)`.
        criterion: what ranks; see `criterion_names`.
        granularity: `weight`, `filter` or a pattern such as `2:4`.
        scope: `global`, `layer` or `erk`.
        schedule: see `schedule_names`. `omp`: one-shot pruning, rewinding, training with the mask.
        epochs: after rewinding train the `remaining` epochs of the recipe, or its `full` number (paper A).
        score_records: how many training records a data-driven criterion reads.
        keep_weights: keep all tensors of the moment when the final scores were taken (state `pruning_weights`):
            un-pruning by influence needs them; they remember every record.
        options: of the schedule (`rate` of `imp`, `rounds` of `at-init`, `begin` and `end` of `gradual`).
        runtime: device and precision.
        seed: seeds the order of records of the second training, and criteria that draw.
        checkpoint: file for resuming.
        progress: told of progress.
        fits: a list that every training of the schedule is appended to, for its cost.

    Raises:
        MaskError: the density cannot be had, or the state that the schedule needs is missing.
        ConfigError: unknown schedule, criterion, granularity, scope, kind of layer, option or `epochs`.
    """
    run = get_schedule(schedule)
    check_options(schedule, options, epochs=epochs, keep_weights=keep_weights)
    if trained.mask is not None:
        raise MaskError("the model is sparse already", hint="prune the dense model it came from")
    if schedule != "one-shot" and not trained.provenance.recipe:
        raise MaskError(
            "the recipe of the dense model is not known, so it cannot be trained on with a mask",
            hint="train it with expunge, or record a recipe in its provenance; one-shot trains nothing",
        )
    if isinstance(score_records, bool) or not isinstance(score_records, numbers.Integral) or score_records < 1:
        raise ConfigError(
            f"score_records is a whole number, 1 or more, not {score_records!r}", where="sparsity.score_records"
        )
    kinds = (layers,) if isinstance(layers, str) else kind_names(layers)
    rule = Rule(criterion, granularity, scope, kinds, sparsity).checked()
    check_composition(rule, schedule, options)
    pruning = Pruning(
        records=records,
        rule=rule,
        epochs=epochs,
        score_records=int(score_records) if get_criterion(rule.criterion).needs_data else 0,
        keep_weights=keep_weights,
        options={**run.options, **(options or {})},
        runtime=runtime or Runtime(),
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        fits=[] if fits is None else fits,
    )
    return run.run(trained, pruning)


def prune_again(
    dense: Trained,
    records: Records,
    mask: Mask,
    *,
    keep_weights: bool = False,
    runtime: Runtime | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    fits: list[Fit] | None = None,
) -> Trained:
    """Prune another dense model exactly as `mask` was made: criterion, scope, layers, schedule, options (paper B).

    Raises:
        MaskError: the mask's provenance does not say how it was made.
    """
    provenance = mask.provenance
    if provenance.schedule not in schedule_names() or not provenance.layers:
        raise MaskError(
            "the mask does not say how it was made, so pruning cannot be repeated",
            where=f"schedule {provenance.schedule!r}",
            hint="prune the original with expunge, or record criterion, scope, layers and schedule in its provenance",
        )
    rule = rule_of(mask, ranked_sparsity(mask, dense.model, records.input_shape))
    details = provenance.details
    return prune(
        dense,
        records,
        sparsity=rule.sparsity,
        layers=rule.layers,
        criterion=rule.criterion,
        granularity=rule.granularity,
        scope=rule.scope,
        schedule=provenance.schedule,
        epochs=str(details.get("epochs", "remaining")) if provenance.schedule in REWINDING else "remaining",
        score_records=int(details.get("score_records") or SCORE_RECORDS),
        options=details.get("options") or {},
        keep_weights=keep_weights and provenance.schedule not in STEPWISE,
        runtime=runtime,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        fits=fits,
    )
