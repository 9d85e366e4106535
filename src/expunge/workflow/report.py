"""Make the content of a report from the finished stages of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.files import read_run_file
from expunge.data.quality import Copies
from expunge.evaluation.score import NO_REFERENCE, Scores
from expunge.evaluation.seeds import mean, noise_floors
from expunge.experiments.config.plan import Cell
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.environment import versions
from expunge.report.content import Comparison, ModelResult, ReportContent, RequestSummary, Scenario
from expunge.report.read import average_over_seeds, read_class_accuracy, read_histograms, read_scores


@dataclasses.dataclass(frozen=True)
class _Run:
    """One cell, its outcome, and the directories of its finished stages."""

    cell: Cell
    paths: Mapping[str, Path]
    is_reference: bool
    outcome: Mapping[str, Any]
    roles: Mapping[str, str]

    def labels(self, *roles: str) -> list[str]:
        """The labels on the axes that have one of these roles (`Axis.role`)."""
        return [label for axis, label in self.cell.labels.items() if self.roles.get(axis, axis) in roles]

    @property
    def method(self) -> str:
        return ", ".join(self.labels("method")) or str(self.outcome["method"]["name"])


def make_report_content(
    state: PlanState,
    *,
    title: str,
    summary: str = "",
    limits: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> ReportContent:
    """Make the content of the report of a finished plan.

    Every request is a scenario, every original model a comparison in it, every method a model in the comparison. Cells
    that differ only in their seed are one model with the mean over seeds; its histograms and its provenance are those
    of the first seed. Cells with different forget sets are different scenarios, even if only a seed makes them differ.

    Args:
        state: the plan and its store (`open_state`); its graph was built with `originals=True`, and all stages are
            finished.
        title: of the report.
        summary: printed below the title.
        limits: statements added to "What this does not show".
        provenance: added to the provenance of the report.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_plan
    >>> from expunge.workflow import make_report_content
    >>> from expunge.workflow.run_stages import open_state, run_stages
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   data: {source: digits}
    ...   split: {limit: 100}
    ...   model: {name: mlp, options: {widths: [4]}}
    ...   training: {recipe: one-cycle, epochs: 1}
    ...   forget: {by: random, count: 5}
    ...   runtime: {device: cpu}
    ... grid: {method: [{name: Retrain}]}
    ... ''')
    >>> state = open_state(load_plan("plan.yaml"), "cache", originals=True)
    >>> run_stages(state, None)
    >>> content = make_report_content(state, title="A small report")
    >>> [model.label for model in content.scenarios[0].comparisons[0].models]
    ['Original', 'Retrain']
    """
    runs = [_run(state, index) for index in range(len(state.plan.cells))]
    scenarios: dict[tuple[str, str], list[_Run]] = {}
    for run in runs:
        scenarios.setdefault((_scenario_title(run), run.outcome["request"]["hash"]), []).append(run)
    titles = [title for title, _ in scenarios]
    first = runs[0].cell.config
    return ReportContent(
        title=title,
        scenarios=tuple(
            _scenario(title if titles.count(title) == 1 else f"{title}, request {digest[:8]}", group)
            for (title, digest), group in scenarios.items()
        ),
        data=first.data.source,
        architecture=first.model.name,
        summary=summary,
        limits=tuple(limits),
        provenance={
            "plan": {"name": state.plan.name, "hash": state.plan.hash, "cells": len(runs)},
            **(provenance or {}),
        },
        versions=versions(),
    )


def _run(state: PlanState, index: int) -> _Run:
    paths = {}
    for stage, node_id in state.graph.cells[index].items():
        entry = state.entry(state.graph.nodes[node_id])
        if entry is not None:
            paths[stage] = entry.path
    cell = state.plan.cells[index]
    outcome = read_run_file(paths["forget"] / "outcome.json", "expunge.outcome", 2)
    return _Run(cell, paths, cell.reference == index, outcome, {axis.name: axis.role for axis in state.plan.axes})


def _scenario_title(run: _Run) -> str:
    label = run.cell.labels.get("forget")
    if label is not None:
        return label
    forget = run.cell.config.forget
    assert forget is not None
    return "forget " + ", ".join(f"{k} {v}" for k, v in forget.model_dump(mode="json").items() if v is not None)


def _scenario(title: str, runs: Sequence[_Run]) -> Scenario:
    groups: dict[tuple[str, ...], list[_Run]] = {}
    for run in runs:
        others = [
            label for axis, label in run.cell.labels.items() if axis != "forget" and run.roles.get(axis) == "case"
        ]
        groups.setdefault((*others, *run.labels("sparsity")), []).append(run)
    names = [_comparison_name(key, group[0]) for key, group in groups.items()]
    names = [name if names.count(name) == 1 else ", ".join(key) for name, key in zip(names, groups, strict=True)]
    outcome = runs[0].outcome
    details = read_run_file(runs[0].paths["score"] / "details.json", "expunge.details", 2)
    return Scenario(
        title=title,
        request=RequestSummary.from_json(outcome["request"], retained=outcome["cost"]["retain_records"]),
        comparisons=tuple(_comparison(name, group) for name, group in zip(names, groups.values(), strict=True)),
        class_names=tuple(row["class"] for row in details["classes"]),
        copies=_read_copies(runs),
    )


def _read_copies(runs: Sequence[_Run]) -> tuple[Copies, ...]:
    """The counts of copies of D_f in the scores of the runs, without duplicates."""
    found: list[Copies] = []
    for run in runs:
        about = read_run_file(run.paths["score"] / "scores.json", "expunge.scores", 2).get("about", {})
        copies = Copies.from_json(about["copies"]) if "copies" in about else None
        if copies is not None and copies not in found:
            found.append(copies)
    return tuple(found)


def _comparison_name(key: tuple[str, ...], run: _Run) -> str:
    """The labels of the cases, and the sparsity."""
    sparsity = run.cell.config.sparsity
    cases = key[: len(key) - len(run.labels("sparsity"))]
    return ", ".join([*cases, "dense" if sparsity is None else f"{100 * sparsity.sparsity:g} % sparse"])


def _comparison(label: str, runs: Sequence[_Run]) -> Comparison:
    methods: dict[str, list[_Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    models = []
    originals = _list_originals(runs)
    if originals:
        models.append(_add_scores(ModelResult("Original", "original"), originals))
    floor: dict[str, float] = {}
    for name, seeds in methods.items():
        role = "retrained" if seeds[0].is_reference else "unlearned"
        model = ModelResult.from_outcome(seeds[0].outcome, role=role, label=name)
        costs = [run.outcome["cost"] for run in seeds]
        model = dataclasses.replace(
            model,
            passes=mean([cost["passes"] for cost in costs]),
            seconds=mean([cost["seconds"] for cost in costs]),
        )
        models.append(_add_scores(model, [run.paths["score"] for run in seeds]))
        if role == "retrained":
            found = [Scores.load(run.paths["score"] / "scores.json") for run in seeds]
            values = [{score.name: score.value for score in scores} for scores in found]
            floor = noise_floors(values, [scores.about.get("weights") for scores in found])
    return Comparison(label, tuple(models), floor)


def _list_originals(runs: Sequence[_Run]) -> list[Path]:
    """Directories with the scores of the original models, one per seed."""
    found: dict[Path, None] = {}
    for run in runs:
        if "score_original" in run.paths:
            found[run.paths["score_original"]] = None
    return list(found)


def _add_scores(model: ModelResult, directories: Sequence[Path]) -> ModelResult:
    """Add scores and accuracies by class (mean over seeds), and histograms and densities (of the first seed)."""
    found = [Scores.load(at / "scores.json") for at in directories]
    details = [read_run_file(at / "details.json", "expunge.details", 2) for at in directories]
    warnings = [warning.message for scores in found for warning in scores.warnings]
    notes = dict.fromkeys([*warnings, *(note for scores in found for note in scores.notes)])
    return dataclasses.replace(
        model,
        scores=average_over_seeds(
            [read_scores(scores) for scores in found], [scores.about.get("weights") for scores in found]
        ),
        class_accuracy=_average([read_class_accuracy(entry["classes"]) for entry in details]),
        confidence=read_histograms(details[0]["confidence"]),
        density=dict(details[0]["density"]),
        notes=tuple(note for note in notes if model.role != "retrained" or note != NO_REFERENCE),
    )


def _average(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    columns = zip(*rows, strict=True)
    return tuple(None if None in column else mean(column) for column in columns)
