"""The Hessian's spectrum against sparsity: the extreme eigenvalues on the kept weights of pruned models.

    EXPUNGE_DATA=... OMP_NUM_THREADS=1 python benchmarks/hessian_spectrum.py [--seeds 3]
    python benchmarks/hessian_spectrum.py --small          # seconds; checks that it runs, and writes nothing

A small CNN on 10,000 records of Fashion-MNIST, 20 epochs one-cycle, pruned to 0 to 99.5 % (OMP), as in
plans/sweep-sparsity.yaml. Of each model, 90 Lanczos steps, as in the released code of [Jia2023], with products over
2,000 training records: spectral norm, the largest and the smallest Ritz values, each with its residual (an eigenvalue
is within this distance of it), for the Hessian and for its Gauss-Newton part. The factor sigma of the
error bound of [Jia2023] is the norm; for a pruned model it is that of the block of the kept weights.

Writes results/hessian_spectrum.json after every model; what is in it already with the same setting is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _common import machine

import expunge
from expunge.core.errors import MaskError
from expunge.core.hashing import hash_json
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.sparsity import Pruning
from expunge.training import accuracy
from expunge.training.curvature import Curvature, lanczos

RESULT = Path(__file__).parent / "results" / "hessian_spectrum.json"
SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995)
SETTING: dict[str, Any] = {
    "data": "fashion-mnist", "limit": 12_000, "model": "small-cnn", "epochs": 20, "batch_size": 64, "rate": 0.1,
    "records": 2_000, "steps": 90, "shown": 5, "scope": "erk",
}  # fmt: skip
SMALL = {"data": "digits", "limit": 300, "epochs": 1, "records": 100, "steps": 4}
CPU = expunge.Runtime("cpu")


def measure(trained: Trained, records: expunge.Records, setting: dict[str, Any]) -> dict[str, Any]:
    """The extreme eigenvalues of a model on its kept weights."""
    rows = records.rows(trained.split.train)[: setting["records"]]
    found: dict[str, Any] = {}
    for kind in ("hessian", "gauss-newton"):
        batches = Batches(records, rows, batch_size=500)
        matrix = Curvature(trained.model, batches.in_order, mask=trained.mask, matrix_type=kind)
        spectrum = lanczos(matrix, steps=setting["steps"], seed=0, tolerance=0.0)
        pairs = [
            [float(f"{value:.6g}"), float(f"{residual:.3g}")]
            for value, residual in zip(spectrum.eigenvalues, spectrum.residuals, strict=True)
        ]
        found[kind] = {
            "norm": float(f"{spectrum.norm:.6g}"), "residual": float(f"{spectrum.residual:.3g}"),
            "largest": pairs[-setting["shown"] :], "smallest": pairs[: setting["shown"]],
            "products": spectrum.products,
        }  # fmt: skip
    kept = sum(p.numel() for p in trained.model.parameters())
    if trained.mask is not None:
        kept -= trained.mask.total - trained.mask.kept_count
    found["kept"] = kept
    return found


def main() -> None:
    """Train, prune and measure; write the result after every model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a few records and epochs; writes nothing")
    given = parser.parse_args()
    setting = {**SETTING, **(SMALL if given.small else {})}
    identity = hash_json(setting)
    body: dict[str, Any] = {"benchmark": "hessian_spectrum", "identity": identity, "setting": setting, "runs": {}}
    if RESULT.exists() and not given.small:
        known = json.loads(RESULT.read_text())
        body = known if known.get("identity") == identity else body
    records = expunge.load_records(setting["data"])
    split = expunge.make_split(records, seed=0, limit=setting["limit"], validation=0.0833, non_members=0.0833)
    network = expunge.architecture(setting["model"], records, split)
    recipe = expunge.get_recipe(
        "one-cycle", epochs=setting["epochs"], batch_size=setting["batch_size"], learning_rate=setting["rate"]
    )
    for seed in range(1 if given.small else given.seeds):
        keys = {sparsity: f"{100 * sparsity:g} %, seed {seed}" for sparsity in SPARSITIES}
        if all(key in body["runs"] for key in keys.values()):
            continue
        dense = expunge.train(records, split, network, recipe=recipe, seed=seed, runtime=CPU)
        for sparsity, key in keys.items():
            if key in body["runs"]:
                continue
            trained = dense
            if sparsity:
                pruning = Pruning(sparsity=sparsity, layers=("conv", "linear"), scope=setting["scope"])
                try:
                    trained = expunge.prune(dense, pruning, expunge.Context(records, CPU, seed))
                except MaskError as error:  # a layer would lose every weight
                    body["runs"][key] = {"skipped": error.what}
                    print(f"{key}: {error.what}", flush=True)
                    continue
            found = accuracy(trained.model, records, records.rows(split.test), runtime=CPU)
            body["runs"][key] = {"TA": round(found, 3), **measure(trained, records, setting)}
            body["machine"] = machine()
            print(f"{key}: TA {found:.2f} %, norm {body['runs'][key]['hessian']['norm']:g}", flush=True)
            if not given.small:
                RESULT.parent.mkdir(exist_ok=True)
                RESULT.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
