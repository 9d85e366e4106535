"""Requests for a whole class."""

from __future__ import annotations

from expunge.core.errors import RequestError
from expunge.core.request import ForgetRequest


def require_class(request: ForgetRequest, method: str, reason: str) -> int:
    """The index of the forgotten class.

    Args:
        request: the request.
        method: name of the method.
        reason: why it needs one.

    Raises:
        RequestError: the request is not for a whole class.
    """
    if request.forgotten_class is None:
        raise RequestError(
            f"this method can only forget a whole class: {reason}",
            where=method,
            hint="select a class (forget.by=class), or use another method for single records",
        )
    return request.forgotten_class
