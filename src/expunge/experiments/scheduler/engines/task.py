"""The task of an engine: run one stage in this process. Strings go in and out; files go through the store.

`run_stage` gets JSON text: the stage with its configuration, the address of the store, and hashes of the driver's code.
Results of earlier stages are found in the store by what their tasks returned.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ExpungeError, FileError, Interrupted, StoreError
from expunge.core.hashing import hash_json
from expunge.core.trust import Trust, trusting
from expunge.experiments.scheduler.graph import Graph, Node
from expunge.experiments.scheduler.loop import Damaged, Failed, attempt_stage, is_disk_full
from expunge.experiments.scheduler.progress import NullReporter
from expunge.experiments.scheduler.status import GraphState
from expunge.experiments.stages.registry import Stage, load_stage_table
from expunge.experiments.store.addresses import scrub
from expunge.experiments.store.environment import versions
from expunge.experiments.store.integrity import SMALL_BYTES
from expunge.experiments.store.shared import open_store
from expunge.experiments.store.store import Entry, Store

#: One stage at a time in a process: training sets generators and options of the whole process.
_ONE = threading.Lock()
#: How often a damaged entry is computed again.
_REPAIRS = 3


def run_stage(message: str, *results: str) -> str:
    """Run one stage, unless it is in the store.

    Args:
        message: JSON text of `describe_task`.
        results: what this function returned for the stages that it needs, in the order of the message's `needs`.

    Returns:
        JSON text with `id` and `state`: `done` (with `stage`, `key`, `output`, `seconds` and whether it was `computed`
        now), `failed`, `again` (a file of an input was damaged; its stage has to run again), `refused` (this process
        has other code or versions) or `stopped` (the store cannot be written).

    Raises:
        ConnectionError: the store could not be reached for now; another try may succeed.
    """
    body = json.loads(message)
    with _ONE:
        try:
            found = _run(body, [json.loads(result) for result in results])
        except StoreError as error:
            if error.transient:
                raise ConnectionError(scrub(error)) from None
            found = _stopped(error.what, error.where, error.hint)
        except FileError as error:
            found = _stopped(error.what, error.where, error.hint)
        except OSError as error:
            if not is_disk_full(error):
                raise ConnectionError(scrub(error)) from None
            found = _stopped("the disk is full", error.filename or body["store"], None)
        except Interrupted:
            raise KeyboardInterrupt from None
    return json.dumps({"id": body["node"]["id"], **found})


def describe_versions() -> dict[str, str]:
    """Versions that must be those of the driver: builds of one version (`2.13.0+cpu`) count as equal."""
    found = {name: version.partition("+")[0] for name, version in versions().items()}
    return {**found, "python": ".".join(platform.python_version_tuple()[:2])}


def _stopped(what: object, where: object, hint: object) -> dict[str, Any]:
    return {
        "state": "stopped",
        "message": scrub(what),
        "where": f"{scrub(where)} on {socket.gethostname()}",
        "hint": hint,
    }


@functools.lru_cache(maxsize=8)
def _open(address: str) -> Store:
    return open_store(address)


def _run(body: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    held = next((result for result in results if result["state"] != "done"), None)
    if held is not None:
        return {**held, "held": True}
    trust = Trust(tuple(body["trust"]["packages"]), tuple(body["trust"]["here"]), body["trust"]["folder"],
                  frozenset(body["trust"]["names"]))  # fmt: skip
    stages = load_stage_table(body["stages"])  # given by the caller of `run_plan`
    with trusting(trust):
        return _TaskRun(body, results, trust, stages).run()


class _TaskState(GraphState):
    """The state of one stage, whose inputs are given."""

    def __init__(self, node: Node, store: Store, stages: Mapping[str, Stage], trust: Trust) -> None:
        inputs = {node_id: Node(node_id, name, {}, {}, {}, (), None, name) for name, node_id in node.inputs.items()}
        super().__init__(Graph({**inputs, node.id: node}, ()), store, stages, trust)
        self._given: dict[str, Entry] = {}

    def give(self, node_id: str, entry: Entry) -> None:
        """Set the entry of an input."""
        self._given[node_id] = self._done[node_id] = entry

    def give_fingerprint(self, node: Node, fingerprint: str | None) -> None:
        """Set the driver's fingerprint of the data files: times of copies differ, and contents are compared later."""
        if fingerprint is not None:
            self._fingerprints[node.id] = fingerprint

    def reset(self) -> None:
        super().reset()
        self._done.update(self._given)


