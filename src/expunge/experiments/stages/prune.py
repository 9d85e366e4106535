"""Stage `prune`: from the dense model to a sparse one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.models import load_trained, write_trained
from expunge.sparsity import prune

from .job_inputs import job_records, job_runtime, trained_hash

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Prune the model of the train stage and save the sparse one."""
    pruned = prune(
        load_trained(job.inputs["trained"]),
        job_records(job),
        **job.config["sparsity"],
        runtime=job_runtime(job),
        seed=job.config["seed"],
        checkpoint=job.work / "prune.safetensors",
        progress=job.progress,
    )
    write_trained(pruned, out)
    return trained_hash(pruned)
