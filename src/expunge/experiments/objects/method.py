"""The section `method`: a method with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.methods import Method


def split_options(section: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that have an effect, and those that the others leave without one; see `Method.drop_unused`.

    Raises:
        MethodError, TrustError: see `make_method`.
    """
    from expunge.methods import method_class

    return method_class(section["name"]).drop_unused(section["options"])


def make_method(section: Mapping[str, Any], *, drop_unused: bool = False) -> Method:
    """The method of the section `method`.

    Args:
        section: its name and its options.
        drop_unused: leave out options that the others leave without effect; cells of a plan share options. Otherwise,
            such an option is an error.

    Raises:
        MethodError: the method or an option is unknown, or a value is wrong.
        TrustError: it is named by a reference, to code that the owner did not agree to run.
    """
    from expunge.methods import get_method

    options = split_options(section)[0] if drop_unused else section["options"]
    return get_method(section["name"], **options)
