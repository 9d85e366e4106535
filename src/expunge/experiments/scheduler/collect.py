"""Collect the results of a plan: scores and costs of every cell, hardware and versions, and the claims' verdicts.

Format: docs/formats/results.md. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ExpungeError, StoreError
from expunge.core.files import read_json
from expunge.experiments.config.run_config import MethodConfig
from expunge.experiments.results.claims import check_claim
from expunge.experiments.results.overlaps import compute_overlaps
from expunge.experiments.store.store import Entry

from .graph import Node
from .status import PlanState, entry_or_none

#: Files of a finished cell that its results are read from.
SCORES, OUTCOME = "scores.json", "outcome.json"


def collect(state: PlanState, failures: Mapping[str, str], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect the results of all completed stages from the store; the same store gives the same results.

    Args:
        state: the plan and its store.
        failures: node id to the message of the failure, from the run that just ended.
        earlier: results of the same plan, for cells that are not in the store; None: these are missing.
    """
    plan = state.plan
    definitions: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    used: dict[str, Entry] = {}
    for index, (cell, node_ids) in enumerate(zip(plan.cells, state.graph.cells, strict=True)):
        body: dict[str, Any] = {
            "labels": dict(cell.labels),
            "method": cell.config.method.name if cell.config.method else "leakage" if cell.config.leakage else "",
            "sparsity": 0.0 if cell.config.sparsity is None else cell.config.sparsity.sparsity,
            "seeds": {"run": cell.config.seed, "split": cell.config.split.seed},
            "reference": cell.reference,
            "is_reference": cell.reference == index,
            "state": "missing",
            "scores": {},
        }
        if cell.config.method is not None:
            body["options_from"] = _find_options_source(cell.config.method)
        entries: dict[str, Entry] = {}
        try:
            for name, node_id in node_ids.items():
                entry = state.entry(state.graph.nodes[node_id])
                if entry is not None:
                    entries[name] = entry
        except StoreError:
            raise
        except ExpungeError as error:
            body.update(state="failed", message=str(error))
        message = next((failures[i] for i in node_ids.values() if i in failures), None)
        if message is not None:
            body.update(state="failed", message=message)
        if "score" in entries and not _is_damaged(state, entries, body):
            body.update(state="finished", **_read_cell(entries, definitions))
            used.update({entry.key: entry for entry in entries.values()})
        cells.append(body)
    kept = 0 if earlier is None else _keep_cells(cells, earlier, definitions)
    for body in cells:
        _check_passes(body, cells, plan.passes_limit)
    axes = [{"name": axis.name, "role": axis.role, "labels": list(axis.labels)} for axis in plan.axes]
    found: dict[str, Any] = {
        "plan": {"name": plan.name, "description": plan.description, "file": plan.path.name, "hash": plan.hash},
        "axes": axes,
        "reference": plan.reference,
        "passes_limit": plan.passes_limit,
        "scores": definitions,
        "options": _replace_options_by_index(cells),
        "cells": cells,
        "claims": [check_claim(claim, cells, axes) for claim in plan.claims],
        **({"columns": list(plan.columns)} if plan.columns else {}),
        **({"curves": dict(plan.curves)} if plan.curves else {}),
        **({"rerun": plan.rerun, "overlaps": compute_overlaps(cells, axes, plan.rerun)} if plan.rerun else {}),
        "made": _describe_runs(used, earlier if kept else None),
    }
    rounded: dict[str, Any] = _round_floats(found)
    return rounded


def _keep_cells(cells: list[dict[str, Any]], earlier: Mapping[str, Any], definitions: dict[str, Any]) -> int:
    """Put finished cells of earlier results in the place of missing ones; returns their number."""
    count = 0
    for index, (body, before) in enumerate(zip(cells, earlier["cells"], strict=True)):
        if body["state"] == "missing" and before["state"] == "finished":
            count += 1
            cells[index] = {**before}
            if "options" in before:
                cells[index]["options"] = earlier["options"][before["options"]]
            for name in before["scores"]:
                definitions.setdefault(name, earlier["scores"][name])
    return count


def discard_damaged(state: PlanState) -> list[tuple[Node, str]]:
    """Remove finished stages whose files are not as they were written; returns what was wrong."""
    names: dict[str, set[str]] = {}
    for chain in state.graph.cells:
        for stage, name in (("score", SCORES), ("forget", OUTCOME)):
            if stage in chain:
                names.setdefault(chain[stage], set()).add(name)
    found = []
    for node in state.graph.nodes.values():
        entry = entry_or_none(state, node)
        damage = None if entry is None else state.store.check_quickly(entry, names.get(node.id, ()))
        if entry is not None and damage is not None:
            state.store.discard(entry, damage)
            state.reset()
            found.append((node, damage))
    return found


