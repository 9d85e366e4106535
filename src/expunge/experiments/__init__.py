"""Experiments: configurations, plans, the cache of stages, the runner, tables. Importing this does not import torch."""

from .config import RunConfig, load_config
from .figure import render_figure
from .plan import Plan, load_plan
from .precheck import check_names, check_plan
from .progress import PlanBar
from .results import read_results, write_results
from .runner import PlanRun, collect_results, explain_plan, plan_status, run_plan, sweep_store
from .state import PlanStatus
from .table import render_table

__all__ = [
    "Plan",
    "PlanBar",
    "PlanRun",
    "PlanStatus",
    "RunConfig",
    "check_names",
    "check_plan",
    "collect_results",
    "explain_plan",
    "load_config",
    "load_plan",
    "plan_status",
    "read_results",
    "render_figure",
    "render_table",
    "run_plan",
    "sweep_store",
    "write_results",
]
