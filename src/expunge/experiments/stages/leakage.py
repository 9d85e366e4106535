"""Stage `leakage`: prune the shadow models, then infer from each mask alone on which side of the game its model is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from expunge.core.files import read_tensors
from expunge.core.hashing import hash_json
from expunge.core.show import plural
from expunge.evaluation.leakage.shadow_models import measure_mask_leakage, prune_shadow_models
from expunge.evaluation.registry.inputs import ScoreInputs, ShadowMasks
from expunge.evaluation.registry.measure import measure_scores
from expunge.evaluation.score import Scores
from expunge.experiments.objects.pruning import make_pruning
from expunge.training.checkpoint import load_state

from .registry import StageInputs, register_stage
from .shadow_inputs import draw_stage_game, read_shadow_requests
from .stage_inputs import make_stage_architecture, make_stage_split, read_stage_records


@register_stage("leakage", version=1, uses=("scores",))
def run(inputs: StageInputs, out: Path) -> str:
    """Score the leakage; writes scores.json."""
    config, records = inputs.config, read_stage_records(inputs)
    split, pruning = make_stage_split(inputs, records), make_pruning(config["sparsity"])
    request, other = read_shadow_requests(inputs)
    blueprint = make_stage_architecture(inputs, records, split)
    game = draw_stage_game(inputs, records, split, request, other)
    settings = config["leakage"]
    members = game.members if settings.get("processing", "unchanged") == "unchanged" else game.remaining
    directory = inputs.directories.get("shadow_replay", inputs.directories["shadow_models"])
    states, _ = read_tensors(directory / "states.safetensors")

    def build_model(number: int) -> nn.Module:
        network = blueprint.build(0).eval()
        load_state(network, {name: tensor[number] for name, tensor in states.items()})
        return network

    masks = prune_shadow_models(records, members, build_model, pruning.rule, score_records=pruning.score_records)
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
    shadow_masks = ShadowMasks(found, attacker, _describe_sides(settings))
    measured, notes = measure_scores(ScoreInputs(shadow_masks=shadow_masks, seed=config["seed"]))
    about = {"request": request.hash, "records": len(request.record_ids), "sparsity": masks[0].sparsity, **settings}
    scores = Scores(tuple(measured), about, tuple(notes))
    scores.save(out / "scores.json")
    return hash_json({score.name: score.value for score in scores})


def _describe_sides(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The models of either side, in words."""
    if "game" not in settings:
        return "trained with D_f", "without"
    done = {
        "unchanged": "that forget {0}, with unchanged masks",
        "replay": "that forget {0} by replay of {1}",
        "retrained": "retrained without {0}",
    }[settings["processing"]]
    epochs = plural(settings.get("prefix_epochs", 0), "epoch")
    first, second = (done.format(name, epochs) for name in ("D_f", "another set"))
    return first, second if settings["game"] == "two-requests" else "trained without it"
