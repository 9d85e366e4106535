"""The status of a plan in a store: keys of its stages, finished stages, failures. Does not import torch."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ExpungeError, FileError, StoreError
from expunge.core.files import PathLike
from expunge.core.registry import REGISTRIES, find_named_modules, find_strings, is_reference
from expunge.core.show import repr_fields
from expunge.core.trust import Trust, trusting
from expunge.experiments.config.plan import Plan
from expunge.experiments.forecast.history import Estimate
from expunge.experiments.stages.registry import Stage, load_stage_table
from expunge.experiments.store.code_hash import find_source_files, hash_source_files
from expunge.experiments.store.shared import open_store
from expunge.experiments.store.store import Entry, Ingredients, Store

from .forecast import Forecast, Forecaster
from .graph import Graph, Node, build_graph
from .progress import format_duration

#: Sections of a configuration that may name code. Those of records and parts of the split never do.
NAMING = ("model", "training", "sparsity", "method", "leakage", "evaluation", "memorised", "shadow_models")


class GraphState:
    """Keys and store entries of stages; code hashes, data fingerprints and entries are cached.

    Attributes:
        graph: the stages.
        store: where finished stages are.
        stages: the table of stages.
        trust: the code that the stages may name.
    """

    def __init__(self, graph: Graph, store: Store, stages: Mapping[str, Stage], trust: Trust) -> None:
        self.graph, self.store, self.stages, self.trust = graph, store, stages, trust
        self._done: dict[str, Entry] = {}
        self._keys: dict[str, Ingredients] = {}
        self._sources: dict[Any, dict[str, str]] = {}
        self._named: dict[str, set[str]] = {}
        self._texts: dict[str, frozenset[str]] = {}
        self._fingerprints: dict[str, str] = {}

    def ingredients(self, node: Node) -> Ingredients | None:
        """The ingredients of the node's key, or None while one of its inputs is not finished.

        Raises:
            ExpungeError: the data or a source file cannot be found.
        """
        if node.id in self._keys:
            return self._keys[node.id]
        inputs = {}
        for name, node_id in node.inputs.items():
            entry = self.entry(self.graph.nodes[node_id])
            if entry is None:
                return None
            inputs[name] = entry.output
        stage = self.stages[node.stage]
        found = Ingredients(
            stage.name,
            stage.version,
            self.hash_source(stage, node),
            node.config,
            inputs,
            self.fingerprint_data(stage, node),
        )
        self._keys[node.id] = found
        return found

    def entry(self, node: Node) -> Entry | None:
        """The store entry of the node, or None if it is not finished."""
        if node.id in self._done:
            return self._done[node.id]
        if self._has_no_store(node):
            return None
        ingredients = self.ingredients(node)
        if ingredients is None:
            return None
        entry = self.store.find(ingredients.stage, ingredients.key)
        if entry is not None:
            self._done[node.id] = entry
        return entry

    def reset(self) -> None:
        """Look all entries up again, because one was removed: its stage may give another output."""
        self._done.clear()
        self._keys.clear()

    def _has_no_store(self, node: Node) -> bool:
        """Whether the store does not exist: then the stage has not run, whatever its key is.

        False if custom code is named, whose file must be looked up.

        Raises:
            ExpungeError: the data cannot be found.
        """
        stage = self.stages[node.stage]
        if self.store.exists() or any(map(is_reference, self._find_texts(stage, node))):
            return False
        self.fingerprint_data(stage, node)
        return True

    def _find_texts(self, stage: Stage, node: Node) -> frozenset[str]:
        """The strings of a node's configuration, and of that of its model, that may name code."""
        if node.id not in self._texts:
            sections = {name: section for name, section in node.config.items() if name in NAMING}
            if stage.reads_data:  # other stages depend on the records, not on the code that reads them
                sections["data"] = node.config["data"]
            self._texts[node.id] = frozenset(find_strings([sections, node.named]))
        return self._texts[node.id]

    def hash_source(self, stage: Stage, node: Node) -> dict[str, str]:
        """Hash the code of a stage: what it imports, and what its configuration, or that of its model, names."""
        texts = self._find_texts(stage, node)
        key = (stage.module, stage.uses, node.kinds, "method" in node.config, texts)
        if key not in self._sources:
            self.store.load_facts()
            modules: set[str] = set()
            if "method" in node.config:
                modules.add("expunge.experiments.objects.method")
            for kind in (*stage.uses, *node.kinds):
                modules.update(REGISTRIES[kind].list_modules())
            found = hash_source_files([stage.module])
            with trusting(self.trust):
                for text in texts:
                    if text not in self._named:
                        self._named[text] = find_named_modules(text)
                    modules |= self._named[text]
                found |= hash_source_files(find_source_files(modules))
            self._sources[key] = dict(sorted(found.items()))
        return self._sources[key]

    def save_facts(self) -> None:
        """Keep the facts of the source files in the store, so that the next process need not parse them."""
        self.store.save_facts()

    def fingerprint_data(self, stage: Stage, node: Node) -> str | None:
        """Hash names, sizes and times of the data files, for a stage that reads them."""
        if not stage.reads_data:
            return None
        if node.id not in self._fingerprints:
            from expunge.data import source_fingerprint

            data = node.config["data"]
            with trusting(self.trust):
                self._fingerprints[node.id] = source_fingerprint(data["source"], node.data_dir, **data["options"])
        return self._fingerprints[node.id]


