"""Watch a store while other processes run the stages of a plan."""

from __future__ import annotations

from expunge.core.errors import ExpungeError, StoreError
from expunge.experiments.store.store import Entry

from .graph import Node
from .status import PlanState


class Watcher:
    """Finds the stages that have finished or failed since it looked last.

    A look lists the entries and failures of the store once, and reads only what is new in them: its work does not grow
    with the number of stages that have finished before.

    Attributes:
        pending: the stages that have neither finished nor failed.
        failed: node id to the message of the failure, also of the stages that need a failed one.
        checked: number of stages whose entry or failure was looked up.
    """

    def __init__(self, state: PlanState, since: float) -> None:
        """Nothing has finished yet.

        Args:
            state: the plan and its store.
            since: earlier failures are ignored (seconds since 1970).
        """
        self.state, self.since = state, since
        self.pending: dict[str, Node] = dict(state.graph.nodes)
        self.failed: dict[str, str] = {}
        self.checked = 0
        self._followers: dict[str, list[Node]] = {}
        self._waits: dict[str, int] = {}
        for node in self.pending.values():
            inputs = set(node.inputs.values())
            self._waits[node.id] = len(inputs)
            for needed in inputs:
                self._followers.setdefault(needed, []).append(node)
        self._ready: dict[str, Node] = {name: node for name, node in self.pending.items() if not self._waits[name]}
        self._keys: dict[str, str] = {}

    def look(self) -> list[tuple[Node, Entry | None, str]]:
        """The stages that have finished (with their entries) or failed (with the message) since the last look."""
        found: list[tuple[Node, Entry | None, str]] = []
        store = self.state.store
        entries = {stage: store.list_keys(stage) for stage in {node.stage for node in self._ready.values()}}
        failures = store.list_failures()
        todo = list(self._ready.values())
        for node in todo:  # it grows
            if node.stage not in entries:
                entries[node.stage] = store.list_keys(node.stage)
            try:
                entry = self._find(node, entries[node.stage])
            except StoreError:
                raise
            except ExpungeError as error:
                self._fail(node, str(error), found)
                continue
            if entry is not None:
                found.append((node, entry, ""))
                del self.pending[node.id], self._ready[node.id]
                for follower in self._followers.get(node.id, ()):
                    self._waits[follower.id] -= 1
                    if not self._waits[follower.id] and follower.id in self.pending:
                        self._ready[follower.id] = follower
                        todo.append(follower)
            elif self._keys[node.id] in failures:
                self.checked += 1
                message = self.state.store.read_failure(self._keys[node.id], self.since)
                if message is not None:
                    self._fail(node, message, found)
        return found

    def _find(self, node: Node, names: set[str]) -> Entry | None:
        if node.id not in self._keys:
            ingredients = self.state.ingredients(node)
            assert ingredients is not None  # its inputs are finished
            self._keys[node.id] = ingredients.key
        if self._keys[node.id] not in names:
            return None
        self.checked += 1
        return self.state.entry(node)

    def _fail(self, node: Node, message: str, found: list[tuple[Node, Entry | None, str]]) -> None:
        """The stage and all that need it have failed."""
        todo = [node]
        while todo:
            node = todo.pop()
            if node.id in self.failed:
                continue
            self.failed[node.id] = message
            self.pending.pop(node.id, None)
            self._ready.pop(node.id, None)
            found.append((node, None, message))
            todo.extend(self._followers.get(node.id, ()))