class _TaskRun:
    """One call of `run_stage` whose inputs are finished."""

    def __init__(
        self, body: Mapping[str, Any], results: Sequence[Mapping[str, Any]], trust: Trust, stages: Mapping[str, Stage]
    ) -> None:
        node = body["node"]
        self.node = Node(**{**node, "kinds": tuple(node["kinds"])})
        self.body = body
        self.places = {**body["finished"], **{result["id"]: result for result in results}}
        self.state = _TaskState(self.node, _open(body["store"]), stages, trust)
        self.state.give_fingerprint(self.node, body["fingerprint"])

    def run(self) -> dict[str, Any]:
        refused = self._compare()
        if refused is not None:
            return refused
        store = self.state.store
        for node_id in self.node.inputs.values():
            place = self.places[node_id]
            entry = store.find(place["stage"], place["key"])
            if entry is not None and entry.output != place["output"]:  # it was damaged, and computed again elsewhere
                store.forget()
                entry = store.find(place["stage"], place["key"])
            if entry is None:
                reason = store.damaged.get((place["stage"], place["key"]), "it is not in the store")
                return {"state": "again", "message": f"{place['stage']} {place['key'][:8]}: {reason}"}
            self.state.give(node_id, entry)
        with contextlib.suppress(ExpungeError):  # the attempt says what is wrong
            own = self.state.ingredients(self.node)
            if (
                own is not None
            ):  # the driver has not found it, so an earlier task of this process may know a removed one
                store.forget(own.stage, own.key)
        found = self._attempt()
        store.save_facts()
        return found

    def _compare(self) -> dict[str, Any] | None:
        """Compare versions and code with those of the driver; what differs, or None."""
        own = describe_versions()
        here = {"state": "refused", "host": socket.gethostname(), "versions": own}
        if own != self.body["versions"]:
            return here
        try:
            source = self.state.hash_source(self.state.stages[self.node.stage], self.node)
        except ExpungeError as error:
            return {**here, "message": str(error)}
        return None if hash_json(source) == self.body["source"] else {**here, "source": source}

    def _attempt(self) -> dict[str, Any]:
        repairs = 0
        while True:
            try:
                done = attempt_stage(
                    self.state, self.node, NullReporter(), time.time(), None, keep_going=True, check_bytes=SMALL_BYTES
                )
            except Damaged as damage:
                again = self._repair(damage)
                if again is not None:
                    return again
                repairs += 1
                if repairs > _REPAIRS:
                    return {"state": "failed", "message": f"its entry was damaged again and again ({damage.what})"}
                continue
            if isinstance(done, Failed):
                return {"state": "failed", "message": done.message}
            entry = None if done is None else self.state.entry(self.node)
            if done is not None and entry is not None:
                body = {"stage": self.node.stage, "key": entry.key, "output": entry.output, "seconds": entry.seconds}
                return {"state": "done", "computed": bool(done.event), **body}
            time.sleep(0.2)  # another process that shares the folder runs it

    def _repair(self, damage: Damaged) -> dict[str, Any] | None:
        """Remove what is damaged; the result of this task if that is an input."""
        own = self.state.ingredients(self.node)
        if damage.entry is not None:
            self.state.store.discard(damage.entry, damage.what)
        self.state.reset()
        if damage.entry is None or (own is not None and damage.entry.key == own.key):
            return None
        return {"state": "again", "message": f"{damage.entry.ingredients.stage} {damage.entry.key[:8]}: {damage.what}"}
