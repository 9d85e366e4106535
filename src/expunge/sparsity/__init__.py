"""Criteria, layers, selection, schedules: how a mask is made."""

from .criteria import criterion_names, scores
from .layers import prunable
from .prune import prune, schedule_names
from .select import select_global

__all__ = ["criterion_names", "prunable", "prune", "schedule_names", "scores", "select_global"]
