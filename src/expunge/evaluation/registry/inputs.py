"""The inputs of scores: what was evaluated, with what; shared computations are done once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields
from expunge.core.split import PLANTINGS
from expunge.data.corrections.values import get_values_before
from expunge.evaluation.facts import NEEDS
from expunge.evaluation.score import Score, Scores

if TYPE_CHECKING:
    from expunge.core.mask import Mask
    from expunge.core.outcome import Cost
    from expunge.core.request import ForgetRequest
    from expunge.core.trained import Trained
    from expunge.data.records import Records
    from expunge.evaluation.leakage.mask_attack import Leakage
    from expunge.evaluation.predictions import Parts
    from expunge.training import Runtime

T = TypeVar("T")

#: The arguments of `ScoreInputs` that have to be given for each need.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "predictions": ("parts",),
    "svc_ratios": ("svc_ratios",),
    "cost": ("cost",),
    "reference": ("reference",),
    "retrained": ("parts", "retrained_parts"),
    "model": ("trained", "request", "records"),
    "patches": ("trained", "request", "records"),
    "masks": ("mask", "original_mask", "reference_mask"),
    "models": ("trained", "request", "records", "original", "retrained", "outcome"),
    "bound": ("bound",),
    "shadow masks": ("shadow_masks",),
    **dict.fromkeys(PLANTINGS, ("trained", "request", "records")),
}


@dataclasses.dataclass(frozen=True)
class ShadowMasks:
    """The result of the attack on the masks of shadow models.

    Attributes:
        leakage: what the attack found.
        attacker: what the attacker knows, in words.
        sides: the models of either side, in words.
    """

    leakage: Leakage
    attacker: str
    sides: tuple[str, str] = ("trained with D_f", "without")

    __repr__ = repr_fields


class ScoreInputs:
    """Everything that a score can be computed from. What was not given is missing; see `has`.

    Args:
        trained: the model.
        request: D_f.
        records: the records of the split, as their source has them.
        parts: predictions of the model, or a function that computes them on first use.
        cost: cost of the method.
        reference: scores of the retrained reference.
        retrained_parts: predictions of the retrained model, or a function that computes them on first use.
        original: the original model, or a function that loads it.
        retrained: the retrained model, or a function that loads it.
        outcome: the body of outcome.json.
        original_mask: mask of the original model.
        reference_mask: mask of a reference that was pruned again without D_f.
        shadow_masks: the result of the attack on the masks of shadow models.
        runtime: device and precision.
        seed: seed of every draw.
        svc_records: at most so many members and non-members to fit the legacy attack on; `all`: no maximum; None: at
            most 10,000.
        svc_ratios: further ratios of members to non-members to fit it on.
        bound: measure the error bound of [Jia2023].

    Attributes:
        measured: the scores that were measured before, by name.
        missing: the reasons, by name, of scores that tables show as not measured.
    """

    def __init__(
        self,
        *,
        trained: Trained | None = None,
        request: ForgetRequest | None = None,
        records: Records | None = None,
        parts: Parts | Callable[[], Parts] | None = None,
        cost: Cost | None = None,
        reference: Scores | None = None,
        retrained_parts: Parts | Callable[[], Parts] | None = None,
        original: Trained | Callable[[], Trained] | None = None,
        retrained: Trained | Callable[[], Trained] | None = None,
        outcome: Mapping[str, Any] | None = None,
        original_mask: Mask | None = None,
        reference_mask: Mask | None = None,
        shadow_masks: ShadowMasks | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        svc_records: int | Literal["all"] | None = None,
        svc_ratios: Sequence[str] = (),
        bound: bool = False,
    ) -> None:
        self.runtime, self.seed, self.svc_records = runtime, seed, svc_records
        self.measured: dict[str, Score] = {}
        self.missing: dict[str, str] = {}
        given = {
            "trained": trained, "request": request, "records": records, "parts": parts, "cost": cost,
            "reference": reference, "retrained_parts": retrained_parts,
            "original": original, "retrained": retrained, "outcome": outcome,
            "original_mask": original_mask, "reference_mask": reference_mask, "shadow_masks": shadow_masks,
            "mask": None if trained is None else trained.mask,
            "svc_ratios": tuple(svc_ratios) or None, "bound": bound or None,
        }  # fmt: skip
        if trained is not None and request is not None and records is not None:
            given["records"] = get_values_before(records, trained.split, request)
            if request.correction is not None:  # the proposition is about removed records
                given["bound"] = None
        self._given: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._made: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"ScoreInputs({', '.join(self._given)})"

    def has(self, need: str) -> bool:
        """Whether there is what a need stands for (a key of `expunge.evaluation.facts.NEEDS`)."""
        if any(name not in self._given for name in _ARGUMENTS[need]):
            return False
        if need in PLANTINGS:
            return self.records.planted is not None and self.records.planted.by == need
        return need != "patches" or "patches" in self.trained.state

    def describe(self, need: str) -> str:
        """What a need stands for, in words."""
        return NEEDS[need]

    def once(self, compute: Callable[[ScoreInputs], T]) -> T:
        """Return `compute(self)`, computed on the first call: for numbers that several scores are made from."""
        if compute not in self._made:
            self._made[compute] = compute(self)
        found: T = self._made[compute]
        return found

    def _get(self, name: str) -> Any:
        if name not in self._given:
            needs = [need for need, names in _ARGUMENTS.items() if name in names]
            raise ConfigError(
                f"inputs.{name} was not given",
                hint=f"a score that reads it declares it: needs=({needs[0]!r},)",
            )
        value = self._given[name]
        if callable(value) and name in ("parts", "retrained_parts", "original", "retrained"):
            value = self._given[name] = value()
        return value

    @property
    def parts(self) -> Parts:
        """Predictions of the model by part of the split (`predictions`)."""
        found: Parts = self._get("parts")
        return found

    @property
    def trained(self) -> Trained:
        """The model that is scored (`model`)."""
        found: Trained = self._get("trained")
        return found

    @property
    def request(self) -> ForgetRequest:
        """D_f (`model`)."""
        found: ForgetRequest = self._get("request")
        return found

    @property
    def records(self) -> Records:
        """The records of the split with their values before the request (`model`)."""
        found: Records = self._get("records")
        return found

    @property
    def cost(self) -> Cost:
        """The cost of the method (`cost`)."""
        found: Cost = self._get("cost")
        return found

    @property
    def reference(self) -> Scores:
        """The scores of the retrained reference (`reference`)."""
        found: Scores = self._get("reference")
        return found

    @property
    def retrained_parts(self) -> Parts:
        """Predictions of the retrained model by part of the split, of the same records (`retrained`)."""
        found: Parts = self._get("retrained_parts")
        return found

    @property
    def mask(self) -> Mask:
        """The mask of the model (`masks`)."""
        found: Mask = self._get("mask")
        return found

    @property
    def original_mask(self) -> Mask:
        """The mask of the original model (`masks`)."""
        found: Mask = self._get("original_mask")
        return found

    @property
    def reference_mask(self) -> Mask:
        """The mask of a reference that was pruned again without D_f (`masks`)."""
        found: Mask = self._get("reference_mask")
        return found

    @property
    def original(self) -> Trained:
        """The original model (`models`)."""
        found: Trained = self._get("original")
        return found

    @property
    def retrained(self) -> Trained:
        """The retrained model (`models`)."""
        found: Trained = self._get("retrained")
        return found

    @property
    def has_outcome(self) -> bool:
        """Whether the body of outcome.json was given."""
        return "outcome" in self._given

    @property
    def outcome(self) -> Mapping[str, Any]:
        """The body of outcome.json: method, options, history (`models`)."""
        found: Mapping[str, Any] = self._get("outcome")
        return found

    @property
    def shadow_masks(self) -> ShadowMasks:
        """The result of the attack on the masks of shadow models (`shadow masks`)."""
        found: ShadowMasks = self._get("shadow_masks")
        return found

    @property
    def svc_ratios(self) -> tuple[str, ...]:
        """Further ratios of members to non-members (`svc_ratios`)."""
        found: tuple[str, ...] = self._get("svc_ratios")
        return found
