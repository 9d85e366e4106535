"""Make the content of a report from the finished stages of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.files import read_run_file
from expunge.core.hashing import hash_file
from expunge.core.registry import MODELS, SOURCES, find_title
from expunge.evaluation.score import Scores
from expunge.experiments.config.plan import Cell
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.environment import versions
from expunge.report.assemble import Measured, assemble_comparison, count_shared_subjects, list_copies
from expunge.report.content import Comparison, ReportContent, RequestSummary, Scenario, leave_out_names
from expunge.report.formatting import describe_title, format_list

MODEL_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class _Run:
    """One cell, its outcome, and the directories of its finished stages."""

    cell: Cell
    paths: Mapping[str, Path]
    is_reference: bool
    outcome: Mapping[str, Any]
    roles: Mapping[str, str]
    finished: str
    file: str

    def labels(self, *roles: str) -> list[str]:
        """The labels on the axes that have one of these roles (`Axis.role`)."""
        return [label for axis, label in self.cell.labels.items() if self.roles.get(axis, axis) in roles]

    @property
    def method(self) -> str:
        return ", ".join(self.labels("method")) or str(self.outcome["method"]["name"])


def make_report_content(
    state: PlanState,
    *,
    title: str = "",
    summary: str = "",
    limits: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    ids: bool = False,
    model_file: str | None = None,
) -> ReportContent:
    """Make the content of the report of a finished plan.

    Every request is a scenario, every original model a comparison in it, every method a model in the comparison. Cells
    that differ only in their seed are one model with the mean over seeds; its histograms and its provenance are those
    of the first seed. Cells with different forget sets are different scenarios, even if only a seed makes them differ.

    Args:
        state: the plan and its store (`open_state`); its graph was built with `originals=True`, and all stages are
            finished.
        title: of the report; empty: the titles of model, data and methods.
        summary: printed below the title.
        limits: statements added to "What this does not show".
        provenance: added to the provenance of the report.
        ids: whether the report prints the ids of the forgotten records, and the names and values that `forget` lists
            (`expunge.report.content.leave_out_names`). They are personal data, and left out by default.
        model_file: the file, in the directory of the report, to which the model of the last cell is copied. The files
            of all other models are named by their paths in the store.

    The date of the report is the day (UTC) on which the last of its stages finished, as its store has recorded.

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
    >>> content.scenarios[0].title, content.scenarios[0].request.first_ids
    ('5 random records', ())
    """
    runs = [_run(state, index) for index in range(len(state.plan.cells))]
    if model_file is not None:
        runs[-1] = dataclasses.replace(runs[-1], file=model_file)
    scenarios: dict[tuple[str, str], list[_Run]] = {}
    for run in runs:
        scenarios.setdefault((_scenario_title(run), run.outcome["request"]["hash"]), []).append(run)
    titles = [title for title, _ in scenarios]
    first = runs[0].cell.config
    data, architecture = (
        find_title(SOURCES, first.data.source, first.data.options), find_title(MODELS, first.model.name)
    )  # fmt: skip
    methods = list(dict.fromkeys(run.method for run in runs if not run.is_reference)) or [runs[0].method]
    return ReportContent(
        title=title or f"{architecture}, {data}: forgetting with {format_list(methods)}",
        scenarios=tuple(
            _scenario(title if titles.count(title) == 1 else f"{title}, request {digest[:8]}", group, ids)
            for (title, digest), group in scenarios.items()
        ),
        data=data,
        architecture=architecture,
        summary=summary,
        limits=tuple(limits),
        stored=_find_stored(state, runs),
        provenance={
            "plan": {"name": state.plan.name, "hash": state.plan.hash, "cells": len(runs)},
            **_leave_out_names(provenance or {}, ids),
        },
        versions=versions(),
        created=max((run.finished for run in runs), default="")[:10],
    )


def _run(state: PlanState, index: int) -> _Run:
    paths, finished = {}, [""]
    for stage, node_id in state.graph.cells[index].items():
        entry = state.entry(state.graph.nodes[node_id])
        if entry is not None:
            paths[stage] = entry.path
            finished.append(entry.finished)
    cell = state.plan.cells[index]
    outcome = read_run_file(paths["forget"] / "outcome.json", "expunge.outcome", 2)
    file = (paths["forget"] / MODEL_FILE).relative_to(state.store.root).as_posix()
    roles = {axis.name: axis.role for axis in state.plan.axes}
    is_reference = cell.reference == index and cell.config.split.retain is None
    return _Run(cell, paths, is_reference, outcome, roles, max(finished), file)


def _find_stored(state: PlanState, runs: Sequence[_Run]) -> dict[str, tuple[str, ...]]:
    """The state that the entries of the originals hold, by their path in the store."""
    originals = [path for run in runs for stage, path in run.paths.items() if stage != "forget"]
    found = {}
    for path in dict.fromkeys(originals):
        if names := tuple(file.stem for file in sorted((path / "state").glob("*.safetensors"))):
            found[path.relative_to(state.store.root).as_posix()] = names
    return found


def _leave_out_names(provenance: Mapping[str, Any], ids: bool) -> dict[str, Any]:
    """The provenance, in which the configuration names neither records nor subjects."""
    configuration = provenance.get("configuration")
    if ids or not isinstance(configuration, Mapping) or not isinstance(configuration.get("forget"), Mapping):
        return dict(provenance)
    return {**provenance, "configuration": {**configuration, "forget": leave_out_names(configuration["forget"])}}


def _scenario_title(run: _Run) -> str:
    label = run.cell.labels.get("forget")
    if label is not None:
        return label
    names = tuple(row["class"] for row in _read_details(run.paths["score"])["classes"])
    return describe_title(RequestSummary.from_json(run.outcome["request"]), names)


def _scenario(title: str, runs: Sequence[_Run], ids: bool) -> Scenario:
    groups: dict[tuple[str, ...], list[_Run]] = {}
    for run in runs:
        others = [
            label for axis, label in run.cell.labels.items() if axis != "forget" and run.roles.get(axis) == "case"
        ]
        groups.setdefault((*others, *run.labels("sparsity")), []).append(run)
    names = [_comparison_name(key, group[0]) for key, group in groups.items()]
    names = [name if names.count(name) == 1 else ", ".join(key) for name, key in zip(names, groups, strict=True)]
    outcome = runs[0].outcome
    details = _read_details(runs[0].paths["score"])
    request = RequestSummary.from_json(
        outcome["request"], retained=outcome["cost"]["retain_records"], ids=None if ids else 0
    )
    scores = [_read_scores(run.paths["score"]) for run in runs]
    return Scenario(
        title=title,
        request=request,
        comparisons=tuple(_comparison(name, group) for name, group in zip(names, groups.values(), strict=True)),
        class_names=tuple(row["class"] for row in details["classes"]),
        copies=list_copies(scores),
        shared_subjects=count_shared_subjects(scores),
    )


def _comparison_name(key: tuple[str, ...], run: _Run) -> str:
    """The labels of the cases, and the sparsity."""
    sparsity = run.cell.config.sparsity
    cases = key[: len(key) - len(run.labels("sparsity"))]
    return ", ".join([*cases, "dense" if sparsity is None else f"{100 * sparsity.sparsity:g} % sparse"])


def _comparison(label: str, runs: Sequence[_Run]) -> Comparison:
    methods: dict[str, list[_Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    hashes = _read_hashes(runs[0])
    return assemble_comparison(
        label,
        [Measured(_read_scores(at), _read_details(at), hashes=hashes) for at in _list_originals(runs)],
        {name: [_measured(run) for run in seeds] for name, seeds in methods.items()},
        next((name for name, seeds in methods.items() if seeds[0].is_reference), None),
    )


def _measured(run: _Run) -> Measured:
    directory = run.paths["score"]
    return Measured(
        _read_scores(directory),
        _read_details(directory),
        run.outcome,
        file=run.file,
        file_hash=hash_file(run.paths["forget"] / MODEL_FILE),
    )


def _read_hashes(run: _Run) -> dict[str, Any]:
    """The hashes of weights and mask of a run's original model."""
    directory = run.paths.get("prune") or run.paths["train"]
    hashes = read_run_file(directory / "trained.json", "expunge.trained", 2)["hashes"]
    return {name: hashes[name] for name in ("weights", "mask")}


def _list_originals(runs: Sequence[_Run]) -> list[Path]:
    """Directories with the scores of the original models, one per seed."""
    found: dict[Path, None] = {}
    for run in runs:
        if "score_original" in run.paths:
            found[run.paths["score_original"]] = None
    return list(found)


def _read_scores(directory: Path) -> Scores:
    return Scores.load(directory / "scores.json")


def _read_details(directory: Path) -> dict[str, Any]:
    return read_run_file(directory / "details.json", "expunge.details", 2)
