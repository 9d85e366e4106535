"""Stage `shadow_replay`: the shadow models of a game forget by replay."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import read_tensors, write_tensors
from expunge.core.hashing import hash_tensors
from expunge.evaluation.leakage.games import replay_shadow_models

from .registry import StageInputs, register_stage
from .shadow_inputs import draw_stage_game, read_shadow_requests
from .stage_inputs import (
    make_stage_architecture,
    make_stage_recipe,
    make_stage_runtime,
    make_stage_split,
    read_stage_records,
)


@register_stage("shadow_replay", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Replay the trained shadow models and save their stacked states."""
    records = read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    states, _ = read_tensors(inputs.directories["shadow_models"] / "states.safetensors")
    replayed = replay_shadow_models(
        records,
        make_stage_architecture(inputs, records, split),
        draw_stage_game(inputs, records, split, *read_shadow_requests(inputs)),
        states,
        recipe=make_stage_recipe(inputs),
        runtime=make_stage_runtime(inputs),
        progress=inputs.progress,
        **inputs.config["replay"],
    )
    write_tensors(out / "states.safetensors", replayed)
    return hash_tensors(replayed)
