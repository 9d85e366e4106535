"""Stage `score`: the scores of an unlearned model beside those of its reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.files import read_json, write_json
from expunge.core.hashing import hash_json
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.evaluation import Scores, class_table, confidence_histogram, evaluate, predict_parts
from expunge.models import load_trained

from .stage_support import job_records, job_runtime

if TYPE_CHECKING:
    from expunge.core.trained import Trained

    from .stages import Job


def run(job: Job, out: Path) -> str:
    """Score the model of the forget stage against its request."""
    outcome = read_json(job.inputs["outcome"] / "outcome.json", "expunge.outcome", 1)
    request, cost = ForgetRequest.from_json(outcome["request"]), outcome["cost"]
    reference = job.inputs.get("reference")
    scores = score_into(
        out,
        load_trained(job.inputs["outcome"]),
        request,
        job,
        reference=None if reference is None else Scores.load(reference / "scores.json"),
        cost=Cost(cost["trained_records"], cost["forward_records"], cost["retain_records"], cost["seconds"]),
    )
    return hash_json({score.name: score.value for score in scores if score.name != "RTE"})


def score_into(
    out: Path,
    trained: Trained,
    request: ForgetRequest,
    job: Job,
    *,
    reference: Scores | None,
    cost: Cost | None = None,
) -> Scores:
    """Score a model; `out` gets scores.json, and details.json with what a report draws (docs/formats/details.md)."""
    records, runtime = job_records(job), job_runtime(job)
    parts = predict_parts(trained, request, records, runtime=runtime)
    scores = evaluate(
        trained,
        request,
        records,
        reference=reference,
        cost=cost,
        runtime=runtime,
        seed=job.config["seed"],
        parts=parts,
        **job.config["evaluation"],
    )
    scores.save(out / "scores.json")
    details = {
        "confidence": confidence_histogram(parts),
        "classes": class_table(parts),
        "density": {} if trained.mask is None else trained.mask.layer_density(),
    }
    write_json(out / "details.json", "expunge.details", 1, details)
    return scores
