"""Where a plan stands in a store: keys of its stages, what is finished, what failed. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ExpungeError, FileError
from expunge.core.trust import trusting
from expunge.experiments.config.plan import Plan
from expunge.experiments.stages.registry import STAGES, Stage
from expunge.experiments.store.code_hash import registered_module, source_files
from expunge.experiments.store.store import Entry, Ingredients, Store

from .graph import Graph, Node, build_graph
from .progress import duration, estimate_left


class PlanState:
    """Keys and entries of a plan's stages; source, data fingerprints and finished stages are looked up once."""

    def __init__(
        self, plan: Plan, store: Store, stages: Mapping[str, Stage] = STAGES, *, graph: Graph | None = None
    ) -> None:
        self.plan, self.store, self.stages = plan, store, stages
        self.graph = build_graph(plan) if graph is None else graph
        self._done: dict[str, Entry] = {}
        self._keys: dict[str, Ingredients] = {}
        self._sources: dict[Any, dict[str, str]] = {}
        self._fingerprints: dict[str, str] = {}

    def ingredients(self, node: Node) -> Ingredients | None:
        """What decides the node's key, or None while one of its inputs is not finished.

        Raises:
            ExpungeError: the data or a source file cannot be found.
        """
        if node.id in self._keys:
            return self._keys[node.id]
        inputs = {}
        for name, below in node.inputs.items():
            entry = self.entry(self.graph.nodes[below])
            if entry is None:
                return None
            inputs[name] = entry.output
        stage = self.stages[node.stage]
        found = Ingredients(
            stage.name, stage.version, self._source(stage, node), node.config, inputs, self._fingerprint(stage, node)
        )
        self._keys[node.id] = found
        return found

    def entry(self, node: Node) -> Entry | None:
        """The finished stage, or None."""
        if node.id in self._done:
            return self._done[node.id]
        ingredients = self.ingredients(node)
        if ingredients is None:
            return None
        entry = self.store.find(ingredients.stage, ingredients.key)
        if entry is not None:
            self._done[node.id] = entry
        return entry

    def _source(self, stage: Stage, node: Node) -> dict[str, str]:
        key = (stage.module, node.reach)
        if key not in self._sources:
            modules = [stage.module, *(registered_module(room, name) for room, name in node.reach)]
            with trusting(self.plan.trust):
                self._sources[key] = source_files(modules)
        return self._sources[key]

    def _fingerprint(self, stage: Stage, node: Node) -> str | None:
        if not stage.reads_data:
            return None
        if node.id not in self._fingerprints:
            from expunge.data import source_fingerprint

            data = node.config["data"]
            with trusting(self.plan.trust):
                self._fingerprints[node.id] = source_fingerprint(data["source"], node.data_dir, **data["options"])
        return self._fingerprints[node.id]


@dataclasses.dataclass(frozen=True)
class PlanStatus:
    """Where a plan stands.

    Attributes:
        name: of the plan.
        stages: for every stage, how many are done, running, failed, ready (inputs are there) and waiting.
        cells: cells that are finished, and all.
        failures: label and message of what failed.
        seconds: what the finished stages took, added up.
        seconds_left: estimate for one worker, or None.
        size: bytes of the store.
        results: whether the result file beside the plan is of this version of the plan (None: there is none).
    """

    name: str
    stages: Mapping[str, Mapping[str, int]]
    cells: tuple[int, int]
    failures: tuple[tuple[str, str], ...]
    seconds: float
    seconds_left: float | None
    size: int
    results: bool | None

    @property
    def finished(self) -> bool:
        return self.cells[0] == self.cells[1]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "finished": self.finished}

    def render(self) -> str:
        """A text for people."""
        lines = [f"plan {self.name}: {self.cells[0]} of {self.cells[1]} cells finished"]
        for stage, counts in self.stages.items():
            shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            lines.append(f"  {stage:<7} {shown}")
        lines.append(f"  {duration(self.seconds)} spent, store {self.size / 2**20:.1f} MiB")
        if self.seconds_left:
            lines.append(f"  about {duration(self.seconds_left)} left with one worker")
        lines += [f"  failed: {label}: {message}" for label, message in self.failures]
        texts = {None: "none yet", True: "up to date with the plan", False: "of another version of the plan"}
        lines.append(f"  result file: {texts[self.results]}")
        return "\n".join(lines)


def status_of(state: PlanState) -> PlanStatus:
    """Look at the store."""
    counts: dict[str, Counter[str]] = {}
    seconds: dict[str, list[float]] = {}
    failures = []
    for node in state.graph.nodes.values():
        kind, message = _kind(state, node)
        counts.setdefault(node.stage, Counter())[kind] += 1
        if kind == "done":
            entry = state.entry(node)
            assert entry is not None
            seconds.setdefault(kind_of(node), []).append(entry.seconds)
        if message is not None:
            failures.append((f"{node.stage} {node.label}", message))
    left = Counter(kind_of(n) for n in state.graph.nodes.values() if safe_entry(state, n) is None)
    done = sum(safe_entry(state, state.graph.nodes[chain["score"]]) is not None for chain in state.graph.cells)
    order = [name for name in state.stages if name in counts]
    return PlanStatus(
        name=state.plan.name,
        stages={
            name: {k: counts[name][k] for k in ("done", "running", "failed", "ready", "waiting")} for name in order
        },
        cells=(done, len(state.graph.cells)),
        failures=tuple(failures),
        seconds=sum(sum(values) for values in seconds.values()),
        seconds_left=estimate_left(left, seconds, 1),
        size=state.store.size(),
        results=_results_fit(state.plan),
    )


def _results_fit(plan: Plan) -> bool | None:
    from expunge.experiments.results.files import read_results

    if not plan.results_path.exists():
        return None
    try:
        return bool(read_results(plan.results_path)["plan"]["hash"] == plan.hash)
    except FileError:  # damaged, or of another release: the next run writes it anew
        return False


def _kind(state: PlanState, node: Node) -> tuple[str, str | None]:
    try:
        if state.entry(node) is not None:
            return "done", None
        ingredients = state.ingredients(node)
    except ExpungeError as error:
        first = not node.inputs
        return ("failed", str(error)) if first else ("waiting", None)
    if ingredients is None:
        return "waiting", None
    if state.store.is_locked(ingredients.key):
        return "running", None
    message = state.store.failure(ingredients.key)
    return ("ready", None) if message is None else ("failed", message)


def safe_entry(state: PlanState, node: Node) -> Entry | None:
    """The entry, or None also where data or source cannot be found."""
    try:
        return state.entry(node)
    except ExpungeError:
        return None


def kind_of(node: Node) -> str:
    """What nodes of about the same cost have in common: the stage, the model, and for `forget` the method."""
    model = next((name for room, name in node.reach if room == "models"), "")
    method = next((name for room, name in node.reach if room == "methods"), "")
    return f"{node.stage}/{model}/{method}"
