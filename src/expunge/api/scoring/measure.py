"""Scores of models in this process: what the stages of a run do with files."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from expunge.core.errors import ConfigError, ExpungeWarning, unknown_name_hint
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.show import repr_fields
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.evaluation import Parts, Scores, compute_confidence_histogram, predict_parts, tabulate_classes
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.registry.reference_checks import check_same_retain
from expunge.evaluation.suites import evaluate_inputs
from expunge.report import Measured

if TYPE_CHECKING:
    from expunge.training import Runtime


@dataclasses.dataclass(eq=False)
class Scored:
    """A model of which predictions are computed once for each request.

    Attributes:
        trained: the model.
        records: the records.
        runtime: device and precision.
    """

    trained: Trained
    records: Records
    runtime: Runtime
    _parts: dict[str, Parts] = dataclasses.field(default_factory=dict, repr=False)

    __repr__ = repr_fields

    def predict(self, request: ForgetRequest) -> Parts:
        """Predictions by part of the split (`expunge.evaluation.predict_parts`)."""
        if request.hash not in self._parts:
            self._parts[request.hash] = predict_parts(self.trained, request, self.records, runtime=self.runtime)
        return self._parts[request.hash]

    def score(
        self,
        request: ForgetRequest,
        options: ScoreOptions,
        *,
        outcome: Outcome | None = None,
        reference: Scores | None = None,
        retrained: Scored | None = None,
        original: Scored | None = None,
    ) -> Scores:
        """Score the model for a request, as `expunge.evaluate` does.

        Args:
            request: D_f.
            options: of the scores.
            outcome: of the method that made the model: adds its cost.
            reference: the scores of the retrained reference.
            retrained: the reference, for scores that compare predictions.
            original: the model before the request, if this is the reference: they are compared (`Scores.warnings`).
        """
        parts: Callable[[], Parts] | None = None
        if retrained is not None:
            compared = retrained
            parts = lambda: compared.predict(request)  # noqa: E731
        inputs = ScoreInputs(
            trained=self.trained,
            request=request,
            records=self.records,
            parts=lambda: self.predict(request),
            cost=None if outcome is None else outcome.cost,
            outcome=None if outcome is None else outcome.to_json(),
            reference=reference,
            retrained_parts=parts,
            runtime=self.runtime,
            seed=options.seed,
            svc_records=options.svc_records,
            svc_ratios=options.svc_ratios,
        )
        before = None if original is None else (original.trained, original.predict(request))
        return evaluate_inputs(inputs, options.scores, original=before)

    def score_reference(
        self,
        retrained: Scored,
        request: ForgetRequest,
        options: ScoreOptions,
        original: Scored,
        made: Outcome | None = None,
    ) -> Scores:
        """Score the retrained reference of this model, after checking that it was trained on the same records.

        Args:
            retrained: the reference.
            request: D_f.
            options: of the scores.
            original: the model before the request.
            made: of the method that made the reference: adds its cost.

        Raises:
            RequestError: the reference was trained on other records; the message names them.
        """
        check_same_retain(self.trained, retrained.trained, request)
        return retrained.score(request, options, outcome=made, original=original)

    def measure(self, request: ForgetRequest, scores: Scores, outcome: Outcome | None = None) -> Measured:
        """What the report shows of the model."""
        parts, mask = self.predict(request), self.trained.mask
        details: Mapping[str, Any] = {
            "confidence": compute_confidence_histogram(parts),
            "classes": tabulate_classes(parts),
            "density": {} if mask is None else mask.layer_density(),
        }
        hashes = {"weights": self.trained.hash, "mask": None if mask is None else mask.hash()}
        return Measured(scores, details, {} if outcome is None else outcome.to_json(), hashes)


def warn_of_reference(scores: Scores) -> Scores:
    """Return the scores; warn the caller of the caller if their reference is known not to be retrained."""
    for warning in scores.warnings:
        if warning.code == "reference-not-retrained":
            warnings.warn(warning.message, ExpungeWarning, stacklevel=3)
    return scores


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Options of the scores; see `expunge.evaluate`.

    Attributes:
        seed: of the draw from the non-member pool and of the bootstrap.
        svc_records: at most so many members and non-members to fit the attack of [Jia2023] on; `all`; None: 10,000.
        svc_ratios: further ratios of members to non-members.
        scores: further scores by name.
    """

    seed: int = 0
    svc_records: int | Literal["all"] | None = None
    svc_ratios: Sequence[str] = ()
    scores: Sequence[str] = ()

    __repr__ = repr_fields

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ScoreOptions:
        """Make the options from keyword arguments.

        Raises:
            ConfigError: an option is unknown.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"scores have no option {name!r}", hint=unknown_name_hint(name, known))
        return cls(**options)
