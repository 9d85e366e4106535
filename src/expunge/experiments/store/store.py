"""The store: results of stages, by a key of all that decides them.

    <store>/entries/<stage>/<key>/   what the stage wrote, and entry.json
    <store>/work/<key>/              checkpoints of unfinished stages
    <store>/failures/<key>.json      why a stage failed last time
    <store>/locks/<key>.lock         held by the process that works on the key; a lock dies with its process

Entries appear whole (written beside, renamed). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError, FileError
from expunge.core.files import PathLike, read_json, staged_directory, write_json
from expunge.core.hashing import hash_json

from .environment import hardware, versions

SCHEMA = "expunge.entry"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """All that decides the result of a stage.

    Attributes:
        stage, version: which stage, and its version.
        source: hash of every module that it reaches, by name.
        config: its configuration.
        inputs: output hashes of earlier stages, by input name.
        fingerprint: names, sizes and times of the data files, for the stage that reads them; else None.
    """

    stage: str
    version: int
    source: Mapping[str, str]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str | None = None

    @functools.cached_property
    def key(self) -> str:
        """40 hex digits."""
        return hash_json({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})[:40]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished stage.

    Attributes:
        path: its directory.
        output: hash of what later stages depend on.
        seconds: how long it took, all of it.
        finished: when, UTC, ISO 8601.
        versions, hardware, threads: on what.
    """

    key: str
    path: Path
    ingredients: Ingredients
    output: str
    seconds: float
    finished: str
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    threads: int | None
    label: str