def _is_damaged(state: PlanState, entries: Mapping[str, Entry], body: dict[str, Any]) -> bool:
    """Whether a file that is read here is damaged, which the next run repairs."""
    for stage, name in (("score", SCORES), ("forget", OUTCOME)):
        damage = state.store.check_files(entries[stage], [name]) if stage in entries else None
        if damage is not None:
            body.update(state="failed", message=f"the stored result of {stage} is damaged: {damage}")
            return True
    return False


def _find_options_source(method: MethodConfig) -> str:
    """Where the options of a method come from: a search, the plan, or its defaults."""
    if method.tuned is not None:
        return "tuned"
    return "plan" if method.options else "default"


def _read_cell(entries: Mapping[str, Entry], definitions: dict[str, Any]) -> dict[str, Any]:
    """Scores, intervals, notes, outcome and durations of a finished cell; adds to the definitions of the scores."""
    scores = read_json(entries["score"].path / SCORES, "expunge.scores", 2)
    for score in scores["scores"]:
        definitions.setdefault(score["name"], {k: score[k] for k in ("unit", "direction", "definition", "citation")})
    outcome = _read_outcome(entries)
    values = {score["name"]: score["value"] for score in scores["scores"]}
    return {
        "scores": {**values, **_read_cost(values, outcome.get("cost", {}))},
        "intervals": {
            score["name"]: [score["interval"]["low"], score["interval"]["high"]]
            for score in scores["scores"]
            if score.get("interval")
        },
        "notes": [*(warning["message"] for warning in scores.get("warnings", [])), *scores.get("notes", [])],
        **outcome,
        "stage_seconds": {name: entry.seconds for name, entry in entries.items()},
        "finished": entries["score"].finished,
    }


def _read_cost(values: Mapping[str, float], cost: Mapping[str, Any]) -> dict[str, float]:
    """Cost scores of this cell, from its outcome: cells with bit-identical models share one entry of scores."""
    names = {"RTE": "seconds", "Passes": "passes"}
    return {name: cost[key] for name, key in names.items() if name in values and cost.get(key) is not None}


def _read_outcome(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Guarantee, options, cost and hashes from the outcome of the method; only the data hash without a method."""
    if "forget" not in entries:
        return {"hashes": {"data": entries["data"].output}}
    outcome = read_json(entries["forget"].path / OUTCOME, "expunge.outcome", 2)
    return {
        "guarantee": outcome["method"]["guarantee"],
        "options": outcome["method"]["options"],
        "cost": outcome["cost"],
        "forgotten": outcome["request"]["records"],
        "hashes": {name: outcome["hashes"].get(name) for name in ("data", "split", "weights", "mask")},
    }


def _check_passes(body: dict[str, Any], cells: list[dict[str, Any]], limit: float) -> None:
    """Record the fraction of the reference's passes that a cell used, and whether it exceeds `limit`.

    Exact methods have no limit.
    """
    reference = cells[body["reference"]]
    if body["state"] != "finished" or reference["state"] != "finished" or body["is_reference"]:
        return
    fraction = body["cost"]["passes"] / max(reference["cost"]["passes"], 1e-12)
    body["passes_fraction"] = fraction
    body["over_limit"] = body["guarantee"] != "exact" and fraction > limit * (1 + 1e-9)


def _replace_options_by_index(cells: list[dict[str, Any]]) -> list[Any]:
    """Collect the distinct options of the cells' methods; in the cells, replace them by their index in this list."""
    found: list[Any] = []
    for cell in cells:
        if "options" in cell:
            if cell["options"] not in found:
                found.append(cell["options"])
            cell["options"] = found.index(cell["options"])
    return found


def _round_floats(value: Any) -> Any:
    """Round all floats to nine significant digits, more than any score has."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {key: _round_floats(inner) for key, inner in value.items()}
    return [_round_floats(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _describe_runs(entries: Mapping[str, Entry], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Dates, hardware, versions and threads of the stages that the results were computed from.

    Args:
        entries: the stages in the store.
        earlier: results of which cells were kept: theirs are in the list `kept`.
    """

    def distinct(values: list[Any]) -> list[Any]:
        found: list[Any] = []
        for value in values:
            if value not in found:
                found.append(value)
        return found

    ordered = sorted(entries.values(), key=lambda entry: (entry.finished, entry.key))
    return {
        "first": ordered[0].finished if ordered else None,
        "last": ordered[-1].finished if ordered else None,
        "stages": len(ordered),
        "seconds": round(sum(entry.seconds for entry in ordered), 3),
        "hardware": distinct([dict(entry.hardware) for entry in ordered]),
        "versions": distinct([dict(entry.versions) for entry in ordered]),
        "threads": sorted({entry.threads for entry in ordered if entry.threads is not None}),
        **({} if earlier is None else {"kept": _list_parts(earlier["made"])}),
    }


def _list_parts(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that earlier results came from, oldest first."""
    own = {key: value for key, value in made.items() if key != "kept"}
    return [*made.get("kept", ()), *([own] if own["stages"] else [])]
