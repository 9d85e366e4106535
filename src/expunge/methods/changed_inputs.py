"""Methods that change inputs (noise, adversarial examples) need inputs that can change by small amounts."""

from __future__ import annotations

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