class Store:
    """A content-addressed store of finished stages in one directory; several processes may share it."""

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        self._known: dict[tuple[str, str], Entry] = {}

    def entry_directory(self, stage: str, key: str) -> Path:
        return self.root / "entries" / stage / key

    def work_directory(self, key: str) -> Path:
        return self.root / "work" / key

    def find(self, stage: str, key: str) -> Entry | None:
        """The entry of a key, or None."""
        known = self._known.get((stage, key))
        if known is None:
            path = self.entry_directory(stage, key) / "entry.json"
            if not path.exists():
                return None
            known = self._known[stage, key] = read_entry(path)
        return known

    def entries(self, stage: str) -> Iterator[Entry]:
        """All entries of a stage."""
        for path in sorted((self.root / "entries" / stage).glob("[0-9a-f]*/entry.json")):
            yield read_entry(path)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Try to become the one process that works on `key`; yields whether that was so. Never waits."""
        import fcntl

        path = self.root / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FileError(f"the store cannot be written ({error.strerror})", where=self.root) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    def is_locked(self, key: str) -> bool:
        """Whether some process works on `key` right now."""
        if not (self.root / "locks" / f"{key}.lock").exists():
            return False
        with self.lock(key) as free:
            return not free

    def compute(
        self,
        ingredients: Ingredients,
        run: Callable[[Path, Path], str],
        *,
        label: str,
        threads: Callable[[], int] | None = None,
    ) -> Entry:
        """Run a stage and keep its results; the caller holds the lock of the key.

        Args:
            ingredients: what decides the key.
            run: called with the directory for results and the one for checkpoints; returns the output hash.
            label: for people.
            threads: gives the threads of this process, for the record; asked after the run.
        """
        key, stage = ingredients.key, ingredients.stage
        directory, work = self.entry_directory(stage, key), self.work_directory(key)
        for left in directory.parent.glob(f".{key}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with staged_directory(directory) as out:
            output = run(out, work)
            body = {
                "key": key,
                "label": label,
                "ingredients": dataclasses.asdict(ingredients),
                "output": output,
                "seconds": round(time.perf_counter() - started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "threads": None if threads is None else threads(),
                "versions": versions(),
                "hardware": hardware(),
            }
            write_json(out / "entry.json", SCHEMA, SCHEMA_VERSION, body)
        shutil.rmtree(work, ignore_errors=True)
        self.failure_path(key).unlink(missing_ok=True)
        found = self.find(stage, key)
        assert found is not None
        return found

    def failure_path(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"

    def record_failure(self, key: str, label: str, message: str, traceback: str | None) -> None:
        """Keep why a stage failed; the next run tries it again."""
        body = {"key": key, "label": label, "message": message, "traceback": traceback, "time": time.time()}
        write_json(self.failure_path(key), "expunge.failure", 1, body)

    def failure(self, key: str, since: float = 0.0) -> str | None:
        """The message of the last failure of `key`, or None where there is none (or none since then)."""
        path = self.failure_path(key)
        if not path.exists():
            return None
        try:
            body = read_json(path, "expunge.failure", 1)
        except FileError:
            return None
        return str(body["message"]) if float(body["time"]) >= since else None

    def size(self) -> int:
        """Bytes that all files of the store take; files that come and go meanwhile do not count."""
        total = 0
        for directory, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(directory, name)).st_size
        return total

    def sweep(self, keep: set[str]) -> int:
        """Remove entries and unfinished work of keys not in `keep` that nobody works on; returns the bytes freed."""
        freed = 0
        directories = [*self.root.glob("entries/*/*"), *self.root.glob("work/*")]
        for directory in directories:
            key = directory.name.lstrip(".").partition(".")[0]
            if key in keep and not directory.name.startswith("."):
                continue
            with self.lock(key) as free:
                if free:
                    freed += sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
                    shutil.rmtree(directory, ignore_errors=True)
        self._known.clear()
        return freed

    def explain(self, ingredients: Ingredients) -> list[str]:
        """Why a stage is not in the store: how its ingredients differ from those of the most similar entry."""
        if self.find(ingredients.stage, ingredients.key) is not None:
            return ["it is in the store"]
        best: list[str] | None = None
        for entry in self.entries(ingredients.stage):
            found = _differences(entry.ingredients, ingredients)
            if best is None or len(found) < len(best):
                best = found
        return best if best is not None else [f"no {ingredients.stage} stage was ever finished in this store"]


def read_entry(path: Path) -> Entry:
    """Read an entry.json (docs/plans.md)."""
    body = read_json(path, SCHEMA, SCHEMA_VERSION)
    try:
        return Entry(
            key=body["key"],
            path=path.parent,
            ingredients=Ingredients(**body["ingredients"]),
            output=body["output"],
            seconds=float(body["seconds"]),
            finished=body["finished"],
            versions=body["versions"],
            hardware=body["hardware"],
            threads=body["threads"],
            label=body["label"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"is not a whole entry ({error!r})", where=path, hint="remove its directory") from error


def _differences(before: Ingredients, now: Ingredients) -> list[str]:
    found = []
    if before.version != now.version:
        found.append(f"stage version: {before.version} -> {now.version}")
    for module in sorted({*before.source, *now.source}):
        if before.source.get(module) != now.source.get(module):
            verb = "added" if module not in before.source else "gone" if module not in now.source else "changed"
            found.append(f"source {verb}: {module}")
    old, new = dict(_leaves(before.config)), dict(_leaves(now.config))
    found += [
        f"configuration: {key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    names = sorted({*before.inputs, *now.inputs})
    found += [f"input changed: {name}" for name in names if before.inputs.get(name) != now.inputs.get(name)]
    if before.fingerprint != now.fingerprint:
        found.append("data files changed (names, sizes or times)")
    return found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value, sort_keys=True)


def check_platform() -> None:
    """Raise ConfigError where the system has no `fcntl` (Windows): its locks end with their process, crash or not."""
    try:
        import fcntl  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the store needs file locks (fcntl), which this system does not have",
            hint="expunge runs on Linux, macOS and WSL (Windows Subsystem for Linux)",
        ) from error


def message_of(error: BaseException) -> str:
    """An error in one text for people."""
    return str(error) if isinstance(error, ExpungeError) else f"{type(error).__name__}: {error}"
