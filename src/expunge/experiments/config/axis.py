"""An axis of a plan. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.show import repr_fields

from .yaml_source import KeyPath


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Attributes:
        name: of the axis.
        settings: label to the dotted keys that it sets, with their values.
        key_paths: label to its position in the YAML file.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]]
    key_paths: Mapping[str, KeyPath]

    __repr__ = repr_fields

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings)

    @property
    def role(self) -> str:
        """Its role in a table: `replicate` (seeds, averaged over), `method` (rows), `sparsity` (columns) or `case`."""
        keys = {key for settings in self.settings.values() for key in settings}
        if keys and all(key.rpartition(".")[2] == "seed" for key in keys):
            return "replicate"
        first = {key.partition(".")[0] for key in keys}
        if first == {"leakage"}:
            return "method"
        return first.pop() if first in ({"method"}, {"sparsity"}) else "case"
