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
            hint="request all records of a class (forget.by=class in a configuration), or use another method",
        )
    return request.forgotten_class
