"""The section `split`: the assignment of records to training, validation, test and the non-member pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.core.split import Split
    from expunge.data import Records


def make_split(section: Mapping[str, Any], records: Records) -> Split:
    """Make or read the split of the section `split`; see `load_or_make_split`."""
    from expunge.data.splitting import load_or_make_split

    return load_or_make_split(records, section)
