"""Pruning: criteria, granularities, scopes, schedules, and import and export of pruned models. See docs/sparsity.md."""

from expunge.core.lazy import import_on_use

from .channels.groups import Channels, find_channels
from .channels.layers import prunable_weights
from .compression.semi_structured import to_semi_structured
from .compression.shrink import SmallModel, shrink
from .compression.small_model import load_small_model, save_small_model
from .criteria.registry import (
    Criterion,
    ScoringContext,
    compute_scores,
    criterion_names,
    get_criterion,
    register_criterion,
    score_weights,
)
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
from .masks.allocation import Scope, get_scope, register_scope, scope_names, select_global
from .masks.consistency import ranked_sparsity
from .masks.granularity import Granularity, get_granularity, granularity_names, register_granularity
from .masks.recorded import recorded_granularity
from .masks.rule import Rule, make_mask, rule_of
from .prune import prune, repeat_pruning, run_pruning
from .schedules.pruning import Pruning, pruning_of
from .schedules.registry import Schedule, get_schedule, recorded_schedule, register_schedule, schedule_names
from .schedules.run import Pruned, PruningRun

__all__ = [
    "Channels",
    "Criterion",
    "DetectedFormat",
    "Granularity",
    "ImportedModel",
    "Pruned",
    "PrunedBy",
    "Pruning",
    "PruningRun",
    "Rule",
    "Schedule",
    "Scope",
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
    "get_schedule",
    "get_scope",
    "granularity_names",
    "import_model",
    "load_small_model",
    "make_mask",
    "mask_from_zeros",
    "prunable_weights",
    "prune",
    "pruning_of",
    "ranked_sparsity",
    "recorded_granularity",
    "recorded_schedule",
    "register_criterion",
    "register_granularity",
    "register_schedule",
    "register_scope",
    "repeat_pruning",
    "rule_of",
    "run_pruning",
    "save_small_model",
    "schedule_names",
    "scope_names",
    "score_weights",
    "select_global",
    "shrink",
    "to_semi_structured",
    "to_torch_prune",
]

import_on_use(__name__)
