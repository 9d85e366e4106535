"""Experiments: configurations, plans, the cache of stages, the runner, tables. Importing this does not import torch."""

from .config.plan import Plan, load_plan
from .config.plan_file import is_plan
from .config.registry_checks import CellGroup, check_cells, check_names, check_plan
from .config.run_config import RunConfig, load_config
from .results.figure import render_figure
from .results.files import read_results, write_results
from .results.table import render_table
from .scheduler.progress import PlanBar
from .scheduler.run import PlanRun, clean_store, collect_results, explain_plan, get_plan_status, run_plan
from .scheduler.status import PlanStatus
from .stages.registry import register_stage

__all__ = [
    "CellGroup",
    "Plan",
    "PlanBar",
    "PlanRun",
    "PlanStatus",
    "RunConfig",
    "check_cells",
    "check_names",
    "check_plan",
    "clean_store",
    "collect_results",
    "explain_plan",
    "get_plan_status",
    "is_plan",
    "load_config",
    "load_plan",
    "read_results",
    "register_stage",
    "render_figure",
    "render_table",
    "run_plan",
    "write_results",
]
