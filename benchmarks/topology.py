"""Does a pruned topology remember? Overlaps, un-pruning and leakage on scikit-learn's digits, an MLP 64-64-10.

    python benchmarks/topology.py overlap --seeds 5 [--forget class random memorised] [--sparsity 0.9]
    python benchmarks/topology.py leakage --models 64 [--forget class random memorised]

A first measurement in one process, before the plans; the bars are in the results of the plans.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import torch
from _common import write_result
from sklearn.datasets import load_digits

from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split, as_ids
from expunge.core.trained import Trained
from expunge.data import Records
from expunge.evaluation.leakage.mask_attack import extract_mask_features, measure_topology_leakage
from expunge.evaluation.topology import iou, normalised_overlap, random_iou
from expunge.methods import Context, get_method
from expunge.models import Architecture, architecture
from expunge.sparsity import Pruning, prune, select_global
from expunge.training import Recipe, Runtime, accuracy, train
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import train_ensemble

CPU = Runtime("cpu")
RECIPE = Recipe(name="digits", epochs=20, batch_size=64, learning_rate=0.05, lr_schedule="cosine", rewind=0.1)


def digits() -> tuple[Records, Split]:
    """Scikit-learn's digits in [0, 1]; 1,257 to train on, 180 to validate, 360 to test."""
    bunch = load_digits()
    count = len(bunch.target)
    records = Records(
        "digits",
        np.asarray([f"d{i:04d}" for i in range(count)]),
        bunch.target,
        tuple("0123456789"),
        features=(bunch.images[:, None] / 16).astype(np.float32),
    )
    order = np.random.default_rng(0).permutation(records.record_ids)
    return records, Split(order[:1257], as_ids(()), order[1257:1437], order[1437:], as_ids(()))


def network(records: Records) -> Architecture:
    return architecture("mlp", records, normalise="none", widths=(64,))


