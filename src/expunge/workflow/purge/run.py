"""Search for the artefacts that saw given records, and delete them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import ConfigError, FileError, Interrupted, RequestError
from expunge.core.files import PathLike
from expunge.experiments.store.addresses import get_scheme
from expunge.experiments.store.environment import check_platform
from expunge.experiments.store.store import Store, read_entry

from .artefacts import Artefact, Purge
from .evidence import Wanted, read_body
from .path_search import list_model_files, list_recorded_files, search_path
from .store_search import PURGED, search_store

if TYPE_CHECKING:
    from expunge.experiments.config.run_config import RunConfig

#: A running worker can write an artefact while others are deleted: the store is searched again, at most so often.
_ROUNDS = 5


def read_purge_ids(
    *, ids: PathLike | None = None, subjects: PathLike | None = None, config: RunConfig | None = None
) -> list[str]:
    """Read the record ids to search for: from a list of ids, or those of listed subjects.

    Args:
        ids: a file of record ids, as for `forget.file`.
        subjects: a file of subject ids; needs a configuration, whose data source has the records of the subjects.
        config: its section `data` is read.

    Raises:
        ConfigError: neither or both are given, or subjects without a configuration.
        RequestError: the file cannot be read or is empty, or no record belongs to one of the subjects.
        ExpungeError: the data cannot be read.

    >>> from pathlib import Path
    >>> from expunge.workflow import read_purge_ids
    >>> _ = Path("ids.txt").write_text("digit-0001\\ndigit-0002\\n")
    >>> read_purge_ids(ids="ids.txt")
    ['digit-0001', 'digit-0002']
    """
    from expunge.data.reading.id_lists import SUBJECT_HEADERS, read_ids

    if (ids is None) == (subjects is None):
        raise ConfigError("either record ids or subjects are searched for", hint="--ids FILE, or --subjects FILE")
    if ids is not None:
        found = read_ids(ids)
        if not found:
            raise RequestError("the file has no ids", where=ids)
        return list(dict.fromkeys(found))
    assert subjects is not None
    if config is None:
        raise ConfigError(
            "the records of subjects are known from the data", where="--subjects", hint="add --config run.yaml"
        )
    import numpy as np

    from expunge.core.trust import trusting
    from expunge.data.requests import describe_unknown
    from expunge.workflow.inputs import read_records

    with trusting(config.trust):
        records = read_records(config)
    if records.subject_ids is None:
        raise RequestError("the records have no subjects", where=records.name, hint="--ids takes record ids")
    wanted = read_ids(subjects, SUBJECT_HEADERS)
    if not wanted:
        raise RequestError("the file has no subjects", where=subjects)
    known = np.unique(records.subject_ids).tolist()
    unknown = [name for name in dict.fromkeys(wanted) if name not in known]
    if unknown:
        more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
        hint = describe_unknown(unknown[0], known, wanted)
        raise RequestError(f"no record of the data belongs to the subject{more}", where=unknown[0], hint=hint)
    names: list[str] = records.record_ids[np.isin(records.subject_ids, wanted)].tolist()
    return names


def find_artefacts(ids: Iterable[str], *, store: PathLike | None = None, paths: Sequence[PathLike] = ()) -> Purge:
    """Find every stored artefact that saw given records. Nothing is changed; no model is loaded.

    An artefact is judged by what it records about its records: the split of a model, the ids in JSON files and pages.
    What records nothing, such as scores, is judged by what it was made from; what cannot be judged is listed as
    unknown.

    Args:
        ids: the record ids.
        store: directory of finished stages, or None.
        paths: directories (model directories, recordings, further stores) and files.

    Raises:
        FileError: the store or a path does not exist.
        ConfigError: neither a store nor a path is given, or the system has no file locks.
        RequestError: there are no ids.

    >>> from pathlib import Path
    >>> import expunge
    >>> from expunge.workflow import find_artefacts
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records)
    >>> network = expunge.architecture("mlp", records, split, widths=(4,))
    >>> trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
    >>> expunge.save_trained(trained, "models/original")
    >>> found = find_artefacts(split.retain[:2], paths=["models"])
    >>> [(artefact.status, artefact.records) for artefact in found.artefacts], found.exit_code
    ([('trained', 2)], 3)
    >>> find_artefacts(["digit-of-nobody"], paths=["models"]).exit_code
    0
    """
    wanted = _check(ids, store, paths)
    found, searched, _ = _search(wanted, store, paths)
    artefacts = tuple(sorted(found, key=lambda artefact: artefact.path))
    return Purge(len(wanted), searched, artefacts, unseen=wanted.list_unseen())


def purge(ids: Iterable[str], *, store: PathLike | None = None, paths: Sequence[PathLike] = ()) -> Purge:
    """Delete the artefacts that `find_artefacts` finds and that are expunge's to delete.

    Deleted are: in a store, everything that saw or names the records, because a store is a cache; elsewhere, the files
    of model directories that were trained on them, and recordings. Kept, and listed, are unlearned models, other files
    that name records, what is unknown, and what a running worker uses (run it again afterwards). What was made from
    others is deleted first; so an interrupted deletion is completed by calling this again.

    Args:
        ids: the record ids.
        store: directory of finished stages, or None.
        paths: directories and files.

    Raises:
        FileError, ConfigError, RequestError: see `find_artefacts`.
        Interrupted: Ctrl-C; call it again to finish.

    >>> from pathlib import Path
    >>> import expunge
    >>> from expunge.workflow import purge
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records)
    >>> network = expunge.architecture("mlp", records, split, widths=(4,))
    >>> trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
    >>> expunge.save_trained(trained, "models/original")
    >>> result = purge(split.retain[:2], paths=["models"])
    >>> [artefact.result for artefact in result.artefacts], result.exit_code, Path("models/original").exists()
    (['deleted'], 0, False)
    """
    wanted = _check(ids, store, paths)
    done: dict[str, Artefact] = {}
    left, searched = list(paths), 0
    try:
        for _ in range(_ROUNDS):
            found, count, stores = _search(wanted, store, left)
            searched = max(searched, count)
            progressed = False
            for artefact in found:
                result = _delete(artefact, stores)
                progressed |= result == "deleted"
                done[artefact.path] = dataclasses.replace(artefact, result=result)
            if not progressed:
                break
            left = [path for path in left if os.path.lexists(path)]  # a named directory may be one that was deleted
    except KeyboardInterrupt as error:
        raise Interrupted("stopped", hint="the same command deletes the rest") from error
    present = {artefact.path for artefact in found}
    results = [
        artefact for path, artefact in done.items() if artefact.result == "deleted" or path in present
    ]  # fmt: skip
    results.sort(key=lambda artefact: artefact.path)
    return Purge(len(wanted), searched, tuple(results), deleting=True, unseen=wanted.list_unseen())


def _check(ids: Iterable[str], store: PathLike | None, paths: Sequence[PathLike]) -> Wanted:
    check_platform()
    names = [str(name) for name in ids]
    if not names:
        raise RequestError("there are no record ids to search for")
    if store is None and not paths:
        raise ConfigError("nothing to search", where="purge", hint="name a store (--store DIR), or directories")
    if store is not None and get_scheme(os.fspath(store)) is not None:
        hint = "delete its entries at the URL, and name its working copy here (docs/engines.md)"
        raise ConfigError("only folders are searched, not a URL", where="store", hint=hint)
    if store is not None and not (Path(store) / "entries").is_dir():
        raise FileError("is not a store of finished stages", where=store, hint="--store names the directory")
    return Wanted(names)


def _search(
    wanted: Wanted, store: PathLike | None, paths: Sequence[PathLike]
) -> tuple[list[Artefact], int, list[Store]]:
    """The artefacts of the store and of the paths, what was made from others first; and the stores among them."""
    found: list[Artefact] = []
    searched, roots = 0, [] if store is None else [Path(store)]
    for path in paths:
        more, stores, count = search_path(Path(path), wanted)
        found += more
        searched += count
        roots += stores
    opened: dict[Path, Store] = {}
    for root in roots:
        opened.setdefault(root.resolve(), Store(root))
    for one in opened.values():
        more, count = search_store(one, wanted)
        found += more
        searched += count
    return list({artefact.path: artefact for artefact in found}.values()), searched, list(opened.values())


def _delete(artefact: Artefact, stores: Sequence[Store]) -> str:
    """Delete an artefact; returns `deleted`, why it was not, or nothing if it is to be kept."""
    if artefact.action != "delete":
        return ""
    path = Path(artefact.path)
    if not os.path.lexists(path):
        return "deleted"
    try:
        for store in stores:
            if path.is_relative_to(store.root):
                return _delete_from_store(path, artefact, store)
        if artefact.kind == "index":
            path.unlink(missing_ok=True)
            return "deleted"
        files = list_recorded_files(path) if artefact.kind == "recording" else list_model_files(path)
        for file in files:
            file.unlink(missing_ok=True)
        for directory in [path / "state", *path.glob("*/"), path]:
            with contextlib.suppress(OSError):  # other files are in it
                directory.rmdir()
        return "deleted"
    except OSError as error:
        return f"not deleted: {error.strerror or error}"


def _delete_from_store(path: Path, artefact: Artefact, store: Store) -> str:
    if not artefact.key:  # a log, or an index of data, which any stage may read
        if any(store.is_locked(lock.stem) for lock in (store.root / "locks").glob("*.lock")):
            return "in use"
        path.unlink(missing_ok=True)
        return "deleted"
    with store.lock(artefact.key) as acquired:
        if not acquired or _is_input_in_use(path, store):
            return "in use"
        if path.is_file():
            path.unlink(missing_ok=True)
        elif path.is_dir() and not path.is_symlink():
            hidden = path
            if not path.name.startswith("."):  # no process sees a part of it
                hidden = path.with_name(f".{artefact.key}{PURGED}")
                shutil.rmtree(hidden, ignore_errors=True)
                path.rename(hidden)
            shutil.rmtree(hidden)
    return "deleted"


def _is_input_in_use(path: Path, store: Store) -> bool:
    """Whether an entry is the input of a stage that a process runs now."""
    try:
        output = read_entry(path / "entry.json").output
    except FileError:
        return False
    for lock in (store.root / "locks").glob("*.lock"):
        ingredients = read_body(store.work_directory(lock.stem) / "run.json").get("ingredients")
        inputs = ingredients.get("inputs") if isinstance(ingredients, dict) else None
        if isinstance(inputs, dict) and output in inputs.values() and store.is_locked(lock.stem):
            return True
    return False
