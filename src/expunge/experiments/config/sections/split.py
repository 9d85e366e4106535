"""The section `split`: which records are trained on, and which of them are gone."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from expunge.experiments.config.validation import Section, leave_out_unset


class SplitConfig(Section):
    """How the records are split: the fraction for each part, or a saved split.json (`file`).

    Attributes:
        limit: use at most this many records outside the official test set.
        retain: `absent` declares that the records of D_r are gone; the ids are those of `file`.
    """

    file: str | None = None
    seed: int = 0
    validation: float = pydantic.Field(default=0.1, ge=0, lt=1)
    non_members: float = pydantic.Field(default=0.1, ge=0, lt=1)
    test: float = pydantic.Field(default=0.2, ge=0, lt=1)
    group: Literal["subject"] | None = None
    stratify: bool = True
    limit: int | None = pydantic.Field(default=None, ge=1)
    retain: Literal["absent"] | None = None

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_retain(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return leave_out_unset(handler(self), "retain")

    @pydantic.model_validator(mode="after")
    def _check_absent(self) -> SplitConfig:
        if self.retain is not None and self.file is None:
            raise ValueError("`retain: absent` needs `file`: the saved split names the records that are gone")
        return self
