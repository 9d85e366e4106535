"""Stage `before`: the scores of the original model for a request, beside those of the retrained reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.hashing import hash_json
from expunge.evaluation import Scores
from expunge.models import load_trained

from .job_inputs import job_records, job_request
from .score import score_into

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Score the model as it was before the request."""
    trained = load_trained(job.inputs["trained"])
    request = job_request(job, job_records(job), trained.split)
    reference = Scores.load(job.inputs["reference"] / "scores.json")
    scores = score_into(out, trained, request, job, reference=reference)
    return hash_json({score.name: score.value for score in scores})
