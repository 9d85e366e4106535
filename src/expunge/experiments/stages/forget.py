"""Stage `forget`: one method, one request, one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import RequestError
from expunge.core.files import write_json
from expunge.core.memory import measure_peak_memory
from expunge.core.seeds import derive
from expunge.methods.base import Context, get_method
from expunge.models import load_trained, write_trained

from .job_inputs import job_records, job_request, job_runtime, trained_hash

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Forget, and save the unlearned model and the outcome.

    Raises:
        RequestError: the forget set is empty.
    """
    config = job.config
    records = job_records(job)
    trained = load_trained(job.inputs["trained"])
    request = job_request(job, records, trained.split)
    if len(request.record_ids) == 0:
        raise RequestError("the forget set is empty", where=str(config["forget"]), hint="there is nothing to compare")
    method = get_method(config["method"]["name"], **config["method"]["options"])
    context = Context(
        records=records,
        runtime=job_runtime(job),
        seed=derive(config["seed"], "forget"),
        checkpoint=job.work / "forget.safetensors",
        progress=job.progress,
    )
    with measure_peak_memory() as peak:
        outcome = method.forget(trained, request, context)
    if peak:
        outcome = dataclasses.replace(outcome, cost=dataclasses.replace(outcome.cost, memory_mib=round(peak[0], 1)))
    write_trained(outcome.trained, out)
    write_json(out / "outcome.json", "expunge.outcome", 2, outcome.to_json())
    return trained_hash(outcome.trained)
