"""Stage `score_original`: score the original model for a request, next to the retrained reference."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from expunge.core.hashing import hash_json
from expunge.evaluation import Scores
from expunge.models import load_trained

from .registry import StageInputs, register_stage
from .score import predict_retrained, write_scores
from .stage_inputs import make_stage_request, read_stage_records


@register_stage("score_original", version=1, uses=("scores",))
def run(inputs: StageInputs, out: Path) -> str:
    """Score the model before unlearning."""
    trained = load_trained(inputs.directories["trained"])
    request = make_stage_request(inputs, read_stage_records(inputs), trained.split)
    further: dict[str, Any] = {}
    if "reference" in inputs.directories:
        further["reference"] = Scores.load(inputs.directories["reference"] / "scores.json")
    if "reference_outcome" in inputs.directories:
        further["retrained_parts"] = functools.partial(predict_retrained, inputs, request)
    scores = write_scores(out, trained, request, inputs, further)
    return hash_json({score.name: score.value for score in scores})
