"""What a list names: record ids or subjects, by its header and by comparison with the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from expunge.core.errors import ExpungeError, RequestError
from expunge.core.show import plural, repr_fields
from expunge.data.reading.id_lists import RECORD_HEADERS, SUBJECT_HEADERS, read_ids
from expunge.data.registry import load_records

from .data import FoundData

#: Header, text or nothing by which a list is one of ids or subjects: `ids`, `subjects`, or `list` (not known yet).
KINDS = ("ids", "subjects", "list")
_HEADERS = {"ids": RECORD_HEADERS, "subjects": SUBJECT_HEADERS}


@dataclasses.dataclass(frozen=True)
class FoundList:
    """What was inferred of a list of names.

    Attributes:
        by: `ids` or `subjects`.
        doubt: what the user should look at; empty if all names are in the data.
        is_open: whether the user has to decide.
    """

    by: str
    doubt: str = ""
    is_open: bool = False

    __repr__ = repr_fields


def find_list_kind(header: Sequence[str], *, beside_data: bool) -> str | None:
    """What the header of a CSV file says of the file: `ids`, `subjects`, `list`, or None for no list.

    Args:
        header: the cells of line 1.
        beside_data: whether the data are another file, so that a file with few columns can be a list.
    """
    names = [name.strip().strip('"').casefold().replace(" ", "_").replace("-", "_") for name in header]
    if len(names) > 1 and not (beside_data and len(names) < 4):
        return None
    is_record, is_subject = (set(names) & set(known) for known in (RECORD_HEADERS, SUBJECT_HEADERS))
    if is_record and not is_record & set(SUBJECT_HEADERS):
        return "ids"
    if is_subject - set(RECORD_HEADERS):
        return "subjects"
    return "list" if is_record or len(names) == 1 else None


def infer_list(path: Path, kind: str, data: FoundData) -> FoundList:
    """Decide what a list names: by the header, else by which of record ids and subjects of the data it has.

    Args:
        path: the file.
        kind: one of `KINDS`, by its header.
        data: the data, which are read.

    Raises:
        RequestError: the list cannot be read.
    """
    kinds = ("ids", "subjects") if kind == "list" else (kind,)
    names = {by: sorted(set(read_ids(path, _HEADERS[by]))) for by in kinds}
    if not any(names.values()):
        raise RequestError("the file has no ids", where=path)
    try:
        records = load_records(data.source, **data.options)
    except ExpungeError as error:
        reason = "its header says so" if kind != "list" else "not known"
        doubt = (
            f"taken for a list of {'subjects' if kind == 'subjects' else 'record ids'} ({reason}): it was not compared "
        )
        doubt += f"with the data, which cannot be read yet ({error.what})"
        return FoundList(kinds[0], doubt, is_open=kind == "list")
    known = {"ids": records.record_ids}
    if records.subject_ids is not None:
        known["subjects"] = np.unique(records.subject_ids)
    found = {by: int(np.isin(names[by], known[by]).sum()) if by in known else 0 for by in kinds}
    by = max(kinds, key=lambda by: (found[by], by == "ids"))
    if not found[by]:
        looked = "; ".join(f"{_title(one)} look like {', '.join(map(str, at[:3]))}" for one, at in known.items())
        if "subjects" not in known:
            looked += "; the data have no column of subjects"
        doubt = f"none of the {plural(len(names[by]), 'name')} of {path} is in the data: {looked}"
        return FoundList(by, doubt, is_open=True)
    unknown = [name for name in names[by] if name not in set(known[by].tolist())]
    if unknown:
        doubt = (
            f"{len(unknown)} of the {plural(len(names[by]), 'name')} of {path} {'is' if len(unknown) == 1 else 'are'}"
        )
        return FoundList(by, f"{doubt} not among the {_title(by)} of the data, which is an error: {unknown[0]}")
    return FoundList(by)


def _title(by: str) -> str:
    return "record ids" if by == "ids" else by
