"""Criteria, granularities, scopes, schedules: how a mask is made. See docs/sparsity.md."""

from .channels.groups import Channels, find_channels
from .channels.layers import prunable
from .compression.semi_structured import semi_structured
from .compression.shrink import Small, shrink
from .compression.small_model import load_small, save_small
from .criteria import channel, gradient  # noqa: F401 (they register criteria)
from .criteria.registry import Material, criterion_names, get_criterion, score, scores
from .interop.adopt import Arrived, adopt_weights, adopted, read_arrived
from .interop.provenance import PrunedBy
from .masks.allocation import scope_names, select_global
from .masks.consistency import ranked_sparsity
from .masks.granularity import get_granularity, granularity_names
from .masks.rule import Rule, make_mask, rule_of
from .prune import prune, prune_again, schedule_names

__all__ = [
    "Arrived",
    "Channels",
    "Material",
    "PrunedBy",
    "Rule",
    "Small",
    "adopt_weights",
    "adopted",
    "criterion_names",
    "find_channels",
    "get_criterion",
    "get_granularity",
    "granularity_names",
    "load_small",
    "make_mask",
    "prunable",
    "prune",
    "prune_again",
    "ranked_sparsity",
    "read_arrived",
    "rule_of",
    "save_small",
    "schedule_names",
    "scope_names",
    "score",
    "scores",
    "select_global",
    "semi_structured",
    "shrink",
]
