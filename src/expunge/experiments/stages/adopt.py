"""Stage `adopt`: a model that was trained elsewhere, in the place of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.models import save_trained
from expunge.sparsity import PrunedBy, adopt_weights

from .job_inputs import job_architecture, job_recipe, job_records, job_split, trained_hash

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Read weights and mask in whatever form, check that they fit, and save them with the configured recipe."""
    records = job_records(job)
    split = job_split(job, records)
    model = job.config["model"]
    told = model["pruned"]
    trained = adopt_weights(
        job_architecture(job, records, split),
        model["weights"],
        records,
        split,
        mask=model["mask"],
        pruned=None if told is None else PrunedBy(told["criterion"], told["scope"], tuple(told["layers"])),
        recipe=job_recipe(job).to_json(),
    )
    save_trained(trained, out)
    return trained_hash(trained)
