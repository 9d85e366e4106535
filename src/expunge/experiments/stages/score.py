"""Stage `score`: score an unlearned model next to its retrained reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import read_run_file, write_json
from expunge.core.hashing import hash_json
from expunge.core.mask import Mask
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.evaluation import Scores, compute_confidence_histogram, predict_parts, tabulate_classes
from expunge.evaluation.facts import score_facts
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.suites import evaluate_inputs
from expunge.models import load_trained

from .registry import StageInputs, register_stage
from .stage_inputs import make_stage_runtime, read_stage_records

if TYPE_CHECKING:
    from expunge.core.trained import Trained
    from expunge.evaluation import Parts


@register_stage("score", version=1, uses=("scores",))
def run(inputs: StageInputs, out: Path) -> str:
    """Score the model of the forget stage for its request."""
    directories = inputs.directories
    outcome = read_run_file(directories["outcome"] / "outcome.json", "expunge.outcome", 2)
    further: dict[str, Any] = {"outcome": outcome, "bound": inputs.config["evaluation"]["bound"]}
    further["cost"] = Cost.from_json(outcome["cost"])
    if "reference" in directories:
        further["reference"] = Scores.load(directories["reference"] / "scores.json")
    for name, directory in (("original", "original"), ("retrained", "reference_outcome")):
        if directory in directories:
            further[name] = functools.partial(load_trained, directories[directory])
    further |= _load_masks(inputs)
    trained, request = load_trained(directories["outcome"]), ForgetRequest.from_json(outcome["request"])
    if "retrained" in further:
        further["retrained_parts"] = functools.partial(predict_retrained, inputs, request)
    original = None
    if "trained" in directories:
        before = load_trained(directories["trained"])
        records = read_stage_records(inputs)
        original = before, predict_parts(before, request, records, runtime=make_stage_runtime(inputs))
    scores = write_scores(out, trained, request, inputs, further, original=original)
    return hash_json({score.name: score.value for score in scores if not score_facts(score.name).machine_dependent})


def predict_retrained(inputs: StageInputs, request: ForgetRequest) -> Parts:
    """Predictions of the retrained model for the records of the request's parts."""
    retrained = load_trained(inputs.directories["reference_outcome"])
    return predict_parts(retrained, request, read_stage_records(inputs), runtime=make_stage_runtime(inputs))


def _load_masks(inputs: StageInputs) -> dict[str, Mask]:
    """The masks of the original and of the reference, if that of the reference was recomputed from D_r."""
    if "reference_outcome" not in inputs.directories:
        return {}
    reference = inputs.directories["reference_outcome"]
    if "mask" not in read_run_file(reference / "outcome.json", "expunge.outcome", 2)["state"]["rewrote"]:
        return {}
    places = {"original_mask": inputs.directories["original"], "reference_mask": reference}
    return {name: Mask.load(path / "mask.safetensors") for name, path in places.items()}


def write_scores(
    out: Path,
    trained: Trained,
    request: ForgetRequest,
    inputs: StageInputs,
    further: Mapping[str, Any],
    *,
    original: tuple[Trained, Parts] | None = None,
) -> Scores:
    """Score a model, and write scores.json and details.json (docs/formats/details.md) to `out`.

    Args:
        out: the directory of the results.
        trained: the model.
        request: D_f.
        inputs: of the stage.
        further: further arguments of `ScoreInputs`.
        original: see `evaluate_inputs`.
    """
    records, runtime, options = read_stage_records(inputs), make_stage_runtime(inputs), inputs.config["evaluation"]
    parts = predict_parts(trained, request, records, runtime=runtime)
    scores = evaluate_inputs(
        ScoreInputs(
            trained=trained,
            request=request,
            records=records,
            parts=parts,
            runtime=runtime,
            seed=inputs.config["seed"],
            svc_records=options["svc_records"],
            svc_ratios=options["svc_ratios"],
            **further,
        ),
        options["scores"],
        original=original,
    )
    scores.save(out / "scores.json")
    details = {
        "confidence": compute_confidence_histogram(parts),
        "classes": tabulate_classes(parts),
        "density": {} if trained.mask is None else trained.mask.layer_density(),
    }
    write_json(out / "details.json", "expunge.details", 2, details)
    return scores
