"""Estimates for the stages of a run or a plan from timed batches, for stages of which none similar has finished."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError
from expunge.core.files import PathLike
from expunge.core.hashing import hash_json
from expunge.core.registry.custom_code import find_custom_code
from expunge.core.trust import trusting
from expunge.experiments.config.plan import Plan
from expunge.experiments.config.registry_checks import make_checked_method, make_checked_pruning
from expunge.experiments.config.run_config import RunConfig
from expunge.experiments.forecast.history import PROBE, Estimate
from expunge.experiments.forecast.result import Forecast
from expunge.experiments.objects.training import make_recipe
from expunge.experiments.scheduler.forecast import Forecaster
from expunge.experiments.scheduler.graph import Graph
from expunge.experiments.scheduler.status import make_forecaster
from expunge.workflow.inputs import expect_original, read_declared_stand_in, read_model, read_planted, read_request
from expunge.workflow.run_stages import open_state

from .run import RunParts, measure_run

if TYPE_CHECKING:
    from .probe import Probe

#: Networks and data of a plan that are probed, at most; each takes the time to read the data, and a few seconds.
MOST_PROBES = 4
#: Sections of a configuration that decide how long a batch takes.
_BATCH = ("data", "split", "model", "training", "runtime")


def probe_plan(plan: Plan, *, store: PathLike, most: int = MOST_PROBES) -> dict[str, Estimate]:
    """Estimate stages of a plan of which none alike has finished, by timing a few batches of each of its networks.

    Training and methods are estimated from the records that they read, and scores from their predictions alone, so
    theirs are lower bounds. Pruning, ensembles and leakage are not estimated.

    Args:
        plan: see `load_plan`. Code that it names is run if its trust allows it.
        store: directory of finished stages; it need not exist.
        most: combinations of data, network and recipe that are timed; the cells of the others get no estimate.

    Returns:
        The estimates, for `forecast_plan(probes=...)`. Cells whose configuration is wrong get none.

    >>> from pathlib import Path
    >>> from expunge.experiments import forecast_plan, load_plan
    >>> from expunge.workflow import probe_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}]}
    ... ''')
    >>> plan = load_plan("plan.yaml", ["runtime.device=cpu"])
    >>> forecast = forecast_plan(plan, store="cache", probes=probe_plan(plan, store="cache"))
    >>> forecast.unknown, forecast.seconds > 0, forecast.stages[0].basis
    (0, True, 'from reading the records once')
    """
    state = open_state(plan, store, originals=False)
    forecaster = make_forecaster(state)
    groups: dict[str, list[int]] = {}
    for index, cell in enumerate(plan.cells):
        nodes = [state.graph.nodes[i] for i in state.graph.cells[index].values()]
        if any(
            node.id in forecaster.pending and not forecaster.history.knows(forecaster.features(node)) for node in nodes
        ):
            body = cell.config.model_dump(mode="json")
            groups.setdefault(hash_json([{**body["split"], "seed": 0}, *(body[name] for name in _BATCH)]), []).append(
                index
            )
    found: dict[str, Estimate] = {}
    for cells in list(groups.values())[:most]:
        with trusting(plan.trust):
            try:
                found |= _probe_cells({index: plan.cells[index].config for index in cells}, state.graph, forecaster)
            except ExpungeError:  # the check of the plan names it
                continue
            except Exception as error:
                if find_custom_code(error) is None:
                    raise
    return found


def _probe_cells(configs: Mapping[int, RunConfig], graph: Graph, forecaster: Forecaster) -> dict[str, Estimate]:
    """Estimates for cells with one network and one data set, by what their cost depends on."""
    first = next(iter(configs.values()))
    began = time.perf_counter()
    records, split = read_planted(first)
    reading = time.perf_counter() - began
    network = read_model(first, records, split)
    probe: Probe | None = None
    found: dict[str, Estimate] = {}
    requests: dict[str, Any] = {}
    for index, config in configs.items():
        nodes = {stage: graph.nodes[node_id] for stage, node_id in graph.cells[index].items()}
        alike = {stage: forecaster.features(node).alike for stage, node in nodes.items()}
        if config.forget is None or all(name in found for name in alike.values()):
            continue
        try:
            key = hash_json(config.forget.model_dump(mode="json"))
            if key not in requests:
                requests[key] = read_request(config, records, split)
            recipe = make_recipe(config.training.model_dump(mode="json"))
            pruning = None if config.sparsity is None else make_checked_pruning(config, recipe)
            parts = RunParts(records, split, requests[key], network, pruning)
            probe = probe or measure_run(config, parts)
            by_stage = estimate_stages(config, parts, probe, drop_unused=True)
        except ExpungeError:
            continue
        by_stage["data"] = Estimate(reading, 0.1, PROBE, basis="from reading the records once", group="data")
        for stage, name in alike.items():
            if stage in by_stage:
                found.setdefault(name, by_stage[stage])
    return found


def estimate_stages(
    config: RunConfig, parts: RunParts, probe: Probe, *, drop_unused: bool = False
) -> dict[str, Estimate]:
    """Estimate the stages of one configuration from timed batches; stage to estimate.

    Args:
        config: the configuration.
        parts: its objects.
        probe: timed batches of its network.
        drop_unused: see `make_checked_method`.
    """
    from expunge.methods.reads import Sizes

    recipe = make_recipe(config.training.model_dump(mode="json"))
    split, request = parts.split, parts.request
    validated = len(split.validation) * (recipe.select == "best")
    basis = f"from a probe of {probe.seconds:.2g} s"
    whole = Estimate(None, 0.1, PROBE, probe.resident, basis, "probe")
    seconds = {"train": probe.estimate(recipe.epochs * len(split.train), recipe.epochs * validated)}
    if config.model.weights is not None:
        del seconds["train"]
    predicted = len(split.train) + len(split.test) + len(split.non_members)
    lower = dataclasses.replace(whole, error=2 * PROBE, basis=f"{basis}, predictions only: a lower bound")
    found = {name: dataclasses.replace(whole, seconds=value) for name, value in seconds.items()}
    for stage in ("score", "score_original"):
        found[stage] = dataclasses.replace(lower, seconds=probe.estimate(0, predicted))
    if config.method is not None:
        after = request.apply(split)
        stand_in = read_declared_stand_in(config, parts.records, split, request)
        retain = len(after.retain) if stand_in is None else len(stand_in.record_ids)
        sizes = Sizes(retain, len(request.record_ids), len(after.validation), parts.records.classes)
        trained = expect_original(config, parts.pruning, parts.model, parts.records, split)
        reads = make_checked_method(config, drop_unused=drop_unused).estimate_reads(trained, sizes)
        if reads is not None:
            found["forget"] = dataclasses.replace(whole, seconds=probe.estimate(reads.trained, reads.forward))
    return found


def forecast_run(config: RunConfig, parts: RunParts, probe: Probe | None, store: PathLike) -> Forecast:
    """The forecast of the stages of one configuration, as `expunge forget` would run them."""
    from expunge.workflow.forget import make_plan

    state = open_state(make_plan(config), store, originals=config.method is not None and config.forget is not None)
    forecaster = make_forecaster(state)
    probes: dict[str, Estimate] = {}
    for cell, chain in zip(state.plan.cells, state.graph.cells, strict=True):
        by_stage = {} if probe is None else estimate_stages(cell.config, parts, probe)
        for stage, node_id in chain.items():
            if stage in by_stage:
                probes.setdefault(forecaster.features(state.graph.nodes[node_id]).alike, by_stage[stage])
    return make_forecaster(state, probes=probes).forecast()
