"""A store that machines share at a URL, with a working copy in a local folder. Does not import torch.

    <url>/entries/<stage>/<key>/<sha256>   the files that the stage wrote, each named by the hash of its content
    <url>/entries/<stage>/<key>/entry.json names and hashes of the files; written last
    <url>/failures/<key>.json, <url>/module_facts.json

A stage runs in the local folder, which is a `Store`; then its files are uploaded, and its entry.json last. An entry
without entry.json is absent. The first entry of a key stays. Writers of one key do not disturb each other, because each
file is named by its content; so there are no locks, and a stage may be computed twice. Each file is compared with its
hash when it is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from expunge.core.errors import FileError, StoreError
from expunge.core.files import PathLike, staged_file, write_text
from expunge.core.hashing import hash_bytes

from .addresses import get_scheme
from .ingredients import Ingredients
from .integrity import find_damage
from .remote import RemoteFolder
from .store import Entry, Store, read_entry

#: So many entries of a stage are downloaded at most to forecast how long others take.
MOST_DOWNLOADS = 20


def open_store(address: PathLike) -> Store:
    """Open the store in a folder, or at a URL.

    Args:
        address: a path, or a URL of a file system that `fsspec` knows: `s3://bucket/folder`, `gs://...`, `memory://...`.
            `file:///...` is a folder on a file system without locks.

    Raises:
        ConfigError: the URL has credentials, its scheme is unknown, or a package is not installed.

    Example:
        >>> open_store("cache").address == os.path.abspath("cache")
        True
    """
    text = os.fspath(address)
    return Store(text) if get_scheme(text) is None else SharedStore(text)


def find_cache_folder(url: str) -> Path:
    """The local folder of the working copy of a store: below EXPUNGE_CACHE_DIR, else below the user's cache folder."""
    base = os.environ.get("EXPUNGE_CACHE_DIR")
    if not base:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        base = os.path.join(home, "expunge")
    return Path(base) / "stores" / hash_bytes(url.encode())[:16]


