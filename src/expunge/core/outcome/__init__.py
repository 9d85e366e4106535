"""The result of an unlearning method. Importing this package does not import torch."""

from .extent import Extent, MaskChange, describe_nothing_changed, format_percent, list_changed, sum_mask_changes
from .outcome import (
    FROM_FORGET,
    GUARANTEES,
    Cost,
    Outcome,
    describe_bound,
    describe_guarantee,
    describe_stand_in,
    group_changes,
    versions,
)

__all__ = [
    "FROM_FORGET",
    "GUARANTEES",
    "Cost",
    "Extent",
    "MaskChange",
    "Outcome",
    "describe_bound",
    "describe_guarantee",
    "describe_nothing_changed",
    "describe_stand_in",
    "format_percent",
    "group_changes",
    "list_changed",
    "sum_mask_changes",
    "versions",
]
