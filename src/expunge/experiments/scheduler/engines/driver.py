"""Give the pending stages of a plan to an engine, and keep account of what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from expunge.core.errors import ExpungeError, StoreError
from expunge.core.hashing import hash_json
from expunge.experiments.scheduler.collect import discard_damaged
from expunge.experiments.scheduler.forecast import Forecaster
from expunge.experiments.scheduler.graph import Node
from expunge.experiments.scheduler.progress import Reporter, format_duration, wants_progress
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.addresses import scrub

from .base import Engine, EngineError, Finished, Task
from .task import describe_versions

#: How often stages are submitted again because an entry was damaged.
_ROUNDS = 4


def run_on_engine(state: PlanState, reporter: Reporter, engine: Engine, stages: Mapping[str, str]) -> dict[str, str]:
    """Run the stages of a plan that are not in the store on an engine.

    An entry that a task found damaged was removed; its stage, and those that waited for it, are submitted again.

    Args:
        state: the plan and its store.
        reporter: receives the progress.
        engine: runs the tasks.
        stages: see `run_plan`.

    Returns:
        Node id to the message of the failure, for every stage that failed or needs one that failed.

    Raises:
        EngineError: the engine cannot be reached, or a worker has other code or versions than this process.
        StoreError: the store cannot be written, or the workers write to another one.
    """
    failed: dict[str, str] = {}
    for _ in range(_ROUNDS):
        state.store.forget()
        state.reset()
        pending = _find_pending(state, reporter, failed)
        if not pending:
            return failed
        _Round(state, reporter, engine, stages, pending, failed).run()
    raise StoreError(
        f"{len(pending)} stages were damaged again after they had run again", where=state.store.address,
        hint="check the disk, or the service, of the store",
    )  # fmt: skip


def _find_pending(state: PlanState, reporter: Reporter, failed: dict[str, str]) -> list[Node]:
    """The stages without an entry; damaged entries are removed."""
    for node, damage in discard_damaged(state):
        reporter.log(f"{node.title}: its stored result was damaged ({damage}); it is computed again")
    pending: dict[str, Node] = {}
    for node in state.graph.nodes.values():
        blocked = next((failed[i] for i in node.inputs.values() if i in failed), None)
        if blocked is not None:
            failed[node.id] = blocked
        if node.id in failed:
            continue
        try:
            entry = None if any(i in pending for i in node.inputs.values()) else state.entry(node)
        except StoreError:
            raise
        except ExpungeError as error:
            failed[node.id] = str(error)
            reporter.log(f"{node.title}: FAILED: {error}")
            continue
        if entry is None:
            pending[node.id] = node
    return list(pending.values())


class _Round:
    """One submission of all pending stages."""

    def __init__(
        self,
        state: PlanState,
        reporter: Reporter,
        engine: Engine,
        stages: Mapping[str, str],
        pending: list[Node],
        failed: dict[str, str],
    ) -> None:
        self.state, self.reporter, self.engine, self.stages, self.failed = state, reporter, engine, stages, failed
        self.nodes = {node.id: node for node in pending}
        self.forecaster = Forecaster(state.graph, state.store) if wants_progress(reporter) else None
        self.places: dict[str, Mapping[str, Any]] = {}
        self.again = False
        for node in state.graph.nodes.values():
            if node.id in failed and self.forecaster is not None:
                self.forecaster.fail(node)
            entry = None if node.id in self.nodes or node.id in failed else state.entry(node)
            if entry is not None:
                self.places[node.id] = {"stage": node.stage, "key": entry.key, "output": entry.output}
                if self.forecaster is not None:
                    self.forecaster.finish(node, entry)

    def run(self) -> None:
        """Submit the stages and follow them to their end."""
        tasks = list(self._make_tasks())
        finished = self.engine.execute(tasks)
        try:
            for task in finished:
                self._account(task)
                self._update()
        finally:
            close = getattr(finished, "close", None)
            if close is not None:
                close()
        self.state.store.forget()
        self.state.reset()
        if not self.again:
            self._check_shared()

    def _make_tasks(self) -> Iterator[Task]:
        trust = dataclasses.asdict(self.state.trust)
        common = {
            "store": self.state.store.address,
            "stages": dict(self.stages),
            "trust": {**trust, "names": sorted(trust["names"])},
            "versions": describe_versions(),
        }
        digests: dict[int, str] = {}
        for order, node in enumerate(self.nodes.values()):
            blocked = next((self.failed[i] for i in node.inputs.values() if i in self.failed), None)
            if blocked is not None:
                self._fail(node, blocked, log=False)
                continue
            stage = self.state.stages[node.stage]
            try:
                source = self.state.hash_source(stage, node)
                fingerprint = self.state.fingerprint_data(stage, node)
            except StoreError:
                raise
            except ExpungeError as error:
                self._fail(node, str(error))
                continue
            if id(source) not in digests:
                digests[id(source)] = hash_json(source)  # nodes share these mappings
            needs = tuple(dict.fromkeys(i for i in node.inputs.values() if i in self.nodes))
            described = {**dataclasses.asdict(node), "data_dir": _absolute(node.data_dir)}
            message = {
                **common,
                "node": described,
                "finished": {i: self.places[i] for i in node.inputs.values() if i in self.places},
                "fingerprint": fingerprint,
                "source": digests[id(source)],
            }
            resources = self.state.plan.resources.get(node.stage, {})
            yield Task(node.id, node.title, json.dumps(message), needs, order, resources)

    def _account(self, task: Finished) -> None:
        node = self.nodes[task.id]
        if task.error:
            self._give_up(node, scrub(task.error))
            return
        result = json.loads(task.result)
        state, message = result["state"], str(result.get("message", ""))
        if state == "done":
            self.places[node.id] = result
            self._learn(node, str(result["key"]))
            if result["computed"]:
                self.reporter.log(f"{node.title}: {format_duration(float(result['seconds']))}")
        elif state == "failed":
            self._fail(node, message, log=not result.get("held"))
        elif state == "again":
            self.again = True
            if not result.get("held"):
                self.reporter.log(f"{node.title}: a stored input was damaged ({message}); it is computed again")
        elif state == "refused":
            raise self._refuse(node, result)
        else:
            raise StoreError(message, where=result["where"], hint=result.get("hint"))

    def _give_up(self, node: Node, error: str) -> None:
        """The engine has no result: workers ended again and again, or the code could not be run at all."""
        blocked = next((self.failed[i] for i in node.inputs.values() if i in self.failed), None)
        message = f"{self.engine.name} gave up: {error}"
        if blocked is None:
            ingredients = self.state.ingredients(node)
            if ingredients is not None:
                self.state.store.record_failure(ingredients.key, node.title, message, None)
        self._fail(node, blocked or message, log=blocked is None)

    def _fail(self, node: Node, message: str, *, log: bool = True) -> None:
        self.failed[node.id] = message
        if self.forecaster is not None:
            self.forecaster.fail(node)
        if log:
            self.reporter.log(f"{node.title}: FAILED: {message}")

    def _learn(self, node: Node, key: str) -> None:
        """Tell the forecast what a finished stage took."""
        if self.forecaster is not None:
            entry = None
            with contextlib.suppress(StoreError):  # `_check_shared` looks again
                entry = self.state.store.find(node.stage, key)
            self.forecaster.finish(node, entry)

    def _update(self) -> None:
        if self.forecaster is not None:
            self.forecaster.workers = max(1, self.engine.count_workers())
            self.reporter.update(self.forecaster.progress())

    def _refuse(self, node: Node, result: Mapping[str, Any]) -> EngineError:
        """The error of a worker with other code or versions; it names both."""
        own, theirs = describe_versions(), result["versions"]
        names = [name for name in sorted({*own, *theirs}) if own.get(name) != theirs.get(name)]
        pairs = [f"{name} {theirs.get(name, 'absent')} (here {own.get(name, 'absent')})" for name in names]
        if "source" in result:
            found = self.state.hash_source(self.state.stages[node.stage], node)
            modules = [m for m in sorted({*found, *result["source"]}) if found.get(m) != result["source"].get(m)]
            for module in modules[:5]:
                there, here = (str(source.get(module, "absent"))[:8] for source in (result["source"], found))
                pairs.append(f"{module} {there} (here {here})")
            if len(modules) > 5:
                pairs.append(f"{len(modules) - 5} more modules")
        return EngineError(
            f"a worker on {result['host']} has another version: {', '.join(pairs) or result.get('message')}",
            where=self.engine.name,
            hint="install the same versions, and the same code, on all workers; custom modules too",
        )

    def _check_shared(self) -> None:
        """Raise if what the workers have finished is not in the store that this process reads."""
        for node in self.nodes.values():
            place = self.places.get(node.id)
            if place is None or node.id in self.failed:
                continue
            if self.state.store.find(node.stage, place["key"]) is None:
                if (node.stage, place["key"]) in self.state.store.damaged:
                    continue  # the next round computes it again
                raise StoreError(
                    f"{node.title} is finished, and its result is not in this store", where=self.state.store.address,
                    hint="this process and the workers must see one store: a folder that all of them share, or a URL",
                )  # fmt: skip


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)
