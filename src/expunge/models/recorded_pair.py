"""Compare a weights file and a split with the trained.json that lies beside either of them.

A split says which records the weights were trained on and which they have forgotten. An unlearned model with the split
of its original, or the original with the split of the unlearned model, would be wrong without any other sign: the first
trains on the forgotten records again, the second claims to have forgotten records that it never forgot.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import FileError
from expunge.core.files import PathLike, read_run_file, read_tensors
from expunge.core.hashing import hash_tensors
from expunge.core.split import Split


def check_recorded_pair(weights: PathLike, split: Split, *, split_file: PathLike | None = None) -> None:
    """Raise FileError if weights and split do not belong together, as far as a trained.json beside them records it.

    Args:
        weights: the weights file.
        split: the split that is used with it.
        split_file: the file that the split was read from; None: it was drawn.

    Raises:
        FileError: trained.json beside the weights records another split for them, or other weights under this name; or
            records of the split are forgotten, and trained.json beside it records that by other weights; or the
            trained.json is damaged.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records)
        >>> network = expunge.architecture("mlp", records, split, widths=(4,))
        >>> trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
        >>> expunge.save_trained(trained, "original")
        >>> check_recorded_pair("original/model.safetensors", split)
        >>> check_recorded_pair("original/model.safetensors", split.move_to_forget(split.retain[:5]))
        Traceback (most recent call last):
            ...
        expunge.core.errors.FileError: original/model.safetensors: these weights belong to another split ...
    """
    path = Path(weights)
    recorded = _read_hashes(path.parent)
    digest = None
    if recorded is not None:
        digest = hash_tensors(read_tensors(path)[0])
        if recorded.get("weights") == digest:
            if recorded.get("split") != split.hash:
                raise _explain_split(path, recorded, split)
            return
        if path.name == "model.safetensors":
            raise FileError(
                "does not have the hash recorded in the trained.json beside it: it was changed, or belongs to another "
                "model",
                where=path,
                hint="restore the file; or copy it to another directory, if split.file is really its split",
            )
    if split_file is None or len(split.forget) == 0:
        return
    beside = _read_hashes(Path(split_file).parent)
    if beside is None or beside.get("split") != split.hash:
        return
    if beside.get("weights") != (digest or hash_tensors(read_tensors(path)[0])):
        raise FileError(
            f"it records {len(split.forget)} records as forgotten by the model beside it, but {path} has other weights",
            where=split_file,
            hint="use weights and split of the same directory: those of the original model, or those of the unlearned",
        )


def _explain_split(path: Path, recorded: Mapping[str, Any], split: Split) -> FileError:
    what = "these weights belong to another split (trained.json beside them)"
    if recorded.get("base_split") == split.base_hash:
        what += f": the same parts, but not the {len(split.forget)} forgotten records of the split that is used"
    return FileError(what, where=path, hint=f"split.file={path.parent / 'split.json'}")


def _read_hashes(directory: Path) -> Mapping[str, Any] | None:
    """The hashes in the trained.json of a directory; None if there is none."""
    path = directory / "trained.json"
    if not path.exists():
        return None
    try:
        hashes: Mapping[str, Any] = read_run_file(path, "expunge.trained", 2)["hashes"]
    except FileError as error:
        hint = "it would say to which split the weights belong: restore it, or remove it if it is of another tool"
        raise FileError(error.what, where=error.where, hint=hint) from error
    return hashes
