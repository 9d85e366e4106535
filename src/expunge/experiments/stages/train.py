"""Stage `train`: train the dense model."""

from __future__ import annotations

from pathlib import Path

from expunge.models import save_trained
from expunge.training.train import train

from .registry import StageInputs, register_stage
from .stage_inputs import (
    hash_trained,
    make_stage_architecture,
    make_stage_recipe,
    make_stage_runtime,
    make_stage_split,
    read_stage_records,
)


@register_stage("train", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Train a dense model and save it."""
    records = read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    trained = train(
        records,
        split,
        make_stage_architecture(inputs, records, split),
        recipe=make_stage_recipe(inputs),
        seed=inputs.config["seed"],
        runtime=make_stage_runtime(inputs),
        checkpoint=inputs.work_dir / "train.safetensors",
        progress=inputs.progress,
    )
    save_trained(trained, out)
    return hash_trained(trained)
