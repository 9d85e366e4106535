"""Stage `confidences`: rank the training records by their confidence during one training, most memorised first."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json
from expunge.core.hashing import hash_json
from expunge.training.confidence import measure_training_confidences

from .registry import StageInputs, register_stage
from .stage_inputs import make_stage_architecture, make_stage_recipe, make_stage_runtime, read_ranked_records


@register_stage("confidences", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Train one model, with seed 0 whatever the seeds of the plan, and rank the retained records."""
    records, split = read_ranked_records(inputs)
    found = measure_training_confidences(
        records,
        records.rows(split.retain),
        make_stage_architecture(inputs, records, split),
        recipe=make_stage_recipe(inputs),
        runtime=make_stage_runtime(inputs),
        progress=inputs.progress,
    )
    ranking = records.record_ids[found.smallest_first()].tolist()
    pairs = zip(records.record_ids[found.rows], found.confidences, strict=True)
    confidences = {str(name): round(float(value), 6) for name, value in pairs}
    write_json(out / "memorised.json", "expunge.memorised", 1, {"ranking": ranking, "confidence": confidences})
    return hash_json(ranking)
