"""Checks of hyper-parameters. Importing this module does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import MethodError
from expunge.core.reading.plain import as_plain


def require_range(method: str, **checks: tuple[Any, bool]) -> None:
    """Raise MethodError for the first option that is out of range.

    Args:
        method: name of the method, for the message.
        checks: for each option, its value and whether that is in range.

    >>> from expunge.methods import require_range
    >>> require_range("noise", scale=(0.1, 0.1 > 0))
    >>> require_range("noise", scale=(-1.0, -1.0 > 0))
    Traceback (most recent call last):
        ...
    expunge.core.errors.MethodError: noise.scale: scale = -1.0 is out of range
    """
    for option, (value, is_in_range) in checks.items():
        if not is_in_range:
            raise MethodError(f"{option} = {value!r} is out of range", where=f"{method}.{option}")


def coerce_option(method: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of an option in the type of its default: a float of an integer, a tuple of a list.

    Scalars of numpy are numbers.

    Raises:
        MethodError: the value has another type.
    """
    value, default = as_plain(value), field.default
    expected = type(default)
    if default is None and str(field.type).startswith("Mapping") and value is not None:
        expected = Mapping
    elif default is dataclasses.MISSING or default is None:
        return value
    if isinstance(value, expected) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) and isinstance(default, bool):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    type_name = "a mapping" if expected is Mapping else expected.__name__
    raise MethodError(
        f"option {field.name} of {method} must be {type_name}, not {type(value).__name__} ({value!r})",
        where=field.name,
    )