class PlanState(GraphState):
    """Keys and store entries of a plan's stages."""

    def __init__(
        self, plan: Plan, store: Store, stages: Mapping[str, Stage] | None = None, *, originals: bool = False
    ) -> None:
        self.plan = plan
        with trusting(plan.trust):
            graph = build_graph(plan.cells, originals=originals)
        super().__init__(graph, store, load_stage_table() if stages is None else stages, plan.trust)


@dataclasses.dataclass(frozen=True)
class PlanStatus:
    """Status of a plan.

    Attributes:
        name: of the plan.
        stages: stage name to the numbers of nodes that are done, running, failed, ready (their inputs are finished) and
            waiting.
        cells: number of finished cells, number of all cells.
        failures: label and message of failed stages.
        seconds: total duration of the finished stages.
        seconds_left: that of `forecast`.
        size: bytes of the store.
        results: whether the result file belongs to this version of the plan (None: there is none).
        forecast: time and memory of the stages that are left.
    """

    name: str
    stages: Mapping[str, Mapping[str, int]]
    cells: tuple[int, int]
    failures: tuple[tuple[str, str], ...]
    seconds: float
    seconds_left: float | None
    size: int
    results: bool | None
    forecast: Forecast

    __repr__ = repr_fields

    @property
    def finished(self) -> bool:
        return self.cells[0] == self.cells[1]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "finished": self.finished}

    def render(self) -> str:
        """The status as text."""
        lines = [f"plan {self.name}: {self.cells[0]} of {self.cells[1]} cells finished"]
        for stage, counts in self.stages.items():
            shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
            lines.append(f"  {stage:<14} {shown}")
        lines.append(f"  {format_duration(self.seconds)} spent, store {self.size / 2**20:.1f} MiB")
        if self.forecast.stages:
            lines += [f"  {line}" for line in self.forecast.render().splitlines()]
        lines += [f"  failed: {label}: {message}" for label, message in self.failures]
        texts = {None: "none yet", True: "up to date with the plan", False: "from another version of the plan"}
        lines.append(f"  result file: {texts[self.results]}")
        return "\n".join(lines)


def get_plan_status(
    plan: Plan, *, store: PathLike, workers: int = 1, stages: Mapping[str, str] | None = None
) -> PlanStatus:
    """Look up which stages and cells of a plan are finished in a store. Does not import torch.

    Args:
        plan: see `load_plan`.
        store: directory of finished stages; it need not exist.
        workers: number of processes for which the time that is left is forecast.
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`.

    >>> from pathlib import Path
    >>> from expunge.experiments import get_plan_status, load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}]}
    ... ''')
    >>> status = get_plan_status(load_plan("plan.yaml"), store="cache")
    >>> status.cells, status.stages["data"]["ready"], status.stages["forget"]["waiting"]
    ((0, 2), 1, 2)
    """
    return read_status(PlanState(plan, open_store(store), load_stage_table(stages)), workers)


