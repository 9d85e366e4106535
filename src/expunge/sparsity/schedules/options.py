"""Checks of pruning options before any training: unknown options, wrong values, options without effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.sparsity.masks.rule import Rule

from .registry import EPOCHS, get_schedule

#: Schedules that train from a rewind checkpoint, so that `epochs` has an effect.
REWINDING = ("imp", "omp")
#: Schedules whose scored weights are stored nowhere else (those of `at-init` are regenerated from their seed).
SCORED = ("omp", "one-shot", "soft-filter")
#: Schedules that need several sparsities, so a pattern is not possible.
STEPWISE = ("gradual", "imp")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: Option name to a description of its values and a check.
_OPTION_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rate": ("a fraction in (0, 1)", lambda v: _is_number(v) and 0 < v < 1),
    "rounds": ("an integer, 0 or more", lambda v: _is_number(v) and v >= 0 and float(v).is_integer()),
    "begin": ("a fraction in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1),
    "end": ("a fraction in (0, 1]", lambda v: _is_number(v) and 0 < v <= 1),
}


def check_options(
    schedule: str, options: Mapping[str, Any] | None, *, epochs: str = "remaining", keep_weights: bool = False
) -> None:
    """Check the arguments of `prune` that are not part of the rule.

    Args:
        schedule: a registered schedule.
        options: its options.
        epochs: `remaining` or `full`; it has an effect with schedules that rewind.
        keep_weights: it has an effect with `omp`, `one-shot` and `soft-filter`, whose scored weights are stored nowhere
            else. With `at-init` they are regenerated from their seed, so nothing has to be stored.

    Raises:
        ConfigError: the schedule is unknown, has no such option or does not accept its value, or `epochs` or
            `keep_weights` would have no effect.
    """
    known, where = get_schedule(schedule).options, f"schedule {schedule}"
    given = {} if options is None else options
    if not isinstance(given, Mapping):
        raise ConfigError(f"the options of a schedule must be a mapping, not {options!r}", where="options")
    for key, value in given.items():
        if key not in known:
            hint = unknown_name_hint(str(key), known) if known else f"{schedule} has no options"
            raise ConfigError(f"the schedule {schedule} has no option {key!r}", where="options", hint=hint)
        wanted, is_valid = _OPTION_VALUES.get(key, ("", lambda v: True))
        if not is_valid(value):
            raise ConfigError(f"{key} = {value!r} is not {wanted}", where=where)
    begin, end = ({**known, **given}.get(key) for key in ("begin", "end"))
    if begin is not None and end is not None and not begin < end:
        raise ConfigError(f"begin = {begin}, end = {end}: begin must be less than end", where=where)
    if epochs not in EPOCHS:
        raise ConfigError(f"epochs must be `remaining` or `full`, not {epochs!r}", where="epochs")
    if epochs == "full" and schedule not in REWINDING:
        raise ConfigError(
            f"epochs = full has no effect with {schedule}, which does not rewind",
            where="epochs",
            hint=f"leave it out; it is for {' and '.join(REWINDING)}",
        )
    if keep_weights and schedule in STEPWISE:
        raise ConfigError(
            f"keep_weights has no effect with {schedule}: it computes scores step by step, which un-pruning by "
            "influence does not support",
            where="keep_weights",
            hint=f"leave it out; it is for {', '.join(SCORED)}",
        )


def check_composition(rule: Rule, schedule: str, options: Mapping[str, Any] | None = None) -> None:
    """Check that criterion, granularity and schedule can be combined.

    Raises:
        ConfigError: a pattern with a schedule that prunes step by step, or in several rounds.
    """
    if ":" not in rule.granularity:
        return
    if schedule in STEPWISE:
        raise ConfigError(
            f"the pattern {rule.granularity} has one sparsity, but {schedule} prunes step by step",
            where=f"schedule {schedule}",
            hint="use omp, one-shot, at-init or soft-filter",
        )
    if (options or {}).get("rounds", 0) > 1:
        raise ConfigError(
            f"rounds has no effect with the pattern {rule.granularity}, which has one sparsity",
            where="options.rounds",
            hint="leave it out",
        )
