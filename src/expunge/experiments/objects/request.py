"""The section `forget`: the request."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ChangedDataError, RequestError

from .records import hash_records

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.data import Records
    from expunge.data.retain_set.stand_in import StandIn


def check_selection(section: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the keys of the section `forget` are those of its selection; reads no data."""
    from expunge.data import selection

    selection.check_selection(_selection_of(section))


def make_request(
    section: Mapping[str, Any], records: Records, split: Split, ranking: Sequence[str] | None = None
) -> ForgetRequest:
    """Make the request of the section `forget`.

    Args:
        section: the selection.
        records: the records.
        split: the split that the request is for.
        ranking: record ids, most memorised first, for the selections `memorised` and `memorisation-stratum`. Without a
            ranking, which is known only after training, the request has other records, but as many.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or must not be forgotten; the forget set or the retain
            set would be empty.
    """
    from expunge.data import forget_memorised, forget_stratum, select_forget
    from expunge.data.selection import RANKED, forget_proxy

    section = _selection_of(section)
    if section["by"] in RANKED:
        ids = split.retain.tolist() if ranking is None else ranking
        options = {key: value for key, value in section.items() if key not in ("by", "hold") and value is not None}
        forget = forget_memorised if section["by"] == "memorised" else forget_stratum
        request = forget(records, split, ids, **options, hold=section.get("hold") or ())
    elif section["by"] == "proxy":
        request = forget_proxy(records, split, section["of"], seed=section.get("seed", 0), ranking=ranking)
    else:
        request = select_forget(records, split, section)
    if len(request.record_ids) == 0:
        raise RequestError("the forget set is empty", hint="check the selection; there is nothing to forget")
    request.apply(split)
    return request


def _selection_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that select the records."""
    return {key: value for key, value in section.items() if key != "stand_in"}


def read_stand_in(
    section: Mapping[str, Any],
    directory: str | None,
    records: Records,
    split: Split,
    request: ForgetRequest,
    *,
    expected: str | None = None,
) -> StandIn | None:
    """Read the stand-in retain set of the section `forget`; None if there is none.

    Args:
        section: the section, with the key `stand_in`.
        directory: the data directory of the run.
        records: the records that are left.
        split: the split before the request.
        request: the records to forget.
        expected: output hash of the stage that read it before, or None.

    Raises:
        ChangedDataError: it is not what was read before.
        ConfigError, DataError: see `expunge.data.load_records`.
        DataError, RequestError: see `join_stand_in`.
    """
    declared = section.get("stand_in")
    if declared is None:
        return None
    from expunge.data.retain_set.stand_in import join_stand_in

    registry = importlib.import_module("expunge.data.registry")  # by name: see `objects.records`
    directory = declared["dir"] or directory
    found = registry.load_records(declared["source"], data_dir=directory, **declared["options"])
    if expected is not None and hash_records(found, declared, directory) != expected:
        hint = "files changed while it ran; run it again"
        raise ChangedDataError("the stand-in differs from what was read before", where=declared["source"], hint=hint)
    return join_stand_in(records, found, request, split, source=declared["source"], options=declared["options"])
