"""The store: a cache of stage results, addressed by a hash of everything that determines them.

    <store>/entries/<stage>/<key>/   the files that the stage wrote, and entry.json
    <store>/work/<key>/              checkpoints of unfinished stages
    <store>/failures/<key>.json      the last failure of a stage
    <store>/locks/<key>.lock         locked by the process that runs the stage; released when the process ends
    <store>/module_facts.json        hashes of source files that were parsed (`module_facts`)

Entries are complete or absent: they are written to a temporary directory, which is then renamed. An entry that was
damaged later counts as absent, so its stage runs again. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError, FileError, StoreError
from expunge.core.files import PathLike, read_json, staged_directory, write_json
from expunge.core.hashing import hash_json
from expunge.core.show import repr_fields

from .environment import hardware, is_first, versions
from .ingredients import Ingredients, list_differences
from .integrity import SMALL_BYTES, describe_files, find_damage
from .memory import PeakMemory
from .module_facts import load_module_facts, save_module_facts

SCHEMA = "expunge.entry"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A finished stage.

    Attributes:
        path: its directory.
        output: hash of the results that later stages depend on.
        seconds: total duration.
        finished: time of completion (UTC, ISO 8601).
        versions, hardware, threads: the software and the machine.
        files: size and hash of each file; see `describe_files`.
        memory: peak in bytes while it ran (`PeakMemory.to_json`); empty in entries of earlier versions.
        resumed: whether the stage continued from a checkpoint, so that `seconds` are only those since then.
        first: whether it was the first of its kind in its process, so that `seconds` include what the process loaded.
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
    files: Mapping[str, Mapping[str, Any]]
    memory: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    resumed: bool = False
    first: bool = False

    __repr__ = repr_fields


class Store:
    """A content-addressed store of finished stages in one directory; several processes may share it.

    Attributes:
        damaged: what is wrong with entries that this process found damaged, by stage and key.
    """

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        self.damaged: dict[tuple[str, str], str] = {}
        self._known: dict[tuple[str, str], Entry] = {}
        self._checked: dict[tuple[str, str], int | None] = {}

    def entry_directory(self, stage: str, key: str) -> Path:
        return self.root / "entries" / stage / key

    def work_directory(self, key: str) -> Path:
        return self.root / "work" / key

    @property
    def address(self) -> str:
        """What `open_store` opens this store by, in any process: an absolute path, or a URL."""
        return os.path.abspath(self.root)

    def exists(self) -> bool:
        """Whether anything was stored."""
        return self.root.exists()

    @property
    def facts_path(self) -> Path:
        return self.root / "module_facts.json"

    def load_facts(self) -> None:
        """Use the facts of source files that an earlier process found."""
        load_module_facts(self.facts_path)

    def save_facts(self) -> None:
        """Keep the facts of source files for the next process."""
        save_module_facts(self.facts_path)

    @property
    def index_path(self) -> Path:
        """The directory of the indexes of large data sets (`expunge.data.reading.index_cache`)."""
        return self.root / "index"

    def find(self, stage: str, key: str) -> Entry | None:
        """Find the entry of a key; None if there is none, or if it is damaged (see `damaged`).

        Damage that changes the size of no file is found by `check`.
        """
        known = self._known.get((stage, key))
        if known is None:
            directory = os.path.join(self.root, "entries", stage, key)
            if not os.path.lexists(directory):
                return None
            try:
                known = read_entry(Path(directory) / "entry.json")
                damage = find_damage(known.path, known.files, most=-1)
            except FileError as error:
                damage = f"{os.path.basename(str(error.where))} {error.what}"
            if known is None or damage is not None:
                self.damaged[stage, key] = str(damage)
                return None
            self._known[stage, key] = known
        return known

    def check(self, entry: Entry, most: int | None = None, *, again: bool = False) -> str | None:
        """Compare the contents of an entry's files with their hashes; returns what is wrong, or None.

        Args:
            entry: the entry.
            most: files with more bytes are compared by their size only; None: all are hashed.
            again: also if this process has done so before.
        """
        place = (entry.ingredients.stage, entry.key)
        if not again and place in self._checked and self._checked[place] in (None, most):
            return None
        found = find_damage(entry.path, entry.files, most)
        if found is None:
            self._checked[place] = most
        return found

    def check_files(self, entry: Entry, names: Collection[str]) -> str | None:
        """Compare some files of an entry with their hashes; they are in its directory afterwards."""
        return find_damage(entry.path, {name: facts for name, facts in entry.files.items() if name in names})

    def check_quickly(self, entry: Entry, names: Collection[str]) -> str | None:
        """Compare files with their hashes when a plan is run: those of at most `SMALL_BYTES`.

        Args:
            entry: the entry.
            names: of a store at a URL, these files only.
        """
        return self.check(entry, SMALL_BYTES)

    def forget(self, stage: str | None = None, key: str | None = None) -> None:
        """Look all entries, or one, up again: other processes may have removed or replaced some."""
        for known in (self._known, self._checked):
            for place in [place for place in known if stage is None or place == (stage, key)]:
                del known[place]

    def discard(self, entry: Entry, damage: str) -> bool:
        """Remove a damaged entry, so that its stage runs again; returns False if another process runs it now."""
        place = (entry.ingredients.stage, entry.key)
        with self.lock(entry.key) as acquired:
            if acquired and self.check(entry, again=True) is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                self.damaged[place] = damage
        self._known.pop(place, None)
        self._checked.pop(place, None)
        return acquired

    def entries(self, stage: str) -> Iterator[Entry]:
        """All entries of a stage, without those whose entry.json is damaged."""
        for path in sorted((self.root / "entries" / stage).glob("[0-9a-f]*/entry.json")):
            with contextlib.suppress(FileError):
                yield read_entry(path)

    def list_keys(self, stage: str) -> set[str]:
        """Keys of all entries of a stage, without reading them; some may be damaged, or not whole yet."""
        return set(_list_names(self.root / "entries" / stage))

    def list_failures(self) -> set[str]:
        """Keys of the stages whose failure is recorded."""
        return {name.removesuffix(".json") for name in _list_names(self.root / "failures")}

    def read_newest(self, stage: str, most: int) -> Iterator[Entry]:
        """At most so many entries of a stage, the newest first, without those whose entry.json is damaged."""
        folder = self.root / "entries" / stage
        found = []
        for name in _list_names(folder):
            with contextlib.suppress(OSError):
                found.append(((folder / name).stat().st_mtime, name))
        for _, name in sorted(found, reverse=True)[:most]:
            with contextlib.suppress(FileError):
                yield read_entry(folder / name / "entry.json")

    @contextlib.contextmanager
    def lock(self, key: str, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[bool]:
        """Try to lock `key` for this process, without waiting; yields whether the lock was acquired."""
        import fcntl

        path = self.root / "locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, flags, 0o644)
        except OSError as error:
            raise StoreError(f"the store cannot be written ({error.strerror})", where=self.root) from error
        try:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if flags & os.O_RDWR else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    def is_locked(self, key: str) -> bool:
        """Whether a process holds the lock of `key`; nothing is written."""
        if not (self.root / "locks" / f"{key}.lock").exists():
            return False
        with self.lock(key, os.O_RDONLY) as free:
            return not free

    def compute(
        self,
        ingredients: Ingredients,
        run: Callable[[Path, Path], str],
        *,
        label: str,
        threads: Callable[[], int] | None = None,
    ) -> Entry:
        """Run a stage and store its results; the caller holds the lock of the key.

        Args:
            ingredients: determine the key.
            run: called with the directories for results and for checkpoints; returns the output hash.
            label: describes the stage in messages.
            threads: returns the number of threads of this process, which is recorded; called after the run.
        """
        key, stage = ingredients.key, ingredients.stage
        directory, work = self.entry_directory(stage, key), self.work_directory(key)
        marks = {"first": is_first(stage), "resumed": False}
        if work.exists():  # an earlier attempt did not end
            marks["resumed"] = any(path.name not in ("run.json", "split.json") for path in work.iterdir())
            for leftover in directory.parent.glob(f".{key}.*"):  # of a process that was killed while writing
                shutil.rmtree(leftover, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        head = {"key": key, "label": label, "ingredients": ingredients.to_json()}
        write_json(work / "run.json", "expunge.run", 1, head, compact=True)
        started = time.perf_counter()
        with staged_directory(directory) as out:
            with PeakMemory() as memory:
                output = run(out, work)
            body = {
                **head,
                "output": output,
                "seconds": round(time.perf_counter() - started, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "threads": None if threads is None else threads(),
                "versions": versions(),
                "hardware": hardware(),
                "files": describe_files(out),
                "memory": memory.to_json(),
                **{name: True for name, value in marks.items() if value},
            }
            body["hash"] = hash_json(body)
            write_json(out / "entry.json", SCHEMA, SCHEMA_VERSION, body, compact=True)
        shutil.rmtree(work, ignore_errors=True)
        self.failure_path(key).unlink(missing_ok=True)
        self.damaged.pop((stage, key), None)
        return self._find_written(stage, key)

    def _find_written(self, stage: str, key: str) -> Entry:
        """The entry that was just written."""
        found = Store.find(self, stage, key)
        if found is None:
            directory = self.entry_directory(stage, key)
            raise FileError(f"was damaged while it was written ({self.damaged[stage, key]})", where=directory)
        return found

    def failure_path(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"

    def record_failure(self, key: str, label: str, message: str, traceback: str | None) -> None:
        """Record the failure of a stage; the next run tries it again."""
        body = {"key": key, "label": label, "message": message, "traceback": traceback, "time": time.time()}
        write_json(self.failure_path(key), "expunge.failure", 1, body)

    def read_failure(self, key: str, since: float = 0.0) -> str | None:
        """Read the message of the last failure of `key`; None if there is none since `since` (seconds since 1970)."""
        path = self.failure_path(key)
        if not path.exists():
            return None
        try:
            body = read_json(path, "expunge.failure", 1)
            return str(body["message"]) if float(body["time"]) >= since else None
        except (FileError, KeyError, TypeError, ValueError):  # damaged: the stage is simply run again
            return None

    def size(self) -> int:
        """Total bytes of the files in the store; files that vanish meanwhile do not count."""
        total = 0
        for directory, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(directory, name)).st_size
        return total

    def clean(self, keep: set[str]) -> int:
        """Remove entries and checkpoints of keys that are not in `keep` and not locked; returns the bytes freed."""
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

    def drop(self, entry: Entry) -> None:
        """Remove an entry; other processes see it whole or not at all."""
        (entry.path / "entry.json").unlink(missing_ok=True)
        shutil.rmtree(entry.path, ignore_errors=True)
        self._known.pop((entry.ingredients.stage, entry.key), None)

    def explain(self, ingredients: Ingredients) -> list[str]:
        """Explain why a stage is not in the store: how its ingredients differ from those of the most similar entry."""
        if self.find(ingredients.stage, ingredients.key) is not None:
            return ["it is in the store"]
        damage = self.damaged.get((ingredients.stage, ingredients.key))
        if damage is not None:
            return [f"its stored result is damaged: {damage}"]
        best: list[str] | None = None
        for entry in self.entries(ingredients.stage):
            found = list_differences(entry.ingredients, ingredients)
            if best is None or len(found) < len(best):
                best = found
        return best if best is not None else [f"no {ingredients.stage} stage has finished in this store yet"]


def _list_names(folder: Path) -> list[str]:
    """Names in a folder, without those of temporary files; none if it does not exist."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:  # nothing has been written there
        return []


def read_entry(path: Path) -> Entry:
    """Read an entry.json (docs/formats/store.md).

    Raises:
        FileError: it is missing, damaged or incomplete.
    """
    body = read_json(path, SCHEMA, SCHEMA_VERSION)
    try:
        written = {name: value for name, value in body.items() if name not in ("kind", "schema_version", "hash")}
        if hash_json(written) != body["hash"]:
            raise FileError("does not have the hash in it", where=path, hint=f"remove {path.parent}")
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
            files=body["files"],
            memory=body.get("memory") or {},
            resumed=body.get("resumed") is True,
            first=body.get("first") is True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"is not a complete entry ({error!r})", where=path, hint=f"remove {path.parent}") from error


def error_text(error: BaseException) -> str:
    """The text of an error, with the name of its class unless it is an `ExpungeError`."""
    return str(error) if isinstance(error, ExpungeError) else f"{type(error).__name__}: {error}"
