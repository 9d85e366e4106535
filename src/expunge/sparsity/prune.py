"""Pruning of a trained model: criterion x granularity x scope x schedule."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, MaskError
from expunge.core.mask import Mask
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.sparsity.channels.layers import parse_layer_types
from expunge.sparsity.criteria.registry import get_criterion
from expunge.sparsity.masks.consistency import ranked_sparsity
from expunge.sparsity.masks.rule import Rule, rule_of
from expunge.sparsity.schedules.options import REWINDING, STEPWISE, check_composition, check_options
from expunge.sparsity.schedules.registry import PruningContext, get_schedule, schedule_names
from expunge.training.loop import Fit
from expunge.training.progress import Progress
from expunge.training.runtime import Runtime

from .schedules import after_training, from_initialisation  # noqa: F401 (they register schedules)

__all__ = ["prune", "repeat_pruning", "schedule_names"]

DEFAULT_SCORE_RECORDS = 1024


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
    score_records: int = DEFAULT_SCORE_RECORDS,
    keep_weights: bool = False,
    options: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    fits: list[Fit] | None = None,
) -> Trained:
    """Prune a trained model and return the sparse model; the dense model is not modified.

    Args:
        trained: the dense model, with the state that the schedule needs (`omp`, `imp`: the rewind checkpoint;
            `at-init`, `gradual`, `soft-filter`: its recipe and the seed of its initial weights).
        records: the records that it was trained on.
        sparsity: fraction of the prunable weights (or coupled channels) to prune, in [0, 1); None: 0.95, or that of an
            N:M pattern.
        layers: layer types to prune, `conv` and `linear`, or one of them; [Jia2023]: `("conv",)`.
        criterion: what ranks weights or channels; see `criterion_names`.
        granularity: `weight`, `filter` or a pattern such as `2:4`.
        scope: `global`, `layer` or `erk`.
        schedule: see `schedule_names`. `omp`: one-shot pruning, rewinding, training with the mask [Jia2023].
        epochs: after rewinding, train the `remaining` epochs of the recipe, or its `full` number [Jia2023].
        score_records: how many training records a data-driven criterion reads.
        keep_weights: store all tensors at the time when the final scores were computed (state `pruning_weights`).
            Un-pruning by influence needs them. They depend on every training record.
        options: options of the schedule (`rate` of `imp`, `rounds` of `at-init`, `begin` and `end` of `gradual`).
        runtime: device and precision.
        seed: seeds the order of records of the training with the mask, and criteria that draw random numbers.
        checkpoint: file for resuming.
        progress: called with the progress.
        fits: a list to which every training of the schedule is appended, for its cost.

    Raises:
        MaskError: the sparsity cannot be reached, or the state that the schedule needs is missing.
        ConfigError: unknown schedule, criterion, granularity, scope, layer type, option or `epochs`.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> sparse = prune(dense, records, sparsity=0.9, layers=("linear",))
        >>> sparse.mask.kept_count, sparse.mask.total, dense.mask is None
        (118, 1184, True)
    """
    chosen = get_schedule(schedule)
    check_options(schedule, options, epochs=epochs, keep_weights=keep_weights)
    if trained.mask is not None:
        raise MaskError("the model is already sparse", hint="prune the dense model from which it was made")
    if schedule != "one-shot" and not trained.provenance.recipe:
        raise MaskError(
            "the recipe of the dense model is not recorded, so it cannot be trained with a mask",
            hint="train it with expunge, or record a recipe in its provenance; the schedule one-shot does not train",
        )
    if isinstance(score_records, bool) or not isinstance(score_records, numbers.Integral) or score_records < 1:
        raise ConfigError(
            f"score_records must be an integer, 1 or more, not {score_records!r}", where="sparsity.score_records"
        )
    layer_types = (layers,) if isinstance(layers, str) else parse_layer_types(layers)
    rule = Rule(criterion, granularity, scope, layer_types, sparsity).validate()
    check_composition(rule, schedule, options)
    context = PruningContext(
        records=records,
        rule=rule,
        epochs=epochs,
        score_records=int(score_records) if get_criterion(rule.criterion).needs_data else 0,
        keep_weights=keep_weights,
        options={**chosen.options, **(options or {})},
        runtime=runtime or Runtime(),
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        fits=[] if fits is None else fits,
    )
    return chosen.run(trained, context)


def repeat_pruning(
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
    """Prune another dense model exactly as `mask` was made: criterion, scope, layers, schedule, options [Xiao2025].

    Args:
        dense: the dense model to prune.
        records: the records that it was trained on.
        mask: a mask whose provenance records how it was made.
        keep_weights: see `prune`; ignored with a schedule that prunes step by step.
        runtime: device and precision.
        seed: seeds the order of records of the training with the mask, and criteria that draw random numbers.
        checkpoint: file for resuming.
        progress: called with the progress.
        fits: a list to which every training of the schedule is appended, for its cost.

    Raises:
        MaskError: the provenance of the mask does not record how it was made.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(16,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
        >>> dense = expunge.train(records, split, network, recipe=recipe)
        >>> sparse = prune(dense, records, sparsity=0.9, layers=("linear",), schedule="one-shot")
        >>> repeat_pruning(dense, records, sparse.mask).hash == sparse.hash
        True
    """
    provenance = mask.provenance
    if provenance.schedule not in schedule_names() or not provenance.layers:
        raise MaskError(
            "the mask does not record how it was made, so pruning cannot be repeated",
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
        score_records=int(details.get("score_records") or DEFAULT_SCORE_RECORDS),
        options=details.get("options") or {},
        keep_weights=keep_weights and provenance.schedule not in STEPWISE,
        runtime=runtime,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        fits=fits,
    )
