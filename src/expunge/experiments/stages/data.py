"""Stage `data`: read the records and store their hash and counts, not the records themselves."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json
from expunge.data import registry  # noqa: F401 (its code, and that of the reader, is part of this stage's key alone)
from expunge.data.planting import kinds  # noqa: F401 (so is the code that plants)
from expunge.experiments.objects.records import hash_records, read_records

from .registry import StageInputs, register_stage


@register_stage("data", version=1, reads_data=True)
def run(inputs: StageInputs, out: Path) -> str:
    """Read and hash the records."""
    records = read_records(inputs.config["data"], inputs.data_dir)
    found = hash_records(records, inputs.config["data"], inputs.data_dir)
    body = {
        "name": records.name,
        "hash": found,
        "records": len(records),
        "classes": list(records.class_names),
        "input_shape": list(records.input_shape),
        **({} if records.planted is None else {"planted": records.planted.describe()}),
    }
    write_json(out / "data.json", "expunge.data", 1, body)
    return found
