"""Stage `prune`: prune the dense model."""

from __future__ import annotations

from pathlib import Path

from expunge.experiments.objects.pruning import make_pruning
from expunge.models import load_trained, write_trained
from expunge.sparsity import prune
from expunge.training import Context

from .registry import StageInputs, register_stage
from .stage_inputs import hash_trained, make_stage_runtime, read_stage_records


@register_stage("prune", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Prune the model of the train stage and save the sparse one."""
    pruned = prune(
        load_trained(inputs.directories["trained"]),
        make_pruning(inputs.config["sparsity"]),
        Context(
            read_stage_records(inputs),
            make_stage_runtime(inputs),
            inputs.config["seed"],
            inputs.work_dir / "prune.safetensors",
            inputs.progress,
        ),
    )
    write_trained(pruned, out)
    return hash_trained(pruned)
