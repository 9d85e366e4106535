"""Stage `data`: read the records once, to know what they are; keeps their hash and counts, not the records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.files import write_json
from expunge.data import load_records

from .job_inputs import records_hash

if TYPE_CHECKING:
    from .registry import Job


def run(job: Job, out: Path) -> str:
    """Read and hash the records."""
    data = job.config["data"]
    records = load_records(data["source"], data_dir=job.data_dir, **data["options"])
    found = records_hash(records)
    body = {
        "name": records.name,
        "hash": found,
        "records": len(records),
        "classes": list(records.class_names),
        "input_shape": list(records.input_shape),
    }
    write_json(out / "data.json", "expunge.data", 1, body)
    return found
