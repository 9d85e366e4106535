"""Suites of scores: the scores of [Jia2023] (suite `legacy`), and `evaluate`, which scores a model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from expunge.core.errors import ConfigError, RequestError
from expunge.core.hashing import hash_json, hash_training_set
from expunge.core.outcome import Cost, describe_stand_in
from expunge.core.request import ForgetRequest
from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.data.quality import Copies, count_copies, describe_copies, find_cautions
from expunge.data.records import Records

from .facts import list_ratios
from .predictions import Parts, Predictor, predict_parts, select_scored_ids
from .registry.inputs import ScoreInputs
from .registry.measure import find_scores, measure_score, measure_scores
from .registry.reference_checks import SAME_RECORDS, check_same_retain, check_unchanged, find_import, list_warnings
from .score import NO_REFERENCE, Score, Scores, describe_shared_subjects

if TYPE_CHECKING:
    from expunge.training import Runtime


#: The scores of [Jia2023] without the disparity average.
_LEGACY = ("UA", "100-RA", "RA", "TA", "MIA-Efficacy", "MIA-Privacy", "RTE", "Passes")


def score_legacy(
    parts: Parts, *, cost: Cost | None = None, svc_records: int | Literal["all"] | None = None
) -> tuple[Score, ...]:
    """Score a model by the metrics of [Jia2023]: UA, 100-RA, RA, TA, MIA-Efficacy, MIA-Privacy; RTE and Passes.

    The attack's non-members are test records, as in the paper. The disparity average needs a reference, so `evaluate`
    adds it.

    Args:
        parts: predictions of the model.
        cost: cost of the method; None: no RTE and no passes.
        svc_records: at most so many members and non-members to fit the attack on; `all`: all, as in the paper; None:
            at most 10,000.

    Raises:
        DataError: there are no retain records for the attack.
        ConfigError: `svc_records` is below 2.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Parts, Predictions, score_legacy
        >>> def predict(labels, probability, prefix):
        ...     logits = np.log([[p, 1 - p] if y == 0 else [1 - p, p] for y, p in zip(labels, probability)])
        ...     return Predictions(logits, np.array(labels), np.array([f"{prefix}{i}" for i in range(len(labels))]))
        >>> trained_on = predict([0, 1, 0, 1], [0.99, 0.98, 0.97, 0.96], "a")
        >>> others = predict([0, 1, 0, 1], [0.6, 0.7, 0.4, 0.3], "b")
        >>> parts = Parts(others, trained_on, others, others, others, class_names=("cat", "dog"))
        >>> scores = {score.name: score.value for score in score_legacy(parts)}
        >>> scores["UA"], scores["RA"], scores["MIA-Efficacy"]
        (50.0, 100.0, 100.0)
    """
    inputs = ScoreInputs(parts=parts, cost=cost, svc_records=svc_records)
    found = (measure_score(name, inputs) for name in _LEGACY)
    return tuple(score for score in found if isinstance(score, Score))


def evaluate(
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    *,
    reference: Scores | Trained | None = None,
    cost: Cost | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    svc_records: int | Literal["all"] | None = None,
    svc_ratios: Sequence[str] = (),
    scores: Sequence[str] = (),
    predict: Predictor | None = None,
    parts: Parts | Callable[[], Parts] | None = None,
) -> Scores:
    """Score a model against a forget request: the scores of [Jia2023] and the AUC on the non-member pool.

    `trained` may be the original, an unlearned or a retrained model; D_r is always retain minus D_f. Predictions are
    made without augmentation, in evaluation mode. docs/scores.md defines every score. Scores of test records or of the
    non-member pool are not measured if the split has none (`Scores.missing`).

    Args:
        trained: the model to score.
        request: D_f.
        records: the records of the split.
        reference: the retrained model of the same sparsity, or its scores; gives every score a gap.
        cost: cost of the method; adds RTE and passes.
        runtime: device and precision.
        seed: seed of the draw from the non-member pool and of the bootstrap.
        svc_records: at most so many members and non-members to fit the legacy attack on; `all`: all, as in [Jia2023];
            None: at most 10,000.
        svc_ratios: further ratios of members to non-members to fit the legacy attack on (`list_ratios` in
            `expunge.evaluation.facts`).
        scores: further scores: names of plug-ins, of built-in scores that are measured on request, or
            `package.module:name` (docs/adding-a-score.md).
        predict: computes logits; None: `expunge.training.predict_logits`.
        parts: predictions of `trained`, if the caller has them already (`predict_parts`), or a function that
            computes them.

    Raises:
        RequestError: the request is empty or does not fit the split; or the reference was trained on D_f, or belongs to
            another request or split.
        ConfigError: the reference was scored with other options.
        ModelError: the model returns logits of the wrong shape, or logits that are not finite.

    Examples:
        >>> import expunge
        >>> from expunge.core.trained import Provenance
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records)
        >>> model = expunge.architecture("mlp", records, split, widths=(8,)).build(0)  # untrained
        >>> request = expunge.forget_random(records, split, count=20)
        >>> runtime = expunge.Runtime("cpu")
        >>> retrained = expunge.Trained(model, None, request.apply(split), Provenance({}))
        >>> reference = expunge.evaluate(retrained, request, records, runtime=runtime, svc_records=20)
        >>> original = expunge.Trained(model, None, split, Provenance({}))  # the same weights here, so no gap
        >>> scores = expunge.evaluate(
        ...     original, request, records, reference=reference, runtime=runtime, svc_records=20
        ... )
        >>> scores["UA"].unit, scores["UA"].gap, scores["Disparity average"].value
        ('%', 0.0, 0.0)
    """
    retrained_parts: Callable[[], Parts] | None = None
    if isinstance(reference, Trained):
        retrained = reference
        check_same_retain(trained, retrained, request)
        retrained_parts = functools.cache(
            lambda: predict_parts(retrained, request, records, runtime=runtime, predict=predict)
        )
        reference = evaluate(
            retrained,
            request,
            records,
            runtime=runtime,
            seed=seed,
            svc_records=svc_records,
            svc_ratios=svc_ratios,
            scores=scores,
            predict=predict,
            parts=retrained_parts,
        )
    inputs = ScoreInputs(
        trained=trained,
        request=request,
        records=records,
        parts=parts or (lambda: predict_parts(trained, request, records, runtime=runtime, predict=predict)),
        cost=cost,
        reference=reference,
        retrained_parts=retrained_parts,
        runtime=runtime,
        seed=seed,
        svc_records=svc_records,
        svc_ratios=svc_ratios,
    )
    return evaluate_inputs(inputs, scores)


def evaluate_inputs(
    inputs: ScoreInputs, names: Sequence[str] = (), *, original: tuple[Trained, Parts] | None = None
) -> Scores:
    """Score a model from all that is known of it: every built-in score whose needs are met, and further ones by name.

    Args:
        inputs: the model, the request, the records, and what else is known (masks, original, outcome, ...).
        names: further scores, as in `evaluate`.
        original: the original model and its predictions, if the scored model is its retrained reference: it is compared
            with the original (`warnings` of the scores).

    Raises:
        ExpungeError: see `evaluate`.
    """
    reference = inputs.reference if inputs.has("reference") else None
    ratios = inputs.svc_ratios if inputs.has("svc_ratios") else ()
    for ratio in ratios:
        if ratio not in list_ratios():
            hint = f"known: {', '.join(list_ratios())}"
            raise ConfigError(f"unknown ratio {ratio!r}", where="svc_ratios", hint=hint)
    names = [found.name for found in find_scores(names)]
    about = _describe_run(inputs)
    if ratios:
        about["svc_ratios"] = list(ratios)
    if names:
        about["scores"] = names
    if reference is not None:
        _check_reference(about, reference)
    about["counts"] = {**inputs.parts.counts(), "legacy_test": _count_test(inputs)}
    copies = _count_copies(inputs.parts, inputs.records)
    about["copies"] = copies.to_json()
    shared = _count_shared_subjects(inputs.parts, inputs.records)
    if shared is not None:
        about["shared_subjects"] = shared
    found, missing = measure_scores(inputs, names)
    notes = (
        *_describe_correction(inputs.request),
        *_describe_absence(inputs),
        *_describe_reference(about, reference),
        *missing,
        *_describe_limit(inputs, about["svc_records"]),
        *_describe_subjects(about, inputs.request),
        *_describe_data(inputs.records, copies),
    )
    if reference is not None:
        about["reference"] = {key: reference.about.get(key) for key in ("weights", "sparsity")}
    warnings = list_warnings(
        inputs.trained, inputs.parts, about, {score.name: score for score in found}, reference, original
    )
    if inputs.has_outcome:
        warnings = (*check_unchanged(inputs.outcome), *warnings)
    return Scores(tuple(found), about, notes, warnings, dict(inputs.missing))


def _describe_run(inputs: ScoreInputs) -> dict[str, Any]:
    trained, request = inputs.trained, inputs.request
    scored = select_scored_ids(trained.split, request)
    split, trained_on = trained.split, trained.provenance.trained_on
    retrained = trained_on == hash_training_set(split.retain, (c.hash for c in split.corrections))
    return {
        "suite": "legacy",
        "request": request.hash,
        "forgotten_class": request.forgotten_class,
        "forgotten": _is_forgotten(trained, request),
        **({"retrained": retrained, "made": trained.provenance.history[-1]} if trained_on else {}),
        **({"imported": found} if (found := find_import(trained)) else {}),
        **({"recorded": list(trained.provenance.recorded)} if found and trained.provenance.recorded else {}),
        "base_split": trained.split.base_hash,
        "retain": hash_json(sorted(scored["retain"].tolist())),
        "counts": {"retain": len(scored["retain"])},
        "data": inputs.records.name,
        "weights": trained.hash,
        "sparsity": 0.0 if trained.mask is None else round(trained.mask.sparsity, 6),
        "seed": inputs.seed,
        "svc_records": _choose_limit(inputs),
    }


def _is_forgotten(trained: Trained, request: ForgetRequest) -> bool:
    """Whether no record of the request is in the retain set, or the correction was made."""
    if request.correction is not None:
        return request.is_applied(trained.split)
    return not bool(np.isin(request.record_ids, trained.split.retain).any())


def _describe_correction(request: ForgetRequest) -> list[str]:
    """What the scores of a correction measure."""
    if request.correction is None:
        return []
    count = plural(len(request.record_ids), "record")
    return [
        f"the request corrects the {request.correction.describe()} of {count}, which stay in training: UA and "
        "the attacks are measured on their old values, Corrected on the new ones, RA on the unchanged training records"
    ]


def _describe_absence(inputs: ScoreInputs) -> list[str]:
    """Notes where the records of D_r are absent: what is not known, and the stand-in that the method read."""
    if not inputs.trained.split.retain_absent:
        return []
    notes = ["the records of D_r are absent: no score measures them, and no reference was retrained"]
    stand_in = inputs.outcome.get("retain", {}).get("stand_in") if inputs.has_outcome else None
    if stand_in:
        notes.append(f"the method read a stand-in instead of D_r: {describe_stand_in(stand_in)}")
    return notes


def _choose_limit(inputs: ScoreInputs) -> int | None:
    """At most so many members and non-members, to fit the legacy attack on; None: all."""
    from .scores.membership import choose_svc_records

    return choose_svc_records(inputs.svc_records, _count_test(inputs))


def _count_test(inputs: ScoreInputs) -> int:
    """The number of test records of the legacy scores."""
    return len(inputs.parts.legacy_test) if inputs.parts.has_test else 0


def _describe_limit(inputs: ScoreInputs, limit: int | None) -> list[str]:
    """A note if the legacy attack was not fitted on all records although nobody asked for that."""
    if limit is None or inputs.svc_records is not None:
        return []
    count = _count_test(inputs)
    return [
        f"the legacy attack was fitted on at most {limit:,} members and {limit:,} non-members of the {count:,} that "
        "[Jia2023] would use, because the time of a fit grows with the square of their number; "
        "evaluation.svc_records=all uses all"
    ]


def _check_reference(about: dict[str, Any], reference: Scores) -> None:
    """Raise an error if the gaps to this reference would be meaningless."""
    reference_about = reference.about
    for key, what in (("request", "another forget request"), ("base_split", "another split")):
        if reference_about.get(key) != about[key]:
            raise RequestError(
                f"the reference was scored for {what}", where="reference", hint="retrain and score for this request"
            )
    counts = [of.get("counts", {}).get("retain") for of in (reference_about, about)]
    same = (
        reference_about["retain"] == about["retain"] if "retain" in reference_about else counts[0] in (None, counts[1])
    )
    if not same:
        raise RequestError(
            f"the reference has another retain set: {counts[0]} records beside {counts[1]}",
            where="reference",
            hint=SAME_RECORDS,
        )
    if not reference_about.get("forgotten"):
        raise RequestError(
            "the reference was trained on D_f",
            where="reference",
            hint="use a model retrained on D_r only",
        )
    for key in ("svc_records", "svc_ratios", "seed"):
        if reference_about.get(key) != about.get(key):
            raise ConfigError(
                f"the reference was scored with {key} = {reference_about.get(key)}, not {about.get(key)}",
                where="reference",
                hint="score both with the same options",
            )


def _count_copies(parts: Parts, records: Records) -> Copies:
    rows = {name: records.rows(getattr(parts, name).record_ids) for name in ("forget", "retain", "non_members")}
    return count_copies(records, rows.pop("forget"), rows)


def _describe_data(records: Records, copies: Copies) -> list[str]:
    """Notes on the data: copies of D_f, and what may be wrong with the records."""
    return [
        *(f"{line}: the scores of these records measure their copies too" for line in describe_copies(copies)),
        *(f"{records.name}: {caution.message}" for caution in find_cautions(records)),
    ]


def _describe_reference(about: dict[str, Any], reference: Scores | None) -> list[str]:
    if reference is None:
        return [NO_REFERENCE]
    if abs(float(reference.about.get("sparsity", 0.0)) - about["sparsity"]) > 0.005:
        return [
            f"the reference has sparsity {reference.about.get('sparsity')}, this model {about['sparsity']}: "
            "gaps reflect pruning as well as forgetting"
        ]
    return []


def _count_shared_subjects(parts: Parts, records: Records) -> dict[str, int] | None:
    """The number of test records and of non-members of subjects of D_f; None: the records have no subjects."""
    if records.subject_ids is None:
        return None
    forgotten = records.subject_ids[records.rows(parts.forget.record_ids)]
    others = {"test": parts.test, "non_members": parts.non_members}
    return {
        name: int(np.isin(records.subject_ids[records.rows(part.record_ids)], forgotten).sum())
        for name, part in others.items()
    }


def _describe_subjects(about: Mapping[str, Any], request: ForgetRequest) -> list[str]:
    """A note on the subjects of test records and non-members; that D_f is some records of each of them is no news."""
    shared, counts = about.get("shared_subjects"), about["counts"]
    if shared is None or not counts["test"] + counts["non_members"]:
        return []
    if not any(shared.values()):
        return [
            "the non-members are other subjects than those of D_f, so the attacks measure differences between "
            "subjects as well as membership; compare only gaps to the reference"
        ]
    if request.selection.get("by") != "subjects":
        return []
    return [
        f"of the forgotten subjects, the model was not trained on {describe_shared_subjects(shared)}: there was "
        "nothing to forget of these, and the attacks count them as non-members"
    ]
