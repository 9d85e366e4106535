"""Stage `adopt`: import a model that was trained elsewhere, instead of training one."""

from __future__ import annotations

from pathlib import Path

from expunge.experiments.objects.imported import adopt, read_imported
from expunge.models import save_trained

from .registry import StageInputs, register_stage
from .stage_inputs import hash_trained, make_stage_architecture, make_stage_recipe, make_stage_split, read_stage_records


@register_stage("adopt", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Read weights and mask in any supported format, check that they fit, and save them with the configured recipe."""
    records = read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    architecture, recipe = make_stage_architecture(inputs, records, split), make_stage_recipe(inputs)
    section = inputs.config["model"]
    imported = read_imported(section, architecture)
    file = inputs.config["split"]["file"]
    trained = adopt(section, architecture, imported, records, split, recipe=recipe.to_json(), split_file=file)
    save_trained(trained, out)
    return hash_trained(trained)
