"""Options of pruning, checked before anything is trained: unknown ones, wrong values, those that would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.sparsity.masks.rule import Rule

from .registry import EPOCHS, get_schedule

#: Schedules that train on from a rewind checkpoint, so that `epochs` says for how long.
REWINDING = ("imp", "omp")
#: Schedules whose final scores are taken at weights that nothing else keeps. At initialisation they come from the seed.
SCORED = ("omp", "one-shot", "soft-filter")
#: Schedules that need other sparsities on the way, which a pattern does not have.
STEPWISE = ("gradual", "imp")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rate": ("a share in (0, 1)", lambda v: _number(v) and 0 < v < 1),
    "rounds": ("a whole number, 0 or more", lambda v: _number(v) and v >= 0 and float(v).is_integer()),
    "begin": ("a share in [0, 1)", lambda v: _number(v) and 0 <= v < 1),
    "end": ("a share in (0, 1]", lambda v: _number(v) and 0 < v <= 1),
}


def check_options(
    schedule: str, options: Mapping[str, Any] | None, *, epochs: str = "remaining", keep_weights: bool = False
) -> None:
    """Check what `prune` is told besides its rule.

    Args:
        schedule: a registered schedule.
        options: its options.
        epochs: `remaining` or `full`; only schedules that rewind train on from somewhere.
        keep_weights: has an effect where the weights that were scored last are not to be had again: `omp`, `one-shot`,
            `soft-filter`. With `at-init` they are made again from their seed, and nothing needs keeping.

    Raises:
        ConfigError: the schedule is unknown, has no such option, cannot take its value, or would leave `epochs` or
            `keep_weights` without effect.
    """
    known, where = get_schedule(schedule).options, f"schedule {schedule}"
    given = {} if options is None else options
    if not isinstance(given, Mapping):
        raise ConfigError(f"the options of a schedule are a mapping, not {options!r}", where="options")
    for key, value in given.items():
        if key not in known:
            hint = unknown_name_hint(str(key), known) if known else f"{schedule} has none"
            raise ConfigError(f"the schedule {schedule} has no option {key!r}", where="options", hint=hint)
        wanted, fine = _VALUES.get(key, ("", lambda v: True))
        if not fine(value):
            raise ConfigError(f"{key} = {value!r} is not {wanted}", where=where)
    begin, end = ({**known, **given}.get(key) for key in ("begin", "end"))
    if begin is not None and end is not None and not begin < end:
        raise ConfigError(f"begin = {begin}, end = {end}: begin comes before end", where=where)
    if epochs not in EPOCHS:
        raise ConfigError(f"epochs is `remaining` or `full`, not {epochs!r}", where="epochs")
    if epochs == "full" and schedule not in REWINDING:
        raise ConfigError(
            f"epochs = full has no effect with {schedule}, which rewinds to no epoch",
            where="epochs",
            hint=f"leave it out; it is for {' and '.join(REWINDING)}",
        )
    if keep_weights and schedule in STEPWISE:
        raise ConfigError(
            f"keep_weights has no effect with {schedule}: its scores are taken step by step, and un-pruning by "
            "influence cannot follow them",
            where="keep_weights",
            hint=f"leave it out; it is for {', '.join(SCORED)}",
        )


def check_composition(rule: Rule, schedule: str, options: Mapping[str, Any] | None = None) -> None:
    """Check that criterion, granularity and schedule go together.

    Raises:
        ConfigError: a pattern and a schedule that prunes step by step, or in rounds.
    """
    if ":" not in rule.granularity:
        return
    if schedule in STEPWISE:
        raise ConfigError(
            f"the pattern {rule.granularity} has one sparsity; {schedule} prunes step by step",
            where=f"schedule {schedule}",
            hint="use omp, one-shot, at-init or soft-filter",
        )
    if (options or {}).get("rounds", 0) > 1:
        raise ConfigError(
            f"rounds has no effect with the pattern {rule.granularity}, which has one sparsity",
            where="options.rounds",
            hint="leave it out",
        )
