"""Stage `prune`: prune the dense model."""

from __future__ import annotations

from pathlib import Path

from expunge.models import load_trained, write_trained
from expunge.sparsity import prune

from .registry import StageInputs, register_stage
from .stage_inputs import hash_trained, make_stage_runtime, read_stage_records


@register_stage("prune", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Prune the model of the train stage and save the sparse one."""
    pruned = prune(
        load_trained(inputs.directories["trained"]),
        read_stage_records(inputs),
        **inputs.config["sparsity"],
        runtime=make_stage_runtime(inputs),
        seed=inputs.config["seed"],
        checkpoint=inputs.work_dir / "prune.safetensors",
        progress=inputs.progress,
    )
    write_trained(pruned, out)
    return hash_trained(pruned)
