"""The sections `forget` and `leakage`: what is forgotten, and what shadow models reveal about it."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from expunge.core.reading.limits import LEAKAGE_LABELS, MODELS, PERMUTATIONS
from expunge.core.split import PLANTINGS
from expunge.experiments.config.validation import OpenSection, Section, leave_out_unset


class StandInConfig(Section):
    """Records that methods read instead of those of D_r, which are absent: a source, its directory and its options.

    Attributes:
        source: a registered name, or `package.module:factory` of a generator.
        dir: directory of its files; default: that of the section `data`.
        options: options of the source.
    """

    source: str
    dir: str | None = None
    options: dict[str, Any] = pydantic.Field(default_factory=dict)


class ForgetConfig(OpenSection):
    """The records to forget; the other keys depend on `by`.

    Attributes:
        by: how they are selected.
        stand_in: a stand-in for the absent retain set.
    """

    by: str
    stand_in: StandInConfig | None = None

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_stand_in(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return leave_out_unset(handler(self), "stand_in")

    @property
    def ranked(self) -> dict[str, Any] | None:
        """The keys of the selection by memorisation that this is, or is the proxy of; None: it needs no ranking."""
        keys = self.extra_keys
        if self.by == "proxy" and isinstance(keys.get("of"), dict):
            keys = {**keys["of"]}
            return keys if keys.pop("by", None) == "memorised" else None
        return keys if self.by == "memorised" else None


class LeakageConfig(Section):
    """Measure topology leakage instead of running a method: infer from masks alone which shadow models had D_f.

    Attributes:
        models: number of shadow models of each side: trained with D_f and without, for example.
        initial: `shared` initial weights, or each model its `own`.
        known: whether the attacker knows the initial weights.
        permutations: permutations of the labels for the null distribution.
        game: what the attacker tells apart: models `trained` with D_f or without; models that forgot D_f, or were
            trained without it (`unlearned`); models that forgot D_f, or another set (`two-requests`).
        other: the other set of the game `two-requests`, selected as `forget` is, from the records outside D_f.
        processing: what forgetting does to a mask: nothing (`unchanged`), `replay`, or retraining and pruning again
            (`retrained`).
        prefix_epochs: epochs of each of the two runs of `replay`.
        scale: factor of the difference that `replay` adds.
    """

    models: int = pydantic.Field(default=64, ge=4, le=MODELS)
    initial: Literal["shared", "own"] = "shared"
    known: bool = False
    permutations: int = pydantic.Field(default=200, ge=1, le=PERMUTATIONS)
    game: Literal["trained", "unlearned", "two-requests"] = "trained"
    other: ForgetConfig | None = None
    processing: Literal["unchanged", "replay", "retrained"] = "unchanged"
    prefix_epochs: int | None = pydantic.Field(default=None, ge=1)
    scale: float = pydantic.Field(default=1.0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _check_product(self) -> LeakageConfig:
        if self.models * self.permutations > LEAKAGE_LABELS:
            raise ValueError(f"models times permutations is at most {LEAKAGE_LABELS:,}: all are in memory at once")
        return self

    @pydantic.model_validator(mode="after")
    def _check_game(self) -> LeakageConfig:
        if (self.other is not None) != (self.game == "two-requests"):
            raise ValueError(
                "the game two-requests, and no other, needs `other`: the set that half of the models forget"
            )
        if self.other is not None and self.other.stand_in is not None:
            raise ValueError("`other` has no stand_in: the shadow models are trained on D_r")
        if self.game == "trained" and self.processing != "unchanged":
            raise ValueError("in the game trained nothing is forgotten: processing must be unchanged")
        if (self.prefix_epochs is not None) != (self.processing == "replay"):
            raise ValueError("the processing replay, and no other, needs prefix_epochs")
        if self.scale != 1 and self.processing != "replay":
            raise ValueError("only the processing replay has a scale")
        return self

    def check_other(self, forget: ForgetConfig) -> None:
        """Raise ValueError if the other set needs another training, or other records, than the section `forget`."""
        if self.other is None:
            return
        if self.other.by in PLANTINGS:
            raise ValueError(f"leakage.other cannot be by {self.other.by}: only `forget` changes the training data")
        if self.other.by == "memorised":
            keys = [(one.by, *(one.extra_keys.get(key) for key in ("models", "seed"))) for one in (self.other, forget)]
            if keys[0] != keys[1]:
                raise ValueError("leakage.other by memorised needs `forget` by memorised, with equal models and seed")
        if self.other.by == "memorisation-stratum" and forget.by != "memorisation-stratum":
            raise ValueError("leakage.other by memorisation-stratum needs `forget` by memorisation-stratum")

    def to_settings(self) -> dict[str, Any]:
        """The section as JSON values, without the keys of other games than its own."""
        values = self.model_dump(mode="json")
        unused = {
            "other": self.other is None,
            "prefix_epochs": self.prefix_epochs is None,
            "scale": self.processing != "replay",
            "game": self.game == "trained",
            "processing": self.game == "trained",
        }
        return {key: value for key, value in values.items() if not unused.get(key)}
