"""Experiments: configurations, plans, the cache of stages, the runner, tables. Importing this does not import torch."""

from .config.plan import Plan, load_plan
from .config.registry_checks import check_names, check_plan
from .config.run_config import RunConfig, load_config
from .results.figure import render_figure
from .results.files import read_results, write_results
from .results.table import render_table
from .scheduler.progress import PlanBar
from .scheduler.run import PlanRun, clean_store, collect_results, explain_plan, get_plan_status, run_plan
from .scheduler.status import PlanStatus

__all__ = [
    "Plan",
    "PlanBar",
    "PlanRun",
    "PlanStatus",
    "RunConfig",
    "check_names",
    "check_plan",
    "clean_store",
    "collect_results",
    "explain_plan",
    "get_plan_status",
    "load_config",
    "load_plan",
    "read_results",
    "render_figure",
    "render_table",
    "run_plan",
    "write_results",
]
