"""Stage `leakage`: prune the models of the stage `sides`, and tell the sides apart by their masks alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from expunge.core.files import read_json, read_tensors
from expunge.core.hashing import hash_json
from expunge.core.request import ForgetRequest
from expunge.evaluation.leakage import draw_shadow_members, measure_mask_leakage, prune_shadow_models
from expunge.evaluation.score import Interval, Score, Scores
from expunge.sparsity import Rule
from expunge.training.checkpoint import load_state

from .job_inputs import job_architecture, job_records, job_split

if TYPE_CHECKING:
    from .registry import Job

SOURCE = "ours; docs/sparsity.md"


def run(job: Job, out: Path) -> str:
    """Score the leakage; writes scores.json."""
    config, records = job.config, job_records(job)
    split, wanted = job_split(job, records), config["sparsity"]
    request = ForgetRequest.from_json(read_json(job.inputs["sides"] / "request.json", "expunge.sides", 1)["request"])
    blueprint = job_architecture(job, records, split)
    members = draw_shadow_members(records, split, request, seed=config["seed"], **config["sides"])
    states, _ = read_tensors(job.inputs["sides"] / "states.safetensors")

    def model(number: int) -> nn.Module:
        network = blueprint.build(0).eval()
        load_state(network, {name: tensor[number] for name, tensor in states.items()})
        return network

    rule = Rule(
        wanted["criterion"], wanted["granularity"], wanted["scope"], tuple(wanted["layers"]), wanted["sparsity"]
    )
    masks = prune_shadow_models(records, members, model, rule, score_records=wanted["score_records"])
    settings = config["leakage"]
    own = settings["known"] and settings["initial"] == "own"
    found = measure_mask_leakage(
        masks,
        architecture=blueprint if own else None,
        members=members if own else None,
        permutations=settings["permutations"],
        seed=config["seed"],
    )
    knows = "their common initial weights" if settings["initial"] == "shared" else "other initial weights each"
    knows += (
        ", which the attacker knows" if own else "" if settings["initial"] == "shared" else ", unknown to the attacker"
    )
    scored = f"{found.models[0]} masks of models trained with D_f against {found.models[1]} without, {knows}"
    null = found.null_interval
    scores = Scores(
        (
            Score(
                "Topology leakage",
                found.auc,
                "",
                "lower",
                f"AUC of an attacker who sees masks alone, on models it was not fitted on: {scored}. 0.5: no leak.",
                SOURCE,
                interval=found.interval,
            ),
            Score(
                "Leakage null",
                sum(found.null) / len(found.null),
                "",
                "reference",
                f"The same AUC after {len(found.null)} shufflings of who had D_f: mean, and middle 95 %.",
                SOURCE,
                interval=Interval(null.low, null.high, null.level),
            ),
            Score(
                "Leakage p",
                found.p_value,
                "",
                "lower",
                "Share of the shufflings (with 1 added to both counts) whose AUC is at least as far from 1/2.",
                SOURCE,
            ),
        ),
        about={"request": request.hash, "records": len(request.record_ids), "sparsity": masks[0].sparsity, **settings},
    )
    scores.save(out / "scores.json")
    return hash_json({score.name: score.value for score in scores})
