"""Methods that change inputs (noise, adversarial examples) need inputs that can change by small amounts."""

from __future__ import annotations

import numpy as np

from expunge.core.errors import MethodError
from expunge.data.records import Records


def explain_integers(records: Records) -> tuple[str, str] | None:
    """Why the inputs of a model cannot change by small amounts, and a hint; None if they can: tokens are integers.

    Args:
        records: in memory or streamed.

    Example:
        >>> import numpy as np
        >>> tokens = Records("toy", ["a", "b"], [0, 1], ("no", "yes"), np.array([[7, 2], [5, 9]]))
        >>> explain_integers(tokens)[0]
        'the method changes inputs by small amounts, and these are integers (int64)'
    """
    fields = () if records.fields is None else records.fields.fields
    named = ", ".join(field.name for field in fields if field.is_integer and field.name)
    if not named and records.dtype != "int64":
        return None
    what = "the method changes inputs by small amounts, and these are integers"
    return f"{what} ({named or 'int64'})", "use a method that leaves the inputs as they are"


def require_changeable_inputs(records: Records, where: str) -> None:
    """Raise MethodError if the inputs are integers."""
    reason = explain_integers(records)
    if reason is not None:
        raise MethodError(reason[0], where=where, hint=reason[1])


def find_discrete_features(records: Records) -> str:
    """Why the features of records are discrete, or empty. Streamed records and uint8 images count as continuous.

    Float features are discrete if all are integers, or if a column of a table has exactly two values (a flag, or one
    value of a category).

    Example:
        >>> flags = np.array([[0, 0.5], [1, 0.25], [0, 0.125]], dtype=np.float32)
        >>> find_discrete_features(Records("toy", ["a", "b", "c"], [0, 1, 1], ("no", "yes"), flags))
        '1 of 2 columns have only two values, such as number 0'
    """
    if explain_integers(records) is not None:
        return "inputs are integers"
    features = records.features
    if features is None or features.dtype == np.uint8:
        return ""
    if bool((features == np.round(features)).all()):
        return "all features are integers"
    if features.ndim == 2:
        lowest, highest = features.min(axis=0), features.max(axis=0)
        binary = ((features == lowest) | (features == highest)).all(axis=0) & (lowest < highest)
        if binary.any() and len(features) > 2:
            first = int(binary.argmax())
            return f"{int(binary.sum())} of {features.shape[1]} columns have only two values, such as number {first}"
    return ""