class SharedStore(Store):
    """A store at a URL.

    Args:
        url: see `open_store`.
        cache: the local folder; default: `find_cache_folder`.
    """

    def __init__(self, url: str, cache: PathLike | None = None) -> None:
        self.remote = RemoteFolder(url)
        super().__init__(find_cache_folder(self.remote.url) if cache is None else cache)
        self._exists = False

    @property
    def address(self) -> str:
        return self.remote.url

    def exists(self) -> bool:
        self._exists = self._exists or bool(self.remote.list_names(""))
        return self._exists

    # ---- entries

    def find(self, stage: str, key: str) -> Entry | None:
        """Find the entry of a key at the URL; its files are downloaded by `check` and `check_files`."""
        known = self._known.get((stage, key))
        if known is not None:
            return known
        content = self.remote.read(f"{_place(stage, key)}/entry.json")
        if content is None:
            return None
        try:
            known = self._keep_entry(stage, key, content)
        except FileError as error:
            self.damaged[stage, key] = f"entry.json {error.what}"
            return None
        self._known[stage, key] = known
        return known

    def _keep_entry(self, stage: str, key: str, content: bytes) -> Entry:
        """Read the entry, and replace the working copy if that is of another entry.

        Raises:
            FileError: it is damaged.
        """
        path = self.entry_directory(stage, key) / "entry.json"
        with contextlib.suppress(OSError):
            if path.read_bytes() == content:
                return read_entry(path)
        with staged_file(path) as temporary:
            temporary.write_bytes(content)
            entry = read_entry(temporary)
            if entry.key != key or entry.ingredients.stage != stage:
                raise FileError("is of another stage", where=path)
        return read_entry(path)

    def check(self, entry: Entry, most: int | None = None, *, again: bool = False) -> str | None:
        place = (entry.ingredients.stage, entry.key)
        if not again and place in self._checked and self._checked[place] in (None, most):
            return None
        small = {name for name, facts in entry.files.items() if most is None or facts["bytes"] <= most}
        found = self.check_files(entry, small)
        for name in sorted(set(entry.files) - small):
            size = self.remote.measure(self._place_file(entry, name))
            if found is None and size != entry.files[name]["bytes"]:
                found = f"{name} is missing" if size is None else f"{name} has {size:,} bytes"
        if found is None:
            self._checked[place] = most
        return found

    def check_files(self, entry: Entry, names: Collection[str]) -> str | None:
        """Download the files that are not here, and compare all with their hashes."""
        for name in sorted(set(names) & set(entry.files)):
            damage = self._fetch(entry, name)
            if damage is not None:
                return damage
        return None

    def check_quickly(self, entry: Entry, names: Collection[str]) -> str | None:
        return self.check_files(entry, names)

    def _fetch(self, entry: Entry, name: str) -> str | None:
        """Have a file of an entry in the working copy; returns what is wrong with it at the URL, or None."""
        wanted = {name: entry.files[name]}
        path = entry.path / name
        if find_damage(entry.path, wanted) is None:
            return None
        found = ""
        for _ in range(2):  # a transfer may be damaged, too
            with staged_file(path) as temporary:
                if not self.remote.download(self._place_file(entry, name), temporary):
                    found = f"{name} is missing"
                else:
                    written, size = _hash_file(temporary), temporary.stat().st_size
                    if written == entry.files[name]["sha256"]:
                        found = ""
                    elif size != entry.files[name]["bytes"]:
                        found = f"{name} has {size:,} bytes instead of {entry.files[name]['bytes']:,}"
                    else:
                        found = f"{name} has other contents than were written"
            if not found:
                return None
            path.unlink(missing_ok=True)
        return found

    def _place_file(self, entry: Entry, name: str) -> str:
        return f"{_place(entry.ingredients.stage, entry.key)}/{entry.files[name]['sha256']}"

    def compute(
        self,
        ingredients: Ingredients,
        run: Callable[[Path, Path], str],
        *,
        label: str,
        threads: Callable[[], int] | None = None,
    ) -> Entry:
        """Run a stage and upload its results; those that an earlier process could not upload are uploaded now."""
        stage, key = ingredients.stage, ingredients.key
        if self._mark(key).exists():
            with contextlib.suppress(FileError):
                entry = read_entry(self.entry_directory(stage, key) / "entry.json")
                if find_damage(entry.path, entry.files) is None:
                    return self._find_written(stage, key)
        return super().compute(ingredients, run, label=label, threads=threads)

    def _mark(self, key: str) -> Path:
        """A file that exists while an entry is complete here and not yet at the URL."""
        return self.root / "unpublished" / key

    def _find_written(self, stage: str, key: str) -> Entry:
        """Upload the entry that was just computed, unless there is one now; returns the one at the URL."""
        write_text(self._mark(key), "")
        entry = super()._find_written(stage, key)
        self._known.pop((stage, key), None)
        place = _place(stage, key)
        if self.find(stage, key) is None:
            content = (entry.path / "entry.json").read_bytes()
            for name, facts in entry.files.items():
                self.remote.upload(entry.path / name, f"{place}/{facts['sha256']}")
            self.remote.write(f"{place}/entry.json", content)
        self.damaged.pop((stage, key), None)
        found = self.find(stage, key)
        if found is None:
            raise StoreError("what was written cannot be read again", where=f"{self.address}/{place}")
        self.remote.remove(_failure(key))
        self._mark(key).unlink(missing_ok=True)
        return found

    def discard(self, entry: Entry, damage: str) -> bool:
        place = (entry.ingredients.stage, entry.key)
        with self.lock(entry.key) as acquired:  # of processes on this machine
            if acquired and self.check(entry, again=True) is not None:
                self._remove(*place)
                self.damaged[place] = damage
        self._known.pop(place, None)
        self._checked.pop(place, None)
        return acquired

    def drop(self, entry: Entry) -> None:
        self._remove(entry.ingredients.stage, entry.key)
        self._known.pop((entry.ingredients.stage, entry.key), None)

    def _remove(self, stage: str, key: str) -> None:
        self.remote.remove(f"{_place(stage, key)}/entry.json")
        self.remote.remove(_place(stage, key))
        shutil.rmtree(self.entry_directory(stage, key), ignore_errors=True)

    def entries(self, stage: str) -> Iterator[Entry]:
        for key in self.remote.list_names(f"entries/{stage}"):
            entry = self.find(stage, key)
            if entry is not None:
                yield entry

    def list_keys(self, stage: str) -> set[str]:
        return set(self.remote.list_names(f"entries/{stage}"))

    def list_failures(self) -> set[str]:
        return {name.removesuffix(".json") for name in self.remote.list_names("failures")}

    def read_newest(self, stage: str, most: int) -> Iterator[Entry]:
        """Those of the working copy, the newest first; then a few others, whose order a URL does not tell."""
        known = set()
        for entry in super().read_newest(stage, most):
            known.add(entry.key)
            yield entry
        others = sorted(self.list_keys(stage) - known) if len(known) < most else []
        for key in others[: min(most - len(known), MOST_DOWNLOADS)]:
            found = self.find(stage, key)
            if found is not None:
                yield found

    def size(self) -> int:
        return self.remote.count_bytes()

    def clean(self, keep: set[str]) -> int:
        """Remove entries of keys that are not in `keep`, also from the working copy; returns the bytes freed."""
        before = self.size()
        for stage in self.remote.list_names("entries"):
            for key in self.remote.list_names(f"entries/{stage}"):
                if key not in keep:
                    self._remove(stage, key)
        super().clean(keep)
        return max(0, before - self.size())

    # ---- failures and facts

    def record_failure(self, key: str, label: str, message: str, traceback: str | None) -> None:
        super().record_failure(key, label, message, traceback)
        self.remote.write(_failure(key), self.failure_path(key).read_bytes())

    def read_failure(self, key: str, since: float = 0.0) -> str | None:
        content = self.remote.read(_failure(key))
        if content is None:
            return None
        with staged_file(self.failure_path(key)) as temporary:
            temporary.write_bytes(content)
        return super().read_failure(key, since)

    def load_facts(self) -> None:
        if not self.facts_path.exists():
            content = self.remote.read(self.facts_path.name)
            if content is not None:
                with staged_file(self.facts_path) as temporary:
                    temporary.write_bytes(content)
        super().load_facts()

    def save_facts(self) -> None:
        before = _stamp(self.facts_path)
        super().save_facts()
        if _stamp(self.facts_path) != before:
            with contextlib.suppress(StoreError):  # the file only helps
                self.remote.write(self.facts_path.name, self.facts_path.read_bytes())


def _place(stage: str, key: str) -> str:
    return f"entries/{stage}/{key}"


def _failure(key: str) -> str:
    return f"failures/{key}.json"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
