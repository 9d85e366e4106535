"""Stage `leakage`: prune the shadow models, then infer from each mask alone whether its model was trained with D_f."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from expunge.core.files import read_json, read_tensors
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.evaluation.leakage import draw_shadow_members, measure_mask_leakage, prune_shadow_models
from expunge.evaluation.score import Interval, Score, Scores
from expunge.sparsity import Pruning
from expunge.training.checkpoint import load_state

from .stage_inputs import make_stage_architecture, make_stage_split, read_stage_records

if TYPE_CHECKING:
    from .registry import StageInputs

CITATION = "expunge; docs/sparsity.md"


def run(inputs: StageInputs, out: Path) -> str:
    """Score the leakage; writes scores.json."""
    config, records = inputs.config, read_stage_records(inputs)
    split, pruning = make_stage_split(inputs, records), Pruning(**config["sparsity"])
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
    if settings["initial"] == "shared":
        weights = "shared initial weights"
    else:
        weights = "different initial weights, " + ("known" if known else "unknown") + " to the attacker"
    compared = f"{found.models[0]} masks of models trained with D_f against {found.models[1]} without, {weights}"
    null = found.null_interval
    scores = Scores(
        (
            Score(
                "Topology leakage",
                found.auc,
                "",
                "lower",
                f"AUC of an attacker who sees only masks, on held-out models: {compared}. 0.5: no leakage.",
                CITATION,
                interval=found.interval,
            ),
            Score(
                "Leakage null",
                sum(found.null) / len(found.null),
                "",
                "reference",
                f"The same AUC over {len(found.null)} permutations of the labels: mean, and central 95 % interval.",
                CITATION,
                interval=Interval(null.low, null.high, null.level),
            ),
            Score(
                "Leakage p",
                found.p_value,
                "",
                "lower",
                "Permutation p-value: the fraction of permutations (1 added to both counts) whose AUC is at least as "
                "far from 1/2.",
                CITATION,
            ),
        ),
        about={"request": request.hash, "records": len(request.record_ids), "sparsity": masks[0].sparsity, **settings},
    )
    scores.save(out / "scores.json")
    return hash_json({score.name: score.value for score in scores})
