"""Stage `score`: score an unlearned model next to its retrained reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.files import read_run_file, write_json
from expunge.core.hashing import hash_json
from expunge.core.mask import Mask
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.evaluation import Score, Scores, compute_confidence_histogram, evaluate, predict_parts, tabulate_classes
from expunge.evaluation.score import MACHINE_DEPENDENT
from expunge.evaluation.scores.patches import score_patches
from expunge.evaluation.scores.topology import score_topology
from expunge.models import load_trained

from .registry import StageInputs, register_stage
from .stage_inputs import make_stage_runtime, read_stage_records

if TYPE_CHECKING:
    from expunge.core.trained import Trained


@register_stage("score", version=1, uses=("scores",))
def run(inputs: StageInputs, out: Path) -> str:
    """Score the model of the forget stage for its request."""
    outcome = read_run_file(inputs.directories["outcome"] / "outcome.json", "expunge.outcome", 2)
    request = ForgetRequest.from_json(outcome["request"])
    cost = Cost(**{key: value for key, value in outcome["cost"].items() if key != "passes"})
    reference = inputs.directories.get("reference")
    trained = load_trained(inputs.directories["outcome"])
    scores = write_scores(
        out,
        trained,
        request,
        inputs,
        reference=None if reference is None else Scores.load(reference / "scores.json"),
        cost=cost,
        extra_scores=(
            *_score_topology(trained, inputs),
            *_score_patches(trained, request, inputs, cost),
            *_score_bound(trained, request, outcome, inputs),
        ),
    )
    return hash_json({score.name: score.value for score in scores if score.name not in MACHINE_DEPENDENT})


def _score_patches(trained: Trained, request: ForgetRequest, inputs: StageInputs, cost: Cost) -> tuple[Score, ...]:
    """Scores of certified patches, if the model has any."""
    if "patches" not in trained.state:
        return ()
    return score_patches(trained, request, read_stage_records(inputs), cost=cost, seed=inputs.config["seed"])


def _score_topology(trained: Trained, inputs: StageInputs) -> tuple[Score, ...]:
    """Scores of the mask, if the mask of the reference was recomputed from D_r."""
    if trained.mask is None or "reference_outcome" not in inputs.directories:
        return ()
    reference = inputs.directories["reference_outcome"]
    if "mask" not in read_run_file(reference / "outcome.json", "expunge.outcome", 2)["state"]["rewrote"]:
        return ()
    masks = [Mask.load(path / "mask.safetensors") for path in (inputs.directories["original"], reference)]
    return score_topology(trained.mask, *masks)


def _score_bound(
    trained: Trained, request: ForgetRequest, outcome: Mapping[str, Any], inputs: StageInputs
) -> tuple[Score, ...]:
    """The factors of the error bound of [Jia2023], if `evaluation.bound` is set."""
    if not inputs.config["evaluation"]["bound"]:
        return ()
    from expunge.evaluation.scores.error_bound import score_error_bound

    original, retrained = (load_trained(inputs.directories[name]) for name in ("original", "reference_outcome"))
    return score_error_bound(trained, original, retrained, request, read_stage_records(inputs), outcome=outcome)


def write_scores(
    out: Path,
    trained: Trained,
    request: ForgetRequest,
    inputs: StageInputs,
    *,
    reference: Scores | None,
    cost: Cost | None = None,
    extra_scores: tuple[Score, ...] = (),
) -> Scores:
    """Score a model, add `extra_scores`, and write scores.json and details.json (docs/formats/details.md) to `out`."""
    records, runtime = read_stage_records(inputs), make_stage_runtime(inputs)
    options = {key: value for key, value in inputs.config["evaluation"].items() if key != "bound"}
    parts = predict_parts(trained, request, records, runtime=runtime)
    scores = evaluate(
        trained,
        request,
        records,
        reference=reference,
        cost=cost,
        runtime=runtime,
        seed=inputs.config["seed"],
        parts=parts,
        **options,
    )
    scores = scores.with_scores(extra_scores)
    scores.save(out / "scores.json")
    details = {
        "confidence": compute_confidence_histogram(parts),
        "classes": tabulate_classes(parts),
        "density": {} if trained.mask is None else trained.mask.layer_density(),
    }
    write_json(out / "details.json", "expunge.details", 2, details)
    return scores
