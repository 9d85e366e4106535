"""Stage `train`: the split, the architecture and the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.models import save_trained
from expunge.training.train import train

from .job_inputs import job_architecture, job_recipe, job_records, job_runtime, job_split, trained_hash

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Train a dense model and save it."""
    records = job_records(job)
    split = job_split(job, records)
    trained = train(
        records,
        split,
        job_architecture(job, records, split),
        recipe=job_recipe(job),
        seed=job.config["seed"],
        runtime=job_runtime(job),
        checkpoint=job.work / "train.safetensors",
        progress=job.progress,
    )
    save_trained(trained, out)
    return trained_hash(trained)
