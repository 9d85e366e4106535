"""The artefacts in given directories that saw given records: model directories, recordings, files that name records."""

from __future__ import annotations

import re
from pathlib import Path

from expunge.core.errors import DataError, FileError
from expunge.core.show import plural

from .artefacts import Artefact
from .evidence import (
    TEXT_SUFFIXES,
    Wanted,
    find_named,
    list_files,
    measure,
    read_body,
    read_split_evidence,
)
from .index_search import is_index, judge_index

#: Files that expunge writes into a model directory, and the directory of its state; `--delete` removes no others.
MODEL_FILES = (
    "model.safetensors", "mask.safetensors", "outcome.json", "scores.json", "details.json", "report.html",
    "trained.json", "split.json",
)  # fmt: skip
STATE = "state"
RECORDING = "recording.json"
#: Its other files: the order of the records, and the model before the training and after epochs.
_RECORDED = re.compile(r"(orders|initial|epoch-\d{4,9})\.safetensors")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".npz")


def is_store(path: Path) -> bool:
    """Whether a directory is a store of finished stages."""
    return (path / "entries").is_dir() and ((path / "locks").is_dir() or (path / "module_facts.json").is_file())


def search_path(root: Path, wanted: Wanted) -> tuple[list[Artefact], list[Path], int]:
    """Find the artefacts below a directory, or judge one file. Symbolic links are not followed.

    Args:
        root: the directory or file.
        wanted: the records.

    Returns:
        The artefacts, the stores below it, which are searched as such, and the number of places that were looked at.

    Raises:
        FileError: there is no such file.
    """
    if root.is_symlink():
        return [Artefact(str(root), "file", "unknown", "a symbolic link, which is not followed")], [], 1
    if not root.exists():
        raise FileError("no such file or directory", where=root)
    if root.is_file():
        found = _judge_file(root, wanted)
        return ([] if found is None else [found]), [], 1
    stores: list[Path] = []

    def is_other(path: Path) -> bool:
        if is_store(path):
            stores.append(path)
            return True
        return False

    if is_store(root):
        return [], [root], 0
    files = list_files(root, is_other)
    artefacts, covered, looked = [], set(), 0
    for directory in sorted({path.parent for path in files}):
        name = "split.json" if (directory / "split.json") in files else RECORDING
        if directory / name not in files:
            continue
        judge, own = _judge_recording, list_recorded_files(directory)
        if name == "split.json":
            judge, own = _judge_model, list_model_files(directory)
        found = judge(directory, wanted)
        looked += 1
        covered |= set(own)
        if found is not None:
            artefacts.append(found)
        else:  # what is recorded in the directory does not name them: so neither did other weights in it see them
            covered |= {path for path in files if path.parent == directory and path.suffix in _WEIGHTS}
    for path in files:
        if path in covered:
            continue
        looked += 1
        judged = _judge_file(path, wanted)
        artefacts += [] if judged is None else [judged]
    return artefacts, stores, looked


def list_model_files(directory: Path) -> list[Path]:
    """The files of expunge in a model directory, those last by which it is known what the model saw."""
    state = list_files(directory / STATE) if (directory / STATE).is_dir() else []
    return [*state, *(directory / name for name in MODEL_FILES if (directory / name).is_file())]


def list_recorded_files(directory: Path) -> list[Path]:
    """The files of a recording: its order and checkpoints, then recording.json. Other files are not of it."""
    found = [path for path in sorted(directory.iterdir()) if _RECORDED.fullmatch(path.name) and path.is_file()]
    return [*(path for path in found if not path.is_symlink()), directory / RECORDING]


def _judge_model(directory: Path, wanted: Wanted) -> Artefact | None:
    is_model = (directory / "model.safetensors").is_file() or (directory / "trained.json").is_file()
    kind = "model directory" if is_model else "file"
    path = directory if is_model else directory / "split.json"
    try:
        found = read_split_evidence(directory / "split.json", wanted)
    except (FileError, DataError) as error:
        named = find_named(directory / "split.json", wanted)
        if named:
            found = "trained", "its split.json is damaged, and names them", len(named)
        else:
            return Artefact(str(path), kind, "unknown", f"its split.json is damaged ({error.what})", 0, measure(path))
    if found is None:
        return None
    status, reason, records = found
    if not is_model:
        return Artefact(str(path), kind, "names", f"a split; {reason}", records, measure(path))
    if status == "forgotten":
        method = read_body(directory / "outcome.json").get("method", {})
        if isinstance(method, dict) and method.get("name"):
            reason += f"; unlearned by {method['name']}, guarantee {method.get('guarantee', 'not recorded')}"
    action = "delete" if status == "trained" else "keep"
    return Artefact(str(path), kind, status, reason, records, measure(path), action=action)


def _judge_recording(directory: Path, wanted: Wanted) -> Artefact | None:
    named = find_named(directory / RECORDING, wanted)
    files = list_recorded_files(directory)
    size = sum(measure(path) for path in files)
    if named is None or not read_body(directory / RECORDING):
        return Artefact(str(directory), "recording", "unknown", f"its {RECORDING} cannot be read", 0, size)
    if not named:
        return None
    checkpoints = sum(path.name.startswith("epoch-") for path in files)
    reason = f"its {RECORDING} names {len(named)} of them among the records of the training"
    reason += f"; with {plural(checkpoints, 'early checkpoint')}"
    return Artefact(str(directory), "recording", "trained", reason, len(named), size, action="delete")


def _judge_file(path: Path, wanted: Wanted) -> Artefact | None:
    """A file that names records, or an index of data; or weights of which nothing is recorded."""
    if is_index(path):
        return judge_index(path, wanted)
    if path.suffix in TEXT_SUFFIXES:
        named = find_named(path, wanted)
        if named is None:
            return Artefact(str(path), "file", "unknown", "cannot be read, or is too large", 0, measure(path))
        if named:
            return Artefact(str(path), "file", "names", f"names {len(named)} of them", len(named), measure(path))
        return None
    if path.suffix in _WEIGHTS:
        reason = "no split.json beside it says which records it saw"
        return Artefact(str(path), "file", "unknown", reason, 0, measure(path))
    return None
