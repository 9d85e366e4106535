"""Stage `leakage`: prune the shadow models, then infer from each mask alone whether its model was trained with D_f."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from expunge.core.files import read_json, read_tensors
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.evaluation.leakage import draw_shadow_members, measure_mask_leakage, prune_shadow_models
from expunge.evaluation.registry.inputs import ScoreInputs, ShadowMasks
from expunge.evaluation.registry.measure import measure_scores
from expunge.evaluation.score import Scores
from expunge.experiments.objects.pruning import make_pruning
from expunge.training.checkpoint import load_state

from .registry import StageInputs, register_stage
from .stage_inputs import make_stage_architecture, make_stage_split, read_stage_records


@register_stage("leakage", version=1, uses=("scores",))
def run(inputs: StageInputs, out: Path) -> str:
    """Score the leakage; writes scores.json."""
    config, records = inputs.config, read_stage_records(inputs)
    split, pruning = make_stage_split(inputs, records), make_pruning(config["sparsity"])
    directory = inputs.directories["shadow_models"]
    body = read_json(directory / "request.json", "expunge.shadow_models", 1)
    request = ForgetRequest.from_json(body["request"])
    blueprint = make_stage_architecture(inputs, records, split)
    members = draw_shadow_members(records, split, request, seed=config["seed"], **config["shadow_models"])
    states, _ = read_tensors(directory / "states.safetensors")

    def build_model(number: int) -> nn.Module:
        network = blueprint.build(0).eval()
        load_state(network, {name: tensor[number] for name, tensor in states.items()})
        return network

    masks = prune_shadow_models(records, members, build_model, pruning.rule, score_records=pruning.score_records)
    settings = config["leakage"]
    known = settings["known"] and settings["initial"] == "own"
    found = measure_mask_leakage(
        masks,
        architecture=blueprint if known else None,
        members=members if known else None,
        permutations=settings["permutations"],
        seed=config["seed"],
    )
    attacker = "shared initial weights"
    if settings["initial"] != "shared":
        attacker = "different initial weights, " + ("known" if known else "unknown") + " to the attacker"
    measured, notes = measure_scores(ScoreInputs(shadow_masks=ShadowMasks(found, attacker), seed=config["seed"]))
    about = {"request": request.hash, "records": len(request.record_ids), "sparsity": masks[0].sparsity, **settings}
    scores = Scores(tuple(measured), about, tuple(notes))
    scores.save(out / "scores.json")
    return hash_json({score.name: score.value for score in scores})
