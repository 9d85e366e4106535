"""The artefacts of a store that saw given records: entries, checkpoints, leftovers, failures, logs,
indexes of data.

An entry is judged by its own files first. What records nothing about records is judged by its inputs: the store's
entries name the outputs of the stages that they were made from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import FileError
from expunge.experiments.store.store import Store, read_entry

from .artefacts import Artefact
from .evidence import Wanted, find_named, judge_directory, measure, read_body
from .index_search import search_index

#: What is made from these is not influenced by them beyond what their own files say: they hold hashes and counts.
_WITHOUT_INFLUENCE = ("data",)
#: The suffix of an entry that is being deleted; an interrupted deletion leaves it, and the next one finishes.
PURGED = ".purged"


@dataclasses.dataclass
class _Place:
    """A directory of the store that holds, or held, the results or the checkpoints of one stage."""

    path: Path
    kind: str
    key: str
    stage: str
    inputs: Mapping[str, str]
    output: str
    found: tuple[str, str, int] | None
    readable: bool = True
    depth: int = 0


def search_store(store: Store, wanted: Wanted) -> tuple[list[Artefact], int]:
    """Find the artefacts of a store that saw the records.

    Args:
        store: the store.
        wanted: the records.

    Returns:
        The artefacts, those that were made from others first, so that what remains of an interrupted deletion can
        still be judged; and the number of places that were looked at.
    """
    places = _list_places(store, wanted)
    _derive(places)
    judged = sorted((place for place in places if place.found is not None), key=lambda place: -place.depth)
    found = [_describe(place) for place in judged]
    others = [*_files(store.root / "failures", "*.json"), *_files(store.root / "logs", "*")]
    for path in others:
        named = find_named(path, wanted)
        if named is None or named:
            status, reason = ("names", f"names {len(named)} of them") if named else ("unknown", "cannot be read")
            kind = "failure" if path.parent.name == "failures" else "log"
            key = path.stem if kind == "failure" else ""
            action = "delete" if named else "keep"
            found.append(Artefact(str(path), kind, status, reason, len(named or ()), measure(path), key, action))
    indexes, looked = search_index(store.index_path, wanted)
    return [*found, *indexes], len(places) + len(others) + looked


def _files(directory: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(directory.glob(pattern)) if path.is_file() and not path.is_symlink()]


def _list_places(store: Store, wanted: Wanted) -> list[_Place]:
    places = []
    for directory in sorted(store.root.glob("entries/*/*")):
        stage, name = directory.parent.name, directory.name
        if directory.is_symlink() or directory.parent.is_symlink():
            reason = "unknown", "a symbolic link, which is not followed", 0
            places.append(_Place(directory, f"store entry {stage}", "", stage, {}, "", reason, readable=False))
            continue
        if not directory.is_dir():
            continue
        if name.startswith("."):
            places.append(_read_leftover(store, directory, wanted))
            continue
        places.append(_read_entry(directory, stage, name, wanted))
    work = [path for path in sorted(store.root.glob("work/*")) if path.is_dir() and not path.is_symlink()]
    return [*places, *(_read_work(directory, "checkpoint", directory.name, wanted) for directory in work)]


def _read_entry(directory: Path, stage: str, key: str, wanted: Wanted) -> _Place:
    found = judge_directory(directory, wanted)
    try:
        entry = read_entry(directory / "entry.json")
    except FileError:
        if found is None:
            found = "unknown", "its entry.json is damaged, so it is not known what it was made from", 0
        return _Place(directory, f"store entry {stage}", key, stage, {}, "", found, readable=False)
    return _Place(
        directory, f"store entry {stage}", key, stage, entry.ingredients.inputs, entry.output, found
    )  # fmt: skip


def _read_work(directory: Path, kind: str, key: str, wanted: Wanted) -> _Place:
    """A directory of checkpoints: what its run.json and split.json say."""
    body = read_body(directory / "run.json")
    ingredients: Any = body.get("ingredients")
    found = judge_directory(directory, wanted)
    if not isinstance(ingredients, dict) or not isinstance(ingredients.get("inputs"), dict):
        if found is None:
            found = "unknown", "an interrupted run that does not record its inputs", 0
        return _Place(directory, kind, key, "", {}, "", found, readable=False)
    return _Place(directory, kind, key, str(ingredients.get("stage")), ingredients["inputs"], "", found)


def _read_leftover(store: Store, directory: Path, wanted: Wanted) -> _Place:
    """What a process left that was killed while it wrote an entry, or deleted one."""
    key = directory.name.lstrip(".").partition(".")[0]
    stage = directory.parent.name
    if directory.name.endswith(PURGED):
        found = "derived", "an earlier purge was interrupted while it deleted it", 0
        return _Place(directory, "leftover", key, stage, {}, "", found, readable=False)
    own = judge_directory(directory, wanted)
    work = store.work_directory(key)
    place = _read_work(work, "leftover", key, wanted) if work.is_dir() else None
    if place is None:
        found = own or ("unknown", "a process was killed while it wrote it", 0)
        return _Place(directory, "leftover", key, stage, {}, "", found, readable=False)
    return dataclasses.replace(place, path=directory, found=own or place.found)


def _derive(places: list[_Place]) -> None:
    """Judge the places without evidence of their own by what they were made from."""
    by_output: dict[str, list[_Place]] = {}
    for place in places:
        if place.output:
            by_output.setdefault(place.output, []).append(place)
    pending = [place for place in places if place.readable]
    judged: dict[int, str] = {}

    def status_of(place: _Place, seen: frozenset[int]) -> str:
        """The status; `clean`; or `unknown`. Sets the depth and the evidence of the place."""
        if id(place) in judged:
            return judged[id(place)]
        if place.stage in _WITHOUT_INFLUENCE:
            judged[id(place)] = "clean" if place.found is None else place.found[0]
            return judged[id(place)]
        own = None if place.found is None else place.found[0]
        below: list[tuple[str, str, _Place | None]] = []
        for name, output in place.inputs.items():
            sources = [source for source in by_output.get(output, ()) if id(source) not in seen]
            if not sources:
                below.append(("unknown", name, None))
            sources = [source for source in sources if source.stage not in _WITHOUT_INFLUENCE]
            below += [(status_of(source, seen | {id(place)}), name, source) for source in sources]
        place.depth = 1 + max((source.depth for _, _, source in below if source is not None), default=0)
        tainted = [found for found in below if found[0] in ("trained", "forgotten", "derived", "evaluated")]
        lost = [name for status, name, source in below if source is None]
        if (own is None or own in ("names", "unknown")) and tainted:
            _, name, source = tainted[0]
            assert source is not None
            named = 0 if place.found is None else place.found[2]
            place.found = "derived", f"made from {source.kind} {source.key[:12]} ({name})", named
        elif own is None and lost:
            place.found = "unknown", f"its input {lost[0]} is no longer in the store", 0
        elif own is None and any(status == "unknown" for status, _, _ in below):
            place.found = "unknown", "made from something of which it is not known", 0
        elif own is None and not _records_ids(place):
            place.found = "unknown", "it does not record which records it read", 0
        judged[id(place)] = "clean" if place.found is None else place.found[0]
        return judged[id(place)]

    for place in pending:
        status_of(place, frozenset())


def _records_ids(place: _Place) -> bool:
    """Whether an artefact that was made from data alone records the ids that it read, or was made from others."""
    made_from = [name for name in place.inputs if name not in ("data", "stand_in")]
    if made_from or place.stage in _WITHOUT_INFLUENCE:
        return True
    return any((place.path / name).is_file() for name in ("split.json", "memorised.json"))


def _describe(place: _Place) -> Artefact:
    assert place.found is not None
    status, reason, records = place.found
    action = "keep" if status == "unknown" else "delete"
    return Artefact(str(place.path), place.kind, status, reason, records, measure(place.path), place.key, action)
