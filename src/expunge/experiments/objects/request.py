"""The section `forget`: the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.errors import RequestError

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.data import Records


def check_selection(section: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the keys of the section `forget` are those of its selection; reads no data."""
    from expunge.data import selection

    selection.check_selection(section)


def make_request(
    section: Mapping[str, Any], records: Records, split: Split, ranking: Sequence[str] | None = None
) -> ForgetRequest:
    """Make the request of the section `forget`.

    Args:
        section: the selection.
        records: the records.
        split: the split that the request is for.
        ranking: record ids, most memorised first, for the selection `memorised`. Without a ranking, which is known only
            after training, the request has other records, but as many.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or must not be forgotten; the forget set or the retain
            set would be empty.
    """
    from expunge.data import forget_memorised, select_forget
    from expunge.data.selection import forget_proxy

    if section["by"] == "memorised":
        options = {key: value for key, value in section.items() if key not in ("by", "count", "hold")}
        hold = section.get("hold") or ()
        ids = split.retain.tolist() if ranking is None else ranking
        request = forget_memorised(records, split, ids, int(section["count"]), hold=hold, **options)
    elif section["by"] == "proxy":
        request = forget_proxy(records, split, section["of"], seed=section.get("seed", 0), ranking=ranking)
    else:
        request = select_forget(records, split, section)
    if len(request.record_ids) == 0:
        raise RequestError("the forget set is empty", hint="check the selection; there is nothing to forget")
    request.apply(split)
    return request