def explain_plan(plan: Plan, *, store: PathLike, stages: Mapping[str, str] | None = None) -> list[str]:
    """Explain for every stage that is ready to run why it is not in the store.

    A stage is ready if its inputs are finished and it is not. The explanation is how its key differs from that of the
    most similar finished stage: configuration, source code, inputs or data files.

    Args:
        plan: see `load_plan`.
        store: directory of finished stages.
        stages: stages that take the place of built-in ones: name to registered name or `package.module:function`.

    Returns:
        One line per stage.

    >>> from pathlib import Path
    >>> from expunge.experiments import explain_plan, load_plan
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}]}
    ... ''')
    >>> explain_plan(load_plan("plan.yaml"), store="cache")
    ['data digits: no data stage has finished in this store yet']
    """
    state = PlanState(plan, open_store(store), load_stage_table(stages))
    lines = []
    for node in state.graph.nodes.values():
        if state.entry(node) is None:
            ingredients = state.ingredients(node)
            if ingredients is not None:
                lines.append(f"{node.title}: {'; '.join(state.store.explain(ingredients))}")
    return lines


def read_status(state: PlanState, workers: int = 1) -> PlanStatus:
    """Read the status of a plan from its store; the forecast is for so many workers."""
    counts: dict[str, Counter[str]] = {}
    failures = []
    for node in state.graph.nodes.values():
        status, message = _node_status(state, node)
        counts.setdefault(node.stage, Counter())[status] += 1
        if message is not None:
            failures.append((node.title, message))
    forecaster = make_forecaster(state, workers)
    forecast = forecaster.forecast(find_running(state))
    done = sum(entry_or_none(state, state.graph.nodes[chain["score"]]) is not None for chain in state.graph.cells)
    return PlanStatus(
        name=state.plan.name,
        stages={
            name: {k: counts[name][k] for k in ("done", "running", "failed", "ready", "waiting")} for name in counts
        },
        cells=(done, len(state.graph.cells)),
        failures=tuple(failures),
        seconds=forecaster.seconds,
        seconds_left=forecast.seconds,
        size=state.store.size(),
        results=_has_current_results(state.plan),
        forecast=forecast,
    )


def make_forecaster(state: PlanState, workers: int = 1, probes: Mapping[str, Estimate] | None = None) -> Forecaster:
    """A forecaster that knows the finished stages of a plan; see `forecast_plan`."""
    found = Forecaster(state.graph, state.store, workers=workers, probes=probes)
    for node in state.graph.nodes.values():
        entry = entry_or_none(state, node)
        if entry is not None:
            found.finish(node, entry)
    return found


def find_running(state: PlanState) -> dict[str, float]:
    """The stages that processes run now, and the seconds since each began."""
    found: dict[str, float] = {}
    if not state.store.exists():
        return found
    for node in state.graph.nodes.values():
        with contextlib.suppress(ExpungeError, OSError):
            ingredients = None if state.entry(node) is not None else state.ingredients(node)
            if ingredients is not None and state.store.is_locked(ingredients.key):
                begun = os.stat(state.store.work_directory(ingredients.key) / "run.json").st_mtime
                found[node.id] = max(0.0, time.time() - begun)
    return found


def _has_current_results(plan: Plan) -> bool | None:
    from expunge.experiments.results.files import read_results

    if not plan.results_path.exists():
        return None
    try:
        return bool(read_results(plan.results_path)["plan"]["hash"] == plan.hash)
    except FileError:  # damaged, or from another release: the next run replaces it
        return False


def _node_status(state: PlanState, node: Node) -> tuple[str, str | None]:
    """The status of a node, and the message if it failed."""
    try:
        if state.entry(node) is not None:
            return "done", None
        if not state.store.exists():
            return ("waiting" if node.inputs else "ready"), None
        ingredients = state.ingredients(node)
    except StoreError:
        raise
    except ExpungeError as error:
        return ("waiting", None) if node.inputs else ("failed", str(error))
    if ingredients is None:
        return "waiting", None
    if state.store.is_locked(ingredients.key):
        return "running", None
    message = state.store.read_failure(ingredients.key)
    return ("ready", None) if message is None else ("failed", message)


def entry_or_none(state: GraphState, node: Node) -> Entry | None:
    """The entry, or None if the stage is not finished or its data or source code cannot be found.

    Raises:
        StoreError: the store cannot be reached.
    """
    try:
        return state.entry(node)
    except StoreError:
        raise
    except ExpungeError:
        return None
