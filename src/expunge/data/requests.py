"""What the selections of a forget set share: lists of ids, ids that are missing, and the request itself."""

from __future__ import annotations

import bisect
import contextlib
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, RequestError, find_nearest_name, unknown_name_hint
from expunge.core.reading.plain import as_plain
from expunge.core.request import ForgetRequest
from expunge.core.split import PARTS, Split, as_ids, is_in

from .reading.id_lists import RECORD_HEADERS, read_id_list
from .records import Records

IdsOrFile = Iterable[str] | str | os.PathLike[str]
#: What to do with named records or subjects that are not in the retain set.
ON_MISSING = ("refuse", "skip")
#: Why a record is skipped that the split has not in training: what the weights were trained on, nothing but it says.
NOT_IN_TRAINING = "never trained on, by the split"
#: What `on_missing: skip` presumes.
SKIP_PRESUMES = "right only if the split is that of the training"
_SEPARATOR = re.compile(r"[,;|\s]+")


def read_selected(
    ids: IdsOrFile | Iterable[object],
    headers: Sequence[str] = RECORD_HEADERS,
    known: NDArray[np.str_] | Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """Return ids, and the file they were read from as options of the selection.

    Raises:
        RequestError: the file cannot be read, or its line 1 is a header and one of the known ids.
    """
    if not isinstance(ids, (str, os.PathLike)):
        return [str(i) for i in ids], {}
    found = read_id_list(ids, headers)
    if found.header is not None and found.header in known:
        raise RequestError(
            f"line 1 is {found.header!r}, which may be the header or one of the ids",
            where=os.fspath(ids),
            hint=f"name the column {headers[0]}, or use a text file (.txt) without a header",
        )
    return list(found.ids), {"file": os.fspath(ids)}


def as_integer(value: object, where: str) -> int:
    """Return an integer.

    Raises:
        RequestError: the value is not an integer; a fraction would be cut off.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(cast(SupportsIndex, value))
    except TypeError:
        pass
    raise RequestError(f"{str(value)[:60]!r} is not an integer", where=where)


def as_number(value: object, where: str) -> float:
    """Return a finite number.

    Raises:
        RequestError: the value is not a number, or not finite.
    """
    plain = as_plain(value)
    with contextlib.suppress(OverflowError):  # an integer beyond all floating-point numbers
        if isinstance(plain, (int, float)) and not isinstance(plain, bool) and math.isfinite(plain):
            return plain
    raise RequestError(f"{str(value)[:60]!r} is not a finite number", where=where)


def as_fraction(value: object) -> float:
    """Return a fraction.

    Raises:
        RequestError: the value is not a number from 0 to 1.
    """
    fraction = as_number(value, "fraction")
    if not 0 <= fraction <= 1:
        raise RequestError(f"the fraction is {fraction:g}, not between 0 and 1", where="fraction")
    return fraction


def check_on_missing(on_missing: str) -> bool:
    """Whether missing records are skipped.

    Raises:
        ConfigError: the value is unknown.
    """
    if on_missing not in ON_MISSING:
        hint = unknown_name_hint(on_missing, ON_MISSING)
        raise ConfigError(f"unknown value {str(on_missing)[:60]!r}", where="on_missing", hint=hint)
    return on_missing == "skip"


def skip_missing(
    records: Records, split: Split, ids: Sequence[str], on_missing: str
) -> tuple[Sequence[str], dict[str, Any]]:
    """Return the ids that are in the retain set, and the others by reason, as options of the selection.

    With `refuse`, all ids are returned; `build_request` raises the error for those that are missing. With `skip`, it
    raises the error for ids that neither the records nor the split have: they may be mistyped.
    """
    if not check_on_missing(on_missing):
        return ids, {}
    wanted = np.unique(as_ids(ids))
    reasons: dict[str, list[str]] = {}
    missing = wanted[~is_in(wanted, split.retain)]
    part_of = {name: part for part in PARTS for name in getattr(split, part)[is_in(getattr(split, part), missing)]}
    unknown = [name for name in missing[~is_in(missing, records.record_ids)].tolist() if name not in part_of]
    for name in missing.tolist():
        if name not in unknown:
            reason = "forgotten before" if part_of.get(name) == "forget" else NOT_IN_TRAINING
            reasons.setdefault(reason, []).append(name)
    found = [*wanted[is_in(wanted, split.retain)].tolist(), *unknown]
    return found, {"on_missing": on_missing, "skipped": reasons}


def describe_skipped(selection: Mapping[str, Any], most: int = 20) -> list[str]:
    """Describe the named records or subjects that `on_missing: skip` left out: a line for each reason.

    Args:
        selection: of a request; in place of the names, there may be their number.
        most: names that are listed in a line.

    Example:
        >>> describe_skipped({"by": "ids", "on_missing": "skip", "skipped": {NOT_IN_TRAINING: ["x"]}})
        ['1 of the named ids was skipped (never trained on, by the split): x']
    """
    skipped = selection.get("skipped")
    named = "subjects" if selection.get("by") == "subjects" else "ids"
    lines = []
    for reason, names in skipped.items() if isinstance(skipped, Mapping) else ():
        listed = [str(name) for name in names] if isinstance(names, (list, tuple)) else []
        count = names if isinstance(names, int) else len(listed)
        more = f" and {len(listed) - most} more" if len(listed) > most else ""
        verb = "was" if count == 1 else "were"
        shown = f": {', '.join(listed[:most])}{more}" if listed else ""
        lines.append(f"{count} of the named {named} {verb} skipped ({reason}){shown}")
    return lines


def count_outside(split: Split, ids: NDArray[np.str_]) -> dict[str, int]:
    """Count the ids that are not in the retain set, by the part of the split that they are in.

    Args:
        split: the split.
        ids: record ids.

    Returns:
        The counts above 0, under `forget`, `validation`, `test`, `non_members` and `in no part`.

    Example:
        >>> split = Split(retain=["a"], forget=[], validation=["b"], test=["c", "d"], non_members=[])
        >>> count_outside(split, as_ids(["a", "b", "c", "d", "e"]))
        {'validation': 1, 'test': 2, 'in no part': 1}
    """
    counts = {part: int(is_in(ids, getattr(split, part)).sum()) for part in PARTS}
    counts["in no part"] = len(ids) - sum(counts.values())
    return {part: count for part, count in counts.items() if count and part != "retain"}


def describe_outside(selection: Mapping[str, Any]) -> list[str]:
    """Describe the records of the named subjects that are not forgotten, since they are not in the retain set.

    Args:
        selection: of a request (`ForgetRequest.selection`).

    Returns:
        One line, or none.

    Example:
        >>> describe_outside({"by": "subjects", "subjects": ["ada"], "outside": {"test": 2, "validation": 1}})
        ['3 more records of the named subjects are outside the retain set and are not forgotten: 2 test, 1 validation']
    """
    outside = selection.get("outside")
    counts = {str(k): v for k, v in outside.items() if isinstance(v, int)} if isinstance(outside, Mapping) else {}
    total = sum(counts.values())
    if not total:
        return []
    names = {"forget": "forgotten before", "non_members": "non-members"}
    listed = ", ".join(f"{count:,} {names.get(part, part)}" for part, count in counts.items())
    records = "1 more record" if total == 1 else f"{total:,} more records"
    verb = "is" if total == 1 else "are"
    where = f"{verb} outside the retain set and {verb} not forgotten"
    return [f"{records} of the named subjects {where}: {listed}"]


def build_request(
    records: Records,
    split: Split,
    ids: NDArray[np.str_] | Sequence[str],
    selection: Mapping[str, Any],
    *,
    hold: IdsOrFile = (),
    forgotten_class: int | None = None,
) -> ForgetRequest:
    """Build a request after checking that its ids are records of the retain set."""
    wanted, on_hold = as_ids(ids), as_ids(read_selected(hold, RECORD_HEADERS, records.record_ids)[0])
    if is_in(wanted, on_hold).any():
        forgotten_class = None
    for group in (wanted, on_hold):
        unknown = group[~is_in(group, records.record_ids)]
        if len(unknown):
            more = f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else ""
            hint = describe_unknown(str(unknown[0]), records.record_ids.tolist(), group.tolist())
            if group is wanted and selection.get("on_missing") == "skip":
                hint += "; on_missing: skip leaves out records that exist and are not trained on, not unknown ids"
            raise RequestError(f"no such record in {records.name}{more}", where=unknown[0], hint=hint)
    if selection["by"] not in ("ids", "correct"):  # a rule skips records on hold; a named id on hold is an error
        wanted = wanted[~is_in(wanted, on_hold)]
    try:
        split.find_in_retain(wanted)
    except RequestError as error:
        if selection["by"] != "ids" or len(wanted) < 2:
            raise
        hint = f"{error.hint}; on_missing: skip leaves out such records, and lists them: {SKIP_PRESUMES}"
        raise RequestError(error.what, where=error.where, hint=hint) from error
    return ForgetRequest(wanted, selection=selection, forgotten_class=forgotten_class, hold=on_hold)


def describe_unknown(name: str, known: Sequence[str], given: Sequence[str]) -> str:
    """The hint for an unknown id: several ids in one string, a header, lost zeros, or the nearest known id."""
    names = set(known)
    parts = [part for part in _SEPARATOR.split(name) if part]
    if len(parts) > 1 and all(part in names for part in parts):
        listed = ", ".join(parts[:3]) + (", ..." if len(parts) > 3 else "")
        return f"these are {len(parts)} ids in one string: write a list, [{listed}], or one id a line"
    if name.isdecimal():
        padded = next((other for other in known if other.lstrip("+0") == name and other != name), None)
        if padded is not None:
            return f"did you mean {padded!r}? quote it in YAML: unquoted numbers lose zeros and signs before them"
    if len(given) > 1 and name == given[0] and all(other in names for other in given[1:]):
        return f"line 1 may be a header: name it {RECORD_HEADERS[0]}, in a file that ends in .csv"
    return suggest(name, known)


def suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known name among its neighbours in sorted order, and examples of known names."""
    names = sorted(known)
    at = bisect.bisect(names, name)
    close = find_nearest_name(name, names if len(names) <= 200 else names[max(0, at - 50) : at + 50], cutoff=0.65)
    examples = f"they look like: {', '.join(names[:3])}"
    return examples if close is None else f"did you mean {close!r}? ({examples})"
