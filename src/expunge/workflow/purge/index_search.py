"""The indexes of large data sets that name given records, or hold copies of their features.

They are in the directory `index` of a store, or where `use_index_directory` puts them. An index is a cache: without it
the files of the data are read again.
"""

from __future__ import annotations

import re
from pathlib import Path

from expunge.core.errors import ExpungeError
from expunge.data.reading.readers import read_npz

from .artefacts import Artefact
from .evidence import Wanted, measure

#: An index, its features, or what a process left that was killed while it wrote one of them.
_NAME = re.compile(r"(?P<left>\.?)(?P<stem>(?P<what>images|features)-[0-9a-f]{16})\.(?P<kind>npz|npy)(\.[0-9a-f]+)?")
#: The array with the record ids.
_IDS = {"images": "paths", "features": "ids"}
_WHAT = {"images": "of image files", "features": "of a streamed table"}


def is_index(path: Path) -> bool:
    """Whether a file has the name of an index, or of the features beside one."""
    match = _NAME.fullmatch(path.name)
    return match is not None and bool(match["left"]) == (match[5] is not None)


def search_index(directory: Path, wanted: Wanted) -> tuple[list[Artefact], int]:
    """Find the files of a directory of indexes that hold something of the records.

    Args:
        directory: the directory; it need not exist.
        wanted: the records.

    Returns:
        The files, the copies of features before the index that names their records; and the number of files.
    """
    if directory.is_symlink():
        return [Artefact(str(directory), "index", "unknown", "a symbolic link, which is not followed")], 1
    if not directory.is_dir():
        return [], 0
    found, looked = [], 0
    for path in sorted(directory.iterdir()):  # `.npy`, then `.npz`
        if path.is_symlink() or not path.is_file():
            continue
        looked += 1
        if is_index(path):
            judged = judge_index(path, wanted)
        else:
            judged = Artefact(str(path), "index", "unknown", "not a file of an index", 0, measure(path))
        found += [] if judged is None else [judged]
    return found, looked


def judge_index(path: Path, wanted: Wanted) -> Artefact | None:
    """Judge a file for which `is_index` holds, by the record ids in the index; None: it holds none of the records."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    what, size = match["what"], measure(path)
    is_left = bool(match["left"])
    try:
        names = read_npz(path.with_name(f"{match['stem']}.npz"), [_IDS[what]])[_IDS[what]]
    except ExpungeError:
        return Artefact(str(path), "index", "unknown", "no index beside it says which records it has", 0, size)
    count = wanted.count_in(names)
    if not count:
        reason = "a process was killed while it wrote it"
        return Artefact(str(path), "index", "unknown", reason, 0, size) if is_left else None
    if match["kind"] == "npy":
        status, reason = "holds", f"features {_WHAT[what]}, with {count} of them"
    else:
        status, reason = "names", f"an index {_WHAT[what]} that names {count} of them"
    return Artefact(str(path), "index", status, reason, count, size, action="delete")
