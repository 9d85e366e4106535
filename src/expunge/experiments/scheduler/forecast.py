"""Forecast of a plan: time and memory of the stages that are left, and when the last of them ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from expunge.core.errors import FileError
from expunge.core.files import read_json
from expunge.experiments.forecast.features import Features, describe_cost, join_sections
from expunge.experiments.forecast.history import Estimate, History, Sample
from expunge.experiments.forecast.result import Forecast, join_row
from expunge.experiments.forecast.schedule import find_end
from expunge.experiments.store.environment import count_cores, hardware
from expunge.experiments.store.store import Entry, Store

from .graph import Graph, Node
from .progress import PlanProgress

#: What a data stage says about the records.
DATA_FILE = "data.json"
#: Of each stage, so many of the newest entries of other plans are read from the store.
NEWEST = 200
#: The end of a plan is forecast again after this fraction of its stages, so that the work does not grow quadratically.
_AGAIN = 50


#: Seconds, low, high; number of stages of unknown duration.
_End = tuple[float | None, float | None, float | None, int]


class Forecaster:
    """Learns from the finished stages of a plan, and of the store, what the others will take."""

    def __init__(
        self, graph: Graph, store: Store, *, workers: int = 1, probes: Mapping[str, Estimate] | None = None
    ) -> None:
        """Nothing is finished yet.

        Args:
            graph: of the plan.
            store: its entries of other plans are read if those of this plan do not suffice.
            workers: number of processes.
            probes: estimates from a probe, by `Features.alike`.
        """
        self.graph, self.store, self.workers = graph, store, max(1, workers)
        self.pending: dict[str, Node] = dict(graph.nodes)
        self.failed: set[str] = set()
        self.seconds = 0.0
        threads = max(1, count_cores() // workers) if workers > 1 else None
        self.history = History(str(hardware()["processor"]), threads, probes)
        self.simulations = 0
        self._sections: dict[str, dict[str, Any]] = {}
        self._features: dict[str, Features] = {}
        self._records: dict[str, int] = {}
        self._own: set[str] = set()
        self._looked = False
        self._last: tuple[int, float, _End] | None = None

    def finish(self, node: Node, entry: Entry | None) -> None:
        """A stage has finished (entry None: and its entry has been removed since)."""
        self.pending.pop(node.id, None)
        if entry is None or entry.key in self._own:
            return
        if node.stage == "data":
            records = _read_records(self.store, entry)
            if records is not None:
                self._records[node.id] = records
                self._sections.clear()
                self._features.clear()
        self.seconds += entry.seconds
        self._own.add(entry.key)
        _add(self.history, self.features(node), entry)

    def fail(self, node: Node) -> None:
        """A stage failed, or needs one that failed."""
        if self.pending.pop(node.id, None) is not None:
            self.failed.add(node.id)

    def reopen(self, pending: Mapping[str, Node]) -> None:
        """These stages have to be looked at again, because an entry was removed."""
        self.pending = dict(pending)

    def features(self, node: Node) -> Features:
        """What the cost of a stage depends on."""
        if node.id not in self._features:
            names = tuple(node.inputs)
            self._features[node.id] = describe_cost(node.stage, self._join(node), names)
        return self._features[node.id]

    def _join(self, node: Node) -> dict[str, Any]:
        if node.id not in self._sections:
            inputs = {name: self._join(self.graph.nodes[below]) for name, below in node.inputs.items()}
            found = join_sections(node.config, inputs)
            if node.id in self._records:
                found["records"] = self._records[node.id]
            self._sections[node.id] = found
        return self._sections[node.id]

    def forecast(self, running: Mapping[str, float] | None = None) -> Forecast:
        """Forecast the stages that are left.

        Args:
            running: stages that run now: node id to the seconds since they began.
        """
        estimates = self._estimate()
        rows: dict[tuple[str, str], list[Estimate]] = {}
        for name, found in estimates.items():
            rows.setdefault((self.features(self.pending[name]).what, found.basis), []).append(found)
        left = dict(estimates)
        for name, spent in (running or {}).items():
            seconds = estimates[name].seconds if name in estimates else None
            if seconds is not None:
                left[name] = dataclasses.replace(estimates[name], seconds=max(0.0, seconds - spent))
        peaks = sorted((found.memory for found in estimates.values() if found.memory is not None), reverse=True)
        seconds, low, high, unknown = self._find_end(left)
        return Forecast(
            tuple(join_row(what, found) for (what, _), found in rows.items()),
            self.workers,
            seconds,
            low,
            high,
            unknown,
            sum(peaks[: self.workers]) if peaks else None,
        )

    def _estimate(self) -> dict[str, Estimate]:
        """The estimate of each stage that is left; those alike share one."""
        self._look_up()
        by_kind: dict[str, Estimate] = {}
        found: dict[str, Estimate] = {}
        for node in self.pending.values():
            features = self.features(node)
            if features.alike not in by_kind:
                by_kind[features.alike] = self.history.estimate(features)
            found[node.id] = by_kind[features.alike]
        return found

    def _find_end(self, left: Mapping[str, Estimate]) -> _End:
        """Seconds until all end, with their range, and the number of stages that are not in it."""
        self.simulations += 1
        unknown = sum(found.seconds is None for found in left.values())
        if unknown == len(left) > 0:
            return None, None, None, unknown
        inputs = {node.id: tuple(node.inputs.values()) for node in self.pending.values()}
        return *find_end(left, inputs, self.workers), unknown

    def progress(self, clock: Callable[[], float] = time.monotonic) -> PlanProgress:
        """Count the stages, and forecast the end: recomputed after each fiftieth of the stages, else by the time since.

        Args:
            clock: returns seconds.
        """
        total, now = len(self.graph.nodes), clock()
        finished = total - len(self.pending)
        if self._last is None or not self.pending or finished - self._last[0] >= max(1, total // _AGAIN):
            self._last = (finished, now, self._find_end(self._estimate()))
        _, since, (*end, unknown) = self._last
        left, low, high = (None if value is None else max(0.0, value - (now - since)) for value in end)
        failed = len(self.failed)
        return PlanProgress(finished - failed, failed, total, left, self.seconds, low, high, self.workers, unknown)

    def _look_up(self) -> None:
        """Read entries of other plans from the store, once, if stages are left of which none like it has finished."""
        if self._looked:
            return
        self._looked = True
        if any(not self.history.knows(self.features(node)) for node in self.pending.values()):
            stages = {node.stage for node in self.graph.nodes.values()}
            for features, entry in read_others(self.store, stages):
                if entry.key not in self._own:
                    _add(self.history, features, entry)


def read_others(store: Store, stages: Iterable[str]) -> Iterator[tuple[Features, Entry]]:
    """The newest entries of a store and what the cost of each depends on, whatever plan they are of."""
    entries = {stage: list(store.read_newest(stage, NEWEST)) for stage in stages}
    by_output = {entry.output: entry for found in entries.values() for entry in found}
    known: dict[str, dict[str, Any]] = {}

    def join(entry: Entry) -> dict[str, Any]:
        if entry.key not in known:
            before = {name: by_output.get(output) for name, output in entry.ingredients.inputs.items()}
            inputs = {name: None if other is None else join(other) for name, other in before.items()}
            found = join_sections(entry.ingredients.config, inputs)
            records = _read_records(store, entry) if entry.ingredients.stage == "data" else None
            known[entry.key] = {**found, **({} if records is None else {"records": records})}
        return known[entry.key]

    for stage, found in entries.items():
        for entry in found:
            yield describe_cost(stage, join(entry), tuple(entry.ingredients.inputs)), entry


def _read_records(store: Store, entry: Entry) -> int | None:
    """The number of records of a data stage."""
    try:
        if store.check_files(entry, [DATA_FILE]) is not None:  # of a store at a URL, it is here now
            return None
        return int(read_json(entry.path / DATA_FILE, "expunge.data", 1)["records"])
    except (FileError, KeyError, TypeError, ValueError):
        return None


def _add(history: History, features: Features, entry: Entry) -> None:
    """Add a finished stage; one that continued from a checkpoint took longer than its entry says."""
    if not entry.resumed:
        machine = str(entry.hardware.get("processor", ""))
        history.add(Sample(features, entry.seconds, entry.memory.get("resident"), machine, entry.threads, entry.first))
