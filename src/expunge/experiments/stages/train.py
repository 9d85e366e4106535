"""Stage `train`: train the dense model."""

from __future__ import annotations

import importlib
from pathlib import Path

from expunge.core.errors import MethodError
from expunge.core.registry.custom_code import naming
from expunge.models import save_trained
from expunge.training.context import Context
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
    """Train a dense model, with the method's `fit` if it has one of its own, and save it."""
    records = read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    split.save(inputs.work_dir / "split.json")  # says which records a checkpoint saw
    architecture, recipe, runtime = (
        make_stage_architecture(inputs, records, split),
        make_stage_recipe(inputs),
        make_stage_runtime(inputs),
    )
    seed, checkpoint = inputs.config["seed"], inputs.work_dir / "train.safetensors"
    if "method" in inputs.config:  # a method that acts during training
        # by name, because the code of methods is part of the key of such stages alone (`scheduler.status`)
        method = importlib.import_module("expunge.experiments.objects.method").make_method(
            inputs.config["method"], drop_unused=True
        )
        context = Context(records, runtime, seed, checkpoint, inputs.progress)
        with naming("method", method.name, type(method), MethodError):
            trained = method.fit(records, split, architecture, recipe=recipe, context=context)
    else:
        trained = train(
            records, split, architecture, recipe=recipe, seed=seed, runtime=runtime, checkpoint=checkpoint,
            progress=inputs.progress,
        )  # fmt: skip
    save_trained(trained, out)
    return hash_trained(trained)
