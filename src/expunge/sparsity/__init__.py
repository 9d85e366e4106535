"""Criteria, granularities, scopes, schedules: how a mask is made. See docs/sparsity.md."""

from . import channel_criteria, saliency  # noqa: F401 (they register criteria)
from .adopt import Arrived, adopt_weights, adopted, read_arrived
from .channels import Channels, find_channels
from .criteria import Material, criterion_names, get_criterion, score, scores
from .form import PrunedBy
from .granularity import get_granularity, granularity_names
from .layers import prunable
from .make import Rule, make_mask, rule_of
from .physical import Small, shrink
from .prune import prune, prune_again, schedule_names
from .scope import scope_names
from .select import select_global
from .small_files import load_small, save_small
from .stated import ranked_sparsity
from .tensor_cores import semi_structured

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
