"""Check a plan before anything runs: its stages, its cells, its sources."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from expunge.core.errors import ExpungeError
from expunge.core.trust import trusting

from .check import Check

if TYPE_CHECKING:
    from expunge.experiments.config.plan import Plan
    from expunge.models.inspect import Finding


def check_plan_cells(plan: Plan) -> Check:
    """Check the cells of a plan against the registries; no data is read and nothing is run.

    Args:
        plan: see `load_plan`.

    Returns:
        How many stages the plan has, and a finding for each group of cells that differ only in their seeds: what would
        run, or the error; and a warning for options that the method does not use, which are dropped.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_plan
    >>> from expunge.workflow import check_plan_cells
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}], seed: [0, 1]}
    ... ''')
    >>> print(check_plan_cells(load_plan("plan.yaml")).text())
    ok       plan: 4 cells, 11 stages: 1 data, 2 train, 4 forget, 4 score
    ok       method Retrain: 2 cells: Retrain, guarantee exact
    ok       method FT: 2 cells: FT, guarantee empirical
    this would run
    """
    from expunge.experiments.config.registry_checks import check_cells
    from expunge.experiments.scheduler.graph import build_graph
    from expunge.models.inspect import Finding

    findings = []
    try:
        with trusting(plan.trust):
            nodes = build_graph(plan.cells).nodes.values()
        counts = ", ".join(f"{count} {stage}" for stage, count in Counter(node.stage for node in nodes).items())
        findings.append(Finding("ok", "plan", f"{len(plan.cells)} cells, {len(nodes)} stages: {counts}"))
    except ExpungeError as error:
        findings.append(Finding("error", "plan", f"{error.where}: {error.what}", error.hint or ""))
    findings += _check_sources(plan)
    for group in check_cells(plan):
        count = f"{group.cells} cell{'s' * (group.cells > 1)}"
        subject = group.name or "all cells"
        if group.error is not None:
            where = "" if group.error.where is None else f"{group.error.where}: "
            findings.append(Finding("error", subject, f"{count}: {where}{group.error.what}", group.error.hint or ""))
            continue
        findings.append(Finding("ok", subject, f"{count}: {group.method or 'topology leakage'}"))
        if group.note:
            findings.append(Finding("warning", subject, group.note))
    return Check(tuple(findings))


def _check_sources(plan: Plan) -> list[Finding]:
    """Warnings about the sources of a plan, without reading data; wrong names are reported with their cells."""
    from expunge.data.registry import get_source
    from expunge.models.inspect import Finding

    found = []
    for name in dict.fromkeys(cell.config.data.source for cell in plan.cells):
        with contextlib.suppress(ExpungeError), trusting(plan.trust):
            caution = get_source(name).caution
            found += [] if caution is None else [Finding("warning", "data", caution.message, caution.hint)]
    return found
