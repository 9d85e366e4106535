"""Stage `train`: the split, the architecture and the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.data import make_split
from expunge.models import architecture, write_trained
from expunge.training.recipes import recipe
from expunge.training.train import train

from .stage_support import job_records, job_runtime, trained_hash

if TYPE_CHECKING:
    from .stages import Job


def run(job: Job, out: Path) -> str:
    """Train a dense model and save it."""
    config = job.config
    records = job_records(job)
    split = make_split(records, **config["split"])
    model = config["model"]
    overrides = {key: value for key, value in config["training"].items() if key != "recipe"}
    trained = train(
        records,
        split,
        architecture(model["name"], records, split, normalise=model["normalise"], **model["options"]),
        recipe=recipe(config["training"]["recipe"], **overrides),
        seed=config["seed"],
        runtime=job_runtime(job),
        checkpoint=job.work / "train.safetensors",
        progress=job.progress,
    )
    write_trained(trained, out)
    return trained_hash(trained)
