"""Pruning: criteria, granularities, scopes, schedules, and import and export of pruned models. See docs/sparsity.md."""

from .channels.groups import Channels, find_channels
from .channels.layers import prunable_weights
from .compression.semi_structured import to_semi_structured
from .compression.shrink import SmallModel, shrink
from .compression.small_model import load_small_model, save_small_model
from .criteria import channel, gradient  # noqa: F401 (they register criteria)
from .criteria.registry import ScoringContext, compute_scores, criterion_names, get_criterion, score_weights
from .interop.adopt import ImportedModel, adopt_imported, adopt_weights, import_model
from .interop.formats import (
    DetectedFormat,
    detect_format,
    export_dense,
    from_torch_prune,
    mask_from_zeros,
    to_torch_prune,
)
from .interop.provenance import PrunedBy
from .masks.allocation import scope_names, select_global
from .masks.consistency import ranked_sparsity
from .masks.granularity import get_granularity, granularity_names
from .masks.rule import Rule, make_mask, rule_of
from .prune import prune, repeat_pruning, schedule_names

__all__ = [
    "Channels",
    "DetectedFormat",
    "ImportedModel",
    "PrunedBy",
    "Rule",
    "ScoringContext",
    "SmallModel",
    "adopt_imported",
    "adopt_weights",
    "compute_scores",
    "criterion_names",
    "detect_format",
    "export_dense",
    "find_channels",
    "from_torch_prune",
    "get_criterion",
    "get_granularity",
    "granularity_names",
    "import_model",
    "load_small_model",
    "make_mask",
    "mask_from_zeros",
    "prunable_weights",
    "prune",
    "ranked_sparsity",
    "repeat_pruning",
    "rule_of",
    "save_small_model",
    "schedule_names",
    "scope_names",
    "score_weights",
    "select_global",
    "shrink",
    "to_semi_structured",
    "to_torch_prune",
]
