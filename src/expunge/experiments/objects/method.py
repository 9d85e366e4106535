"""The section `method`: a method with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.methods import Method


def make_method(section: Mapping[str, Any]) -> Method:
    """The method of the section `method`.

    Raises:
        MethodError: the method or an option is unknown, or a value is wrong.
        TrustError: it is named by a reference, to code that the owner did not agree to run.
    """
    from expunge.methods import get_method

    return get_method(section["name"], **section["options"])
