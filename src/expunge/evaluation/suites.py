"""Suites: which scores are computed together, and the one call that does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.core.errors import ConfigError, RequestError
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.evaluation.scores.accuracy import accuracy_scores
from expunge.evaluation.scores.disparity import disparity_score
from expunge.evaluation.scores.membership import membership_scores, ratio_scores

from .auc import auc_scores
from .predictions import Parts, Predict, predict_parts
from .score import NO_REFERENCE, ORDER, Score, Scores

if TYPE_CHECKING:
    from expunge.training import Runtime


def cost_scores(cost: Cost) -> tuple[Score, ...]:
    """RTE in seconds and the passes of a method."""
    memory: tuple[Score, ...] = ()
    if cost.memory_mib is not None:
        text = "Peak resident memory of the process during the method above what it held when the method began."
        memory = (Score("Peak memory", float(cost.memory_mib), "MiB", "lower", text, "measured"),)
    return (
        Score(
            "RTE",
            float(cost.seconds),
            "s",
            "lower",
            "Run-time efficiency: wall-clock time of the method alone, without evaluation and reading of data.",
            "Jia et al., NeurIPS 2023 (there in minutes)",
        ),
        Score(
            "Passes",
            float(cost.passes),
            "passes",
            "lower",
            "Forward and backward passes over D_r: (records trained on + records only forwarded / 3) / |D_r|.",
            "a count that does not depend on the machine",
        ),
        *memory,
    )


def legacy_suite(parts: Parts, *, cost: Cost | None = None, svc_records: int | None = None) -> tuple[Score, ...]:
    """The scores of Jia et al. 2023: UA, 100-RA, RA, TA, MIA-Efficacy, MIA-Privacy, and with a cost RTE and Passes.

    The attack's non-members are test records, as in the paper. The disparity average needs a reference and is added by
    `evaluate`.
    """
    costs = () if cost is None else cost_scores(cost)
    return (*accuracy_scores(parts), *membership_scores(parts, svc_records=svc_records), *costs)


def evaluate(
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    *,
    reference: Scores | Trained | None = None,
    cost: Cost | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    svc_records: int | None = None,
    svc_ratios: Sequence[str] = (),
    predict: Predict | None = None,
    parts: Parts | None = None,
) -> Scores:
    """Score a model against a request: the `legacy` suite, and the balanced AUC on the unseen pool beside it.

    `trained` may be the original model (its split still has D_f in retain) or an unlearned or retrained one; D_r is
    always retain minus D_f.

    Args:
        trained: the model to score.
        request: D_f.
        records: the records of the split.
        reference: the retrained model of the same sparsity, or its scores; gives every score its gap.
        cost: what the method spent; adds RTE and passes.
        runtime: device and precision.
        seed: seed of the draw from the unseen pool and of the bootstrap.
        svc_records: cap on the shadow records of the legacy attack; None as in the paper.
        svc_ratios: members to non-members that the legacy attack is fitted on once more (`ratio_scores`).
        predict: what computes logits; `expunge.training.predict_logits` by default.
        parts: predictions of `trained` from `predict_parts`, where the caller has them already.

    Raises:
        RequestError: the request is empty, does not belong to the split, or the reference was trained on D_f or
            belongs to another request or split.
        ConfigError: the reference was scored with other options.
        DataError: the split has no test records.
        ModelError: the model returns logits of the wrong shape, or NaN.
    """
    if isinstance(reference, Trained):
        reference = evaluate(
            reference,
            request,
            records,
            runtime=runtime,
            seed=seed,
            svc_records=svc_records,
            svc_ratios=svc_ratios,
            predict=predict,
        )
    about = _about(trained, request, records, seed=seed, svc_records=svc_records)
    if svc_ratios:
        about["svc_ratios"] = list(svc_ratios)
    if reference is not None:
        _check_reference(about, reference)
    if parts is None:
        parts = predict_parts(trained, request, records, runtime=runtime, predict=predict)
    about["counts"] = {**parts.counts(), "legacy_test": len(parts.legacy_test)}
    found = [*legacy_suite(parts, cost=cost, svc_records=svc_records), *auc_scores(parts, seed=seed)]
    found += ratio_scores(parts, svc_ratios, svc_records=svc_records)
    scores = Scores(tuple(found), about, _notes(parts, records, about, reference, found))
    if reference is not None:
        scores = scores.with_reference(reference)
        keys = ("weights", "sparsity")
        scores = dataclasses.replace(
            scores, about={**about, "reference": {key: reference.about.get(key) for key in keys}}
        )
        disparity = disparity_score(scores)
        if disparity is not None:
            scores = dataclasses.replace(scores, scores=(*scores.scores, disparity))
    return dataclasses.replace(scores, scores=tuple(sorted(scores.scores, key=lambda score: ORDER.index(score.name))))


def _about(
    trained: Trained, request: ForgetRequest, records: Records, *, seed: int, svc_records: int | None
) -> dict[str, Any]:
    return {
        "suite": "legacy",
        "request": request.hash,
        "forgotten_class": request.forgotten_class,
        "forgotten": not bool(np.isin(request.record_ids, trained.split.retain).any()),
        "base_split": trained.split.base_hash,
        "data": records.name,
        "weights": trained.hash,
        "sparsity": 0.0 if trained.mask is None else round(trained.mask.sparsity, 6),
        "seed": seed,
        "svc_records": svc_records,
    }


def _check_reference(about: dict[str, Any], reference: Scores) -> None:
    """Refuse a reference that would make the gaps meaningless."""
    theirs = reference.about
    for key, what in (("request", "another forget request"), ("base_split", "another split")):
        if theirs.get(key) != about[key]:
            raise RequestError(
                f"the reference was scored for {what}", where="reference", hint="retrain and score for this request"
            )
    if not theirs.get("forgotten"):
        raise RequestError(
            "the reference was trained on the records to be forgotten",
            where="reference",
            hint="the reference is a model retrained on D_r only",
        )
    for key in ("svc_records", "svc_ratios", "seed"):
        if theirs.get(key) != about.get(key):
            raise ConfigError(
                f"the reference was scored with {key} = {theirs.get(key)}, not {about.get(key)}",
                where="reference",
                hint="score both with the same options",
            )


def _notes(
    parts: Parts, records: Records, about: dict[str, Any], reference: Scores | None, found: list[Score]
) -> tuple[str, ...]:
    notes = []
    names = {score.name for score in found}
    if reference is None:
        notes.append(NO_REFERENCE)
    elif abs(float(reference.about.get("sparsity", 0.0)) - about["sparsity"]) > 0.005:
        notes.append(
            f"the reference has sparsity {reference.about.get('sparsity')}, this model {about['sparsity']}: "
            "gaps mix forgetting and pruning"
        )
    if "AUC" not in names:
        notes.append("the unseen pool has no records of the classes of D_f: the AUC was not computed")
    if "MIA-Privacy" not in names:
        notes.append("too few retain or test records for MIA-Privacy")
    if records.subject_ids is not None:
        forgotten = set(records.subject_ids[records.rows(parts.forget.record_ids)].tolist())
        others = [records.subject_ids[records.rows(part.record_ids)] for part in (parts.test, parts.non_members)]
        if forgotten.isdisjoint(np.concatenate(others).tolist()):
            notes.append(
                "the non-members are other subjects than those of D_f: the attacks see persons as well as membership; "
                "read only gaps to the reference"
            )
    return tuple(notes)
