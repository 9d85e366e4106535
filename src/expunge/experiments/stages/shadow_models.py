"""Stage `shadow_models`: train many models with D_f and as many without, for topology leakage."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json, write_tensors
from expunge.core.hashing import hash_json, hash_tensors
from expunge.evaluation.leakage import draw_shadow_members, train_shadow_models

from .registry import StageInputs, register_stage
from .stage_inputs import (
    make_stage_architecture,
    make_stage_recipe,
    make_stage_request,
    make_stage_runtime,
    make_stage_split,
    read_stage_records,
)


@register_stage("shadow_models", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Train the shadow models and save their stacked states."""
    config, records = inputs.config, read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    request = make_stage_request(inputs, records, split)
    blueprint = make_stage_architecture(inputs, records, split)
    members = draw_shadow_members(records, split, request, seed=config["seed"], **config["shadow_models"])
    trained = train_shadow_models(
        records,
        blueprint,
        members,
        recipe=make_stage_recipe(inputs),
        runtime=make_stage_runtime(inputs),
        progress=inputs.progress,
    )
    write_tensors(out / "states.safetensors", trained.states)
    write_json(out / "request.json", "expunge.shadow_models", 1, {"request": request.to_json()})
    return hash_json({"states": hash_tensors(trained.states), "request": request.hash})
