"""Experiments: configurations, plans, the cache of stages, the runner, tables. Importing this does not import torch.

Each name is imported on first use: the status of a plan needs no tables or figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.lazy import import_on_use

if TYPE_CHECKING:
    from .config.plan import Plan, load_plan
    from .config.plan_file import is_plan
    from .config.registry_checks import CellGroup, check_cells, check_names, check_plan
    from .config.run_config import RunConfig, load_config
    from .forecast.history import Estimate
    from .forecast.result import Forecast, StageForecast
    from .results.figures.curves import render_curves
    from .results.figures.dots import render_figure
    from .results.figures.sweep import render_sweep
    from .results.files import read_results, write_results
    from .results.ranks import Ranked, Ranking, rank_methods, render_rank_table, render_ranks
    from .results.table import render_table
    from .scheduler.progress import PlanBar
    from .scheduler.run import PlanRun, clean_store, collect_results, forecast_plan, run_plan
    from .scheduler.status import PlanStatus, explain_plan, get_plan_status
    from .stages.registry import register_stage
    from .tuning.tune import TuneRun, tune_plan

_MODULES: dict[str, tuple[str, ...]] = {
    "config.plan": ("Plan", "load_plan"),
    "config.plan_file": ("is_plan",),
    "config.registry_checks": ("CellGroup", "check_cells", "check_names", "check_plan"),
    "config.run_config": ("RunConfig", "load_config"),
    "forecast.history": ("Estimate",),
    "forecast.result": ("Forecast", "StageForecast"),
    "results.figures.curves": ("render_curves",),
    "results.figures.dots": ("render_figure",),
    "results.figures.sweep": ("render_sweep",),
    "results.files": ("read_results", "write_results"),
    "results.ranks": ("Ranked", "Ranking", "rank_methods", "render_rank_table", "render_ranks"),
    "results.table": ("render_table",),
    "scheduler.progress": ("PlanBar",),
    "scheduler.run": ("PlanRun", "clean_store", "collect_results", "forecast_plan", "run_plan"),
    "scheduler.status": ("PlanStatus", "explain_plan", "get_plan_status"),
    "stages.registry": ("register_stage",),
    "tuning.tune": ("TuneRun", "tune_plan"),
}

__all__ = [
    "CellGroup",
    "Estimate",
    "Forecast",
    "Plan",
    "PlanBar",
    "PlanRun",
    "PlanStatus",
    "Ranked",
    "Ranking",
    "RunConfig",
    "StageForecast",
    "TuneRun",
    "check_cells",
    "check_names",
    "check_plan",
    "clean_store",
    "collect_results",
    "explain_plan",
    "forecast_plan",
    "get_plan_status",
    "is_plan",
    "load_config",
    "load_plan",
    "rank_methods",
    "read_results",
    "register_stage",
    "render_curves",
    "render_figure",
    "render_rank_table",
    "render_ranks",
    "render_sweep",
    "render_table",
    "run_plan",
    "tune_plan",
    "write_results",
]

import_on_use(__name__, _MODULES)
