"""Checks of values of options, which schedules share."""

from __future__ import annotations

from typing import Any

from expunge.core.errors import ConfigError


def check_fraction(schedule: str, option: str, value: Any, interval: str) -> None:
    """Raise ConfigError unless a value is a number between 0 and 1.

    Args:
        schedule: name of the schedule, for messages.
        option: name of the option.
        value: its value.
        interval: `(0, 1)`, `[0, 1)`, `(0, 1]` or `[0, 1]`.
    """
    inside = _is_number(value) and 0 <= value <= 1
    if not inside or (value == 0 and interval[0] == "(") or (value == 1 and interval[-1] == ")"):
        raise ConfigError(f"{option} = {value!r} is not a fraction in {interval}", where=f"schedule {schedule}")


def check_count(schedule: str, option: str, value: Any) -> None:
    """Raise ConfigError unless a value is an integer, 0 or more."""
    if not (_is_number(value) and value >= 0 and float(value).is_integer()):
        raise ConfigError(f"{option} = {value!r} is not an integer, 0 or more", where=f"schedule {schedule}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
