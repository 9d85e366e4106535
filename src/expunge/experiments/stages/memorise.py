"""Stage `memorise`: the training records, the most memorised first, ranked by an ensemble of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.files import write_json
from expunge.core.hashing import hash_json
from expunge.training.ensemble.memorised import measure_held_out_losses

from .job_inputs import job_architecture, job_recipe, job_records, job_runtime, job_split

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Train the ensemble and rank the retained records by their held-out loss."""
    records = job_records(job)
    split = job_split(job, records)
    found = measure_held_out_losses(
        records,
        records.rows(split.retain),
        job_architecture(job, records, split),
        recipe=job_recipe(job),
        **job.config["memorised"],
        runtime=job_runtime(job),
        progress=job.progress,
    )
    ranking = records.record_ids[found.largest_first()].tolist()
    pairs = zip(records.record_ids[found.rows], found.losses, strict=True)
    losses = {str(name): round(float(loss), 6) for name, loss in pairs}
    write_json(out / "memorised.json", "expunge.memorised", 1, {"ranking": ranking, "held_out_loss": losses})
    return hash_json(ranking)
