"""Stage `score`: the scores of an unlearned model beside those of its reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import read_json, write_json
from expunge.core.hashing import hash_json
from expunge.core.mask import Mask
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.evaluation import Score, Scores, compute_confidence_histogram, evaluate, predict_parts, tabulate_classes
from expunge.evaluation.score import MACHINE_DEPENDENT
from expunge.evaluation.scores.patches import score_patches
from expunge.evaluation.scores.topology import score_topology
from expunge.models import load_trained

from .job_inputs import job_records, job_runtime

if TYPE_CHECKING:
    from expunge.core.trained import Trained

    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Score the model of the forget stage against its request."""
    outcome = read_json(job.inputs["outcome"] / "outcome.json", "expunge.outcome", 2)
    request = ForgetRequest.from_json(outcome["request"])
    cost = Cost(**{key: value for key, value in outcome["cost"].items() if key != "passes"})
    reference = job.inputs.get("reference")
    trained = load_trained(job.inputs["outcome"])
    scores = score_into(
        out,
        trained,
        request,
        job,
        reference=None if reference is None else Scores.load(reference / "scores.json"),
        cost=cost,
        further=(
            *_topology(trained, job),
            *_patching(trained, request, job, cost),
            *_bound(trained, request, outcome, job),
        ),
    )
    return hash_json({score.name: score.value for score in scores if score.name not in MACHINE_DEPENDENT})


def _patching(trained: Trained, request: ForgetRequest, job: Job, cost: Cost) -> tuple[Score, ...]:
    """Scores of certified patches, where the model has any."""
    if "patches" not in trained.state:
        return ()
    return score_patches(trained, request, job_records(job), cost=cost, seed=job.config["seed"])


def _topology(trained: Trained, job: Job) -> tuple[Score, ...]:
    """Scores of the mask, where the reference's was made anew from D_r."""
    if trained.mask is None or "reference_outcome" not in job.inputs:
        return ()
    reference = job.inputs["reference_outcome"]
    if "mask" not in read_json(reference / "outcome.json", "expunge.outcome", 2)["state"]["rewrote"]:
        return ()
    masks = [Mask.load(job_input / "mask.safetensors") for job_input in (job.inputs["original"], reference)]
    return score_topology(trained.mask, *masks)


def _bound(trained: Trained, request: ForgetRequest, outcome: Mapping[str, Any], job: Job) -> tuple[Score, ...]:
    """The factors of paper A's error bound, where they were asked for."""
    if not job.config["evaluation"]["bound"]:
        return ()
    from expunge.evaluation.scores.error_bound import score_error_bound

    original, retrained = (load_trained(job.inputs[name]) for name in ("original", "reference_outcome"))
    return score_error_bound(trained, original, retrained, request, job_records(job), outcome=outcome)


def score_into(
    out: Path,
    trained: Trained,
    request: ForgetRequest,
    job: Job,
    *,
    reference: Scores | None,
    cost: Cost | None = None,
    further: tuple[Score, ...] = (),
) -> Scores:
    """Score a model, and add `further` scores.

    `out` gets scores.json, and details.json with what a report draws (docs/formats/details.md).
    """
    records, runtime = job_records(job), job_runtime(job)
    options = {key: value for key, value in job.config["evaluation"].items() if key != "bound"}
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
        **options,
    )
    scores = scores.with_scores(further)
    scores.save(out / "scores.json")
    details = {
        "confidence": compute_confidence_histogram(parts),
        "classes": tabulate_classes(parts),
        "density": {} if trained.mask is None else trained.mask.layer_density(),
    }
    write_json(out / "details.json", "expunge.details", 2, details)
    return scores
