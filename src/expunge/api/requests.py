"""Requests from rows of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.data.corrections.request import blank_columns, correct_labels
from expunge.data.forget_set import forget_ids
from expunge.data.records import Records

from .rows import Rows, find_requested, find_rows


def request_rows(records: Records, split: Split, rows: Rows | ForgetRequest, hold: Rows = ()) -> ForgetRequest:
    """Make the request to forget rows; a request is returned as it is.

    Args:
        records: the records.
        split: of the model.
        rows: see `expunge.api.rows.find_rows`; or a request.
        hold: rows that must stay.

    Raises:
        RequestError: a row does not exist, was forgotten before, was never trained on, or is on hold; or the request is
            empty.
    """
    if isinstance(rows, ForgetRequest):
        if len(rows.record_ids) == 0:
            raise RequestError("the request names no record", where="forget")
        return rows
    found = records.record_ids[find_requested(records, split, rows)]
    held = records.record_ids[find_rows(records, hold, "hold", RequestError)]
    return forget_ids(records, split, found, hold=held)


def request_correction(
    records: Records,
    split: Split,
    labels: Mapping[Any, str | int] | None,
    rows: Rows | None,
    blank: Sequence[str | int] | None,
    fill: float,
) -> ForgetRequest:
    """Make the request to correct rows: their labels, or columns that are blanked.

    Args:
        records: the records.
        split: of the model.
        labels: new labels by row number or record id.
        rows: rows of which columns are blanked.
        blank: these columns.
        fill: their new value.

    Raises:
        ConfigError: neither labels nor columns are given, or both.
        RequestError: a record is not in the retain set, or nothing would change.
    """
    if (labels is None) == (blank is None) or (blank is None) != (rows is None):
        raise ConfigError(
            "a correction needs either new labels, or rows and the columns to blank",
            where="correct",
            hint="correct({5: 'cat'}), or correct(rows=[5], blank=['income'])",
        )
    if labels is not None:
        found = find_requested(records, split, list(labels), "labels")
        new = {str(records.record_ids[row]): label for row, label in zip(found, labels.values(), strict=True)}
        return correct_labels(records, split, new)
    assert rows is not None
    assert blank is not None
    chosen = records.record_ids[find_requested(records, split, rows, "rows")]
    return blank_columns(records, split, chosen, blank, fill=fill)
