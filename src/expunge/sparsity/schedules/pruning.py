"""`Pruning`: how a model is pruned, completely and validated: the section `sparsity` of a configuration."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, MaskError, name_fields, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.show import repr_fields
from expunge.sparsity.channels.layers import check_layer_types
from expunge.sparsity.criteria.registry import get_criterion
from expunge.sparsity.masks.consistency import ranked_sparsity
from expunge.sparsity.masks.granularity import get_granularity
from expunge.sparsity.masks.rule import Rule, rule_of

from .registry import Schedule, get_schedule, recorded_schedule, schedule_names

EPOCHS = ("remaining", "full")
DEFAULT_SCORE_RECORDS = 1024


@name_fields("a pruning")
@dataclasses.dataclass(frozen=True)
class Pruning:
    """How a model is pruned: criterion x granularity x scope x schedule. It is validated when it is made.

    After that, `sparsity` is a number, names are as registered, and `options` has all options of the schedule.

    Attributes:
        sparsity: fraction of the prunable weights (or coupled channels) to prune, in [0, 1); None: 0.95, or that of an
            N:M pattern.
        layers: layer types to prune, `conv` and `linear`, or one of them; [Jia2023]: `("conv",)`.
        criterion: what ranks weights or channels; see `criterion_names`.
        granularity: what is pruned as one unit: `weight`, `filter` or a pattern such as `2:4`.
        scope: over which weights scores are compared: `global`, `layer` or `erk`.
        schedule: see `schedule_names`. `omp`: one-shot pruning, rewinding, training with the mask [Jia2023].
        epochs: after rewinding, train the `remaining` epochs of the recipe, or its `full` number [Jia2023].
        score_records: how many training records a data-driven criterion reads.
        keep_weights: store all tensors at the time when the final scores were computed (state `pruning_weights`).
            Un-pruning by influence needs them, and by replay saves a training with them. A schedule that prunes in
            rounds stores those of every round (named `ROUND/NAME`). They depend on every training record.
        options: options of the schedule (`rate` of `imp`, `rounds` of `at-init`, `begin` and `end` of `gradual`).

    Raises:
        ConfigError: unknown schedule, criterion, granularity, scope, layer type or option; a value of the wrong type;
            or one that has no effect.
        MaskError: the sparsity is not a fraction in [0, 1) or not that of the pattern, or the criterion scores channels
            and the granularity is another.

    Example:
        >>> pruning = Pruning(granularity="2:4", criterion="snip", schedule="at-init")
        >>> pruning.sparsity, pruning.criterion, pruning.options
        (0.5, 'SNIP', {'rounds': 0})
        >>> Pruning(schedule="imp", options={"rat": 0.1})
        Traceback (most recent call last):
            ...
        expunge.core.errors.ConfigError: options: the schedule imp has no option 'rat'
          hint: did you mean 'rate'? ...
    """

    sparsity: float | None = None
    layers: tuple[str, ...] = ("conv",)
    criterion: str = "magnitude"
    granularity: str = "weight"
    scope: str = "global"
    schedule: str = "omp"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: str = "remaining"
    score_records: int = DEFAULT_SCORE_RECORDS
    keep_weights: bool = False

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        layers = check_layer_types((self.layers,) if isinstance(self.layers, str) else self.layers)
        if not isinstance(self.schedule, str):
            raise ConfigError(f"schedule must be a name, not {self.schedule!r}", where="schedule")
        schedule = get_schedule(self.schedule)
        rule = Rule(self.criterion, self.granularity, self.scope, layers, self.sparsity).validate()
        get_granularity(rule.granularity).check_criterion(get_criterion(rule.criterion))
        if not _is_integer(self.score_records) or self.score_records < 1:
            raise ConfigError(
                f"score_records must be an integer, 1 or more, not {self.score_records!r}", where="score_records"
            )
        if not isinstance(self.keep_weights, bool):
            raise ConfigError(f"keep_weights must be true or false, not {self.keep_weights!r}", where="keep_weights")
        self._check_effects(schedule)
        resolved = {
            **{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)},
            "schedule": schedule.name,
            "options": _complete_options(schedule, self.options),
            "score_records": int(self.score_records),
        }
        for key, value in resolved.items():
            object.__setattr__(self, key, value)
        self.check_recipe(None)
        self._check_pattern(schedule)

    @property
    def rule(self) -> Rule:
        """Criterion, granularity, scope, layers and sparsity."""
        return Rule(self.criterion, self.granularity, self.scope, self.layers, self.sparsity)

    def check_recipe(self, epochs: int | None) -> None:
        """Check the options of the schedule for a recipe of this length; None: only what does not depend on it.

        Raises:
            ConfigError: an option has a value that it cannot have.
            MaskError: the recipe is too short.
        """
        check = get_schedule(self.schedule).check
        if check is not None:
            check(self.options, epochs)

    def _check_effects(self, schedule: Schedule) -> None:
        """Raise ConfigError if `epochs` or `keep_weights` has a wrong value, or none that has an effect."""
        if self.epochs not in EPOCHS:
            raise ConfigError(f"epochs must be `remaining` or `full`, not {self.epochs!r}", where="epochs")
        if self.epochs == "full" and not schedule.rewinds:
            raise ConfigError(
                f"epochs = full has no effect with {schedule.name}, which does not rewind",
                where="epochs",
                hint=f"leave it out; it is for {' and '.join(schedule_names(rewinds=True))}",
            )
        if self.keep_weights and schedule.stepwise and not schedule.can_keep_weights:
            usable = [name for name in schedule_names() if get_schedule(name).can_keep_weights]
            raise ConfigError(
                f"keep_weights has no effect with {schedule.name}: it computes scores step by step, which un-pruning "
                "by influence or replay does not support",
                where="keep_weights",
                hint=f"leave it out; it is for {', '.join(usable)}",
            )

    def _check_pattern(self, schedule: Schedule) -> None:
        """Raise ConfigError if a granularity with one sparsity would have to be pruned in several steps."""
        if get_granularity(self.granularity).fixed_sparsity is None:
            return
        if schedule.stepwise:
            single = [name for name in schedule_names() if name not in schedule_names(scores="sparse")]
            raise ConfigError(
                f"the granularity {self.granularity} has one sparsity, but {schedule.name} prunes step by step",
                where=f"schedule {schedule.name}",
                hint=f"use {', '.join(single[:-1])} or {single[-1]}",
            )
        if self.options.get("rounds", 0) > 1:
            raise ConfigError(
                f"rounds has no effect with the granularity {self.granularity}, which has one sparsity",
                where="options.rounds",
                hint="leave it out",
            )


def pruning_of(mask: Mask, model: nn.Module, input_shape: tuple[int, ...], *, keep_weights: bool = False) -> Pruning:
    """The pruning that made a mask, from its provenance: rule, schedule and options [Xiao2025].

    Args:
        mask: a mask whose provenance records how it was made.
        model: the network that it belongs to, dense or pruned.
        input_shape: shape of one record.
        keep_weights: see `Pruning`; ignored with a schedule to which it does not apply.

    Raises:
        MaskError: the provenance of the mask does not record how it was made.
        TrustError: it names code that the owner did not agree to run.

    Example:
        >>> import expunge
        >>> from expunge.sparsity import Rule, make_mask
        >>> records = expunge.load_records("digits")
        >>> model = expunge.architecture("mlp", records, widths=(16,), normalise="none").build(seed=0)
        >>> mask, _ = make_mask(model, Rule(layers=("linear",), sparsity=0.9))
        >>> found = pruning_of(mask, model, records.input_shape)
        >>> found.sparsity, found.schedule, found.criterion
        (0.9, 'one-shot', 'magnitude')
    """
    provenance, details = mask.provenance, mask.provenance.details
    schedule = recorded_schedule(mask)
    if schedule is None or not provenance.layers:
        raise MaskError(
            "the mask does not record how it was made, so pruning cannot be repeated",
            where=f"schedule {provenance.schedule!r}",
            hint="prune the dense model with expunge, which records it; for a mask that was made elsewhere, a schedule "
            "cannot be declared. Without it, Retrain takes mask=same, and Un-prune rule=magnitude or gradient",
        )
    rule = rule_of(mask, ranked_sparsity(mask, model, input_shape))
    return Pruning(
        sparsity=rule.sparsity,
        layers=rule.layers,
        criterion=rule.criterion,
        granularity=rule.granularity,
        scope=rule.scope,
        schedule=schedule.name,
        options=details.get("options") or {},
        epochs=str(details.get("epochs", EPOCHS[0])) if schedule.rewinds else EPOCHS[0],
        score_records=int(details.get("score_records") or DEFAULT_SCORE_RECORDS),
        keep_weights=keep_weights and (schedule.can_keep_weights or not schedule.stepwise),
    )


def count_rounds(schedule: Schedule, rule: Rule, options: Mapping[str, Any]) -> int:
    """In how many rounds a schedule with the option `rounds` prunes: 0 stands for the criterion's own number.

    A schedule without that option, and a granularity with one sparsity, has one round.
    """
    if get_granularity(rule.granularity).fixed_sparsity is not None:
        return 1
    return int({**schedule.options, **options}.get("rounds", 1)) or get_criterion(rule.criterion).default_rounds


def _complete_options(schedule: Schedule, options: object) -> dict[str, Any]:
    """All options of a schedule, with defaults; raise ConfigError for an unknown one."""
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"the options of a schedule must be a mapping, not {options!r}", where="options")
    for key in options:
        if key not in schedule.options:
            known = schedule.options
            hint = unknown_name_hint(str(key), known) if known else f"{schedule.name} has no options"
            raise ConfigError(f"the schedule {schedule.name} has no option {key!r}", where="options", hint=hint)
    return {**schedule.options, **options}


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