def forget_rows(kind: str, records: Records, split: Split) -> np.ndarray:
    """Rows of D_f: the threes, 10 % at random, or the 50 with the largest held-out loss over 32 half-data models."""
    rows = records.rows(split.retain)
    if kind == "class":
        return rows[records.labels[rows] == 3]
    rng = np.random.default_rng(1)
    if kind == "random":
        return rng.permutation(rows)[: len(rows) // 10]
    halves = [rng.permutation(rows)[: len(rows) // 2] for _ in range(32)]
    members = [Member(half, seed=100 + i) for i, half in enumerate(halves)]
    together = train_ensemble(records, network(records), members, recipe=RECIPE, runtime=CPU, snapshots=())
    losses = torch.nn.functional.cross_entropy(
        together.logits(records, rows, runtime=CPU).transpose(1, 2),
        torch.from_numpy(records.labels[rows]).expand(32, -1),
        reduction="none",
    ).numpy()
    held_out = np.stack([~np.isin(rows, half) for half in halves])
    mean = (losses * held_out).sum(0) / np.maximum(held_out.sum(0), 1)
    return rows[np.argsort(-mean, kind="stable")[:50]]


RULES: dict[str, dict[str, Any]] = {
    "magnitude": {"rule": "magnitude", "growth": 0.2},
    "gradient": {"rule": "gradient", "growth": 0.2},
    "influence": {"rule": "influence"},
    "influence by the method": {"rule": "influence", "curvature": "method"},
    "random (control)": {"rule": "random", "growth": 0.2},
    "dense (control)": {"rule": "dense"},
}
METHODS: dict[str, dict[str, Any]] = {
    "FT": {"epochs": 3, "learning_rate": 0.05, "batch_size": 64},
    "GA": {"epochs": 3, "learning_rate": 0.001, "batch_size": 64},
    "l1-sparse": {"epochs": 3, "learning_rate": 0.05, "batch_size": 64, "gamma": 1e-4},
}


def overlap(kinds: list[str], seeds: int, sparsity: float, **how: Any) -> dict[str, Any]:
    """Overlaps with the retrained and re-pruned model, over seeds, and what un-pruning does to them."""
    records, split = digits()
    body: dict[str, Any] = {}
    for kind in kinds:
        request = ForgetRequest(records.record_ids[forget_rows(kind, records, split)])
        runs = [one_seed(records, split, request, seed, sparsity, how) for seed in range(seeds)]
        rows: dict[str, Any] = {"records": len(request.record_ids), "random_iou": random_iou(1 - sparsity)}
        for name in runs[0]["iou"]:
            values = [run["iou"][name] for run in runs]
            rows[name] = {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
            if name not in ("original", "same init", "other init"):
                found = normalised_overlap(
                    values, [r["iou"]["original"] for r in runs], [r["iou"]["same init"] for r in runs]
                )
                rows[name]["normalised"] = dataclasses.asdict(found)
        for name in runs[0]["cost"]:
            rows.setdefault("cost and accuracy", {})[name] = {
                key: float(np.mean([run["cost"][name][key] for run in runs])) for key in runs[0]["cost"][name]
            }
        body[kind] = rows
        print(
            kind, {k: round(v["mean"], 3) for k, v in rows.items() if isinstance(v, dict) and "mean" in v}, flush=True
        )
    return body


def one_seed(
    records: Records, split: Split, request: ForgetRequest, seed: int, sparsity: float, how: dict[str, Any]
) -> dict[str, Any]:
    dense = train(records, split, network(records), recipe=RECIPE, seed=seed, runtime=CPU)
    settings = {"sparsity": sparsity, "layers": ("linear",), "keep_weights": True, **how}
    original = prune(dense, Pruning(**settings), Context(records, CPU, seed=seed))
    context = Context(records, CPU, seed=seed)
    begun = time.perf_counter()
    reference = get_method("Retrain", mask="re-prune").forget(original, request, context)
    took = time.perf_counter() - begun

    def measured(trained: Trained, passes: float, seconds: float) -> dict[str, float]:
        rows = {"UA": records.rows(request.record_ids), "TA": records.rows(split.test)}
        found = {name: accuracy(trained.model, records, some, runtime=CPU) for name, some in rows.items()}
        return {"UA": 100 - found["UA"], "TA": found["TA"], "passes": passes, "seconds": seconds}

    goal = reference.trained.mask
    assert goal is not None
    assert original.mask is not None
    masks: dict[str, Mask] = {"original": original.mask}
    cost = {"re-pruned": measured(reference.trained, reference.cost.passes, took)}
    # RR': the same initial weights and another order; RR'': other initial weights
    for name, seeds in (
        ("same init", {**original.provenance.seeds, "order": 10_000 + seed}),
        ("other init", {**original.provenance.seeds, "order": 10_000 + seed, "initial": 20_000 + seed}),
    ):
        other = dataclasses.replace(original, provenance=dataclasses.replace(original.provenance, seeds=seeds))
        again = get_method("Retrain", mask="re-prune").forget(other, request, context).trained.mask
        assert again is not None
        masks[name] = again
    for method, options in METHODS.items():
        kept = get_method(method, **options).forget(original, request, context)
        cost[f"{method}, mask kept"] = measured(kept.trained, kept.cost.passes, kept.cost.seconds)
        for rule, chosen in RULES.items():
            around = get_method("Un-prune", method=method, method_options=options, **chosen)
            outcome = around.forget(original, request, context)
            assert outcome.trained.mask is not None
            masks[f"{method}, {rule}"] = outcome.trained.mask
            cost[f"{method}, {rule}"] = measured(outcome.trained, outcome.cost.passes, outcome.cost.seconds)
    return {"iou": {name: iou(mask, goal) for name, mask in masks.items()}, "cost": cost}


def leakage(kinds: list[str], models: int, sparsity: float) -> dict[str, Any]:
    """Topology leakage: `models` a side, the other records re-drawn per model, equal numbers of records."""
    records, split = digits()
    body: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    blueprint = network(records)
    for kind in kinds:
        gone = forget_rows(kind, records, split)
        rest = np.setdiff1d(records.rows(split.retain), gone)
        half = len(rest) // 2
        for shared in (True, False):
            members = []
            for number in range(2 * models):
                others = rng.permutation(rest)
                rows = np.concatenate([gone, others[:half]]) if number < models else others[: half + len(gone)]
                initial = 7 if shared else 5000 + number
                members.append(Member(np.sort(rows), seed=1000 + number, initial_seed=initial))
            together = train_ensemble(records, blueprint, members, recipe=RECIPE, runtime=CPU, snapshots=())
            for known in (True,) if shared else (True, False):
                features = []
                for number in range(2 * models):
                    scores = {k: v.abs() for k, v in together.state(number).items() if v.dim() > 1}
                    mask = Mask(select_global(scores, sparsity), MaskProvenance("magnitude"))
                    start = blueprint.build(members[number].seeds["initial"]).state_dict()
                    features.append(extract_mask_features(mask, start if known and not shared else None))
                found = measure_topology_leakage(
                    np.stack(features[:models]), np.stack(features[models:]), permutations=200
                )
                name = "shared initial weights" if shared else f"own initial weights, {'' if known else 'un'}known"
                body[f"{kind}: {name}"] = {k: v for k, v in dataclasses.asdict(found).items() if k != "null"}
                print(kind, name, round(found.auc, 3), found.interval.text(), found.null_interval.text(), flush=True)
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["overlap", "leakage"])
    parser.add_argument("--forget", nargs="*", default=["class", "random", "memorised"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    about = {"sparsity": settings.sparsity, "recipe": RECIPE.to_json(), "network": "mlp 64-64-10"}
    if settings.part == "overlap":
        body = overlap(settings.forget, settings.seeds, settings.sparsity)
    else:
        body = leakage(settings.forget, settings.models, settings.sparsity)
    write_result(f"topology-{settings.part}", {**about, "results": body})


if __name__ == "__main__":
    main()
