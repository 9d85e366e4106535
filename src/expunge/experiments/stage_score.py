"""Stage `score`: the scores of an unlearned model beside those of its reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.files import read_json
from expunge.core.hashing import hash_json
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.core.split import as_ids
from expunge.evaluation import Scores, evaluate
from expunge.models import load_trained

from .stage_support import job_records, job_runtime

if TYPE_CHECKING:
    from .stages import Job


def run(job: Job, out: Path) -> str:
    """Score the model of the forget stage against its request."""
    outcome = read_json(job.inputs["outcome"] / "outcome.json", "expunge.outcome", 1)
    asked, cost = outcome["request"], outcome["cost"]
    request = ForgetRequest(
        as_ids(asked["record_ids"]), selection=asked["selection"], forgotten_class=asked["forgotten_class"]
    )
    reference = job.inputs.get("reference")
    scores = evaluate(
        load_trained(job.inputs["outcome"]),
        request,
        job_records(job),
        reference=None if reference is None else Scores.load(reference / "scores.json"),
        cost=Cost(cost["trained_records"], cost["forward_records"], cost["retain_records"], cost["seconds"]),
        runtime=job_runtime(job),
        seed=job.config["seed"],
        **job.config["evaluation"],
    )
    scores.save(out / "scores.json")
    return hash_json({score.name: score.value for score in scores if score.name != "RTE"})
