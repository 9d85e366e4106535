"""Stage `shadow_models`: train the shadow models of a game of topology leakage: half with D_f, half without."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json, write_tensors
from expunge.core.hashing import hash_json, hash_tensors
from expunge.evaluation.leakage.games import train_shadow_game

from .registry import StageInputs, register_stage
from .shadow_inputs import draw_stage_game, make_other_request
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
    for directory in (inputs.work_dir, out):  # says which records the models, and a checkpoint, saw
        split.save(directory / "split.json")
    request = make_stage_request(inputs, records, split)
    other = make_other_request(inputs, records, split, request)
    states = train_shadow_game(
        records,
        make_stage_architecture(inputs, records, split),
        draw_stage_game(inputs, records, split, request, other),
        recipe=make_stage_recipe(inputs),
        retrained=config["shadow_models"].get("retrained", False),
        runtime=make_stage_runtime(inputs),
        progress=inputs.progress,
    )
    write_tensors(out / "states.safetensors", states)
    requests = {"request": request, **({} if other is None else {"other": other})}
    body = {name: one.to_json() for name, one in requests.items()}
    write_json(out / "request.json", "expunge.shadow_models", 1, body)
    return hash_json({"states": hash_tensors(states), **{name: one.hash for name, one in requests.items()}})
