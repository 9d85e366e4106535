"""Stage `prune`: prune the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.models import load_trained, write_trained
from expunge.sparsity import Pruning, prune
from expunge.training import Context

from .stage_inputs import hash_trained, make_stage_runtime, read_stage_records

if TYPE_CHECKING:
    from .registry import StageInputs


def run(inputs: StageInputs, out: Path) -> str:
    """Prune the model of the train stage and save the sparse one."""
    pruned = prune(
        load_trained(inputs.directories["trained"]),
        Pruning(**inputs.config["sparsity"]),
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
