"""Stage `sides`: many models trained with D_f and as many without, for topology leakage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.files import write_json, write_tensors
from expunge.core.hashing import hash_json, hash_tensors
from expunge.evaluation.leakage import draw_shadow_members, train_shadow_models

from .job_inputs import job_architecture, job_recipe, job_records, job_request, job_runtime, job_split

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Train both sides and keep their stacked states."""
    config, records = job.config, job_records(job)
    split = job_split(job, records)
    request = job_request(job, records, split)
    blueprint = job_architecture(job, records, split)
    members = draw_shadow_members(records, split, request, seed=config["seed"], **config["sides"])
    trained = train_shadow_models(
        records, blueprint, members, recipe=job_recipe(job), runtime=job_runtime(job), progress=job.progress
    )
    write_tensors(out / "states.safetensors", trained.states)
    write_json(out / "request.json", "expunge.sides", 1, {"request": request.to_json()})
    return hash_json({"states": hash_tensors(trained.states), "request": request.hash})
