"""Stage `data`: read the records and store their hash and counts, not the records themselves."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json
from expunge.data import load_records

from .registry import StageInputs, register_stage
from .stage_inputs import hash_records


@register_stage("data", version=1, reads_data=True)
def run(inputs: StageInputs, out: Path) -> str:
    """Read and hash the records."""
    data = inputs.config["data"]
    records = load_records(data["source"], data_dir=inputs.data_dir, **data["options"])
    found = hash_records(records)
    body = {
        "name": records.name,
        "hash": found,
        "records": len(records),
        "classes": list(records.class_names),
        "input_shape": list(records.input_shape),
    }
    write_json(out / "data.json", "expunge.data", 1, body)
    return found
