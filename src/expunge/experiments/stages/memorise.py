"""Stage `memorise`: rank the training records by memorisation, most memorised first, with an ensemble of models."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json
from expunge.core.hashing import hash_json
from expunge.training.ensemble.memorised import measure_held_out_losses

from .registry import StageInputs, register_stage
from .stage_inputs import make_stage_architecture, make_stage_recipe, make_stage_runtime, read_ranked_records


@register_stage("memorise", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Train the ensemble and rank the retained records by their held-out loss."""
    records, split = read_ranked_records(inputs)
    found = measure_held_out_losses(
        records,
        records.rows(split.retain),
        make_stage_architecture(inputs, records, split),
        recipe=make_stage_recipe(inputs),
        **inputs.config["memorised"],
        runtime=make_stage_runtime(inputs),
        progress=inputs.progress,
    )
    ranking = records.record_ids[found.largest_first()].tolist()
    pairs = zip(records.record_ids[found.rows], found.losses, strict=True)
    losses = {str(name): round(float(loss), 6) for name, loss in pairs}
    write_json(out / "memorised.json", "expunge.memorised", 1, {"ranking": ranking, "held_out_loss": losses})
    return hash_json(ranking)
