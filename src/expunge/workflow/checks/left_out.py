"""Findings of `check` about named records and subjects that a request does not forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.models import Finding


def inspect_left_out(selection: Mapping[str, Any]) -> list[Finding]:
    """Warn of names that were skipped, and of records of named subjects outside the retain set.

    Args:
        selection: of the request.
    """
    from expunge.data.requests import describe_outside, describe_skipped
    from expunge.models import Finding

    skipped = "they stay as they are, and are listed in outcome.json and the report"
    outside = "if the model was trained on them, the split is not that of the training: split.file reads a saved one"
    found = [Finding("warning", "forget", line, skipped) for line in describe_skipped(selection)]
    return [*found, *(Finding("warning", "forget", line, outside) for line in describe_outside(selection))]
