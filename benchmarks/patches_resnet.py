"""One point of CIFAR-10 on a ResNet-20: a certificate in real arithmetic by matrix-free bounds, and the float32 claim.

    EXPUNGE_DATA=/data python benchmarks/patches_resnet.py [--records 4000] [--epochs 2] [--effort 2]

The network is trained briefly. A patch of one correctly classified training record is solved for real arithmetic,
written as a certificate, and checked by expunge-check. Then the same is done for the executed float32 numbers, and the
outcome is recorded, also if it fails. Writes results/patches_resnet.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import machine, peak_memory_mib, write_result

from expunge.core.errors import ExpungeError
from expunge.data import load_records
from expunge.data.batches import Batches
from expunge.data.splitting import make_split
from expunge.models import architecture
from expunge.patches.bounds.dual_ascent import AscentOptions, RowSystem
from expunge.patches.bounds.solve import SolveOptions, evaluation_error, solve
from expunge.patches.certificate import write_certificate
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import Box, compute_patterns, measure_region
from expunge.patches.network.rounding import bound_execution_error
from expunge.patches.network.trace import trace
from expunge.training import get_recipe, train

sys.path.insert(0, str(Path(__file__).parents[1] / "checker" / "src"))


def attempt(case: tuple[Any, ...], claim: str, effort: int) -> dict[str, Any]:
    """Solve and check one claim; return the measurements, or the error."""
    model, network, x, bits, label, target, box, plain = case
    start = time.process_time()
    try:
        options = SolveOptions(claim=claim, ascent=AscentOptions(rounds=effort))
        patches, proof = solve(network, bits, label, target, box, options)
    except (ExpungeError, RuntimeError, ValueError, OverflowError) as error:
        return {"solved": False, "why": f"{type(error).__name__}: {error}"}
    found: dict[str, Any] = {
        "solved": True, "cpu_seconds": time.process_time() - start, "shift": float(patches.shift[0]),
        "gap_at_the_point": float(plain[0, label[0]] - plain[0, target[0]]),
        "patch_bytes": patches.bytes_per_patch(), "proof_bytes": proof.bytes_per_point,
    }  # fmt: skip
    none = bound_execution_error(network, bits, box.low, box.high)
    system = RowSystem(network, bits, target, box, torch.zeros_like(none.margins), torch.float64)
    value = system.evaluate(torch.arange(1), proof.dense(network.atoms))
    value[0, target[0]] = -torch.inf
    found["dual_bound_itself"] = float(value.max())
    found["bound_on_its_float64_evaluation"] = float(
        evaluation_error(network, proof.dense(network.atoms), target, none).max()
    )
    found["bound_on_float32_logits"] = float(none.logits.max())
    found["multipliers"] = int(proof.count.sum())
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        found["answers_target_at_the_point"] = int(patched(x).argmax(1)) == int(target[0])
    with tempfile.TemporaryDirectory() as folder:
        from expunge_check.errors import BadCertificate
        from expunge_check.folder.files import read_folder
        from expunge_check.verify import Checker

        at = Path(folder) / "c"
        write_certificate(at, patched, patches, proof, box, claim=claim, epsilon=options.epsilon, replay=x)
        start = time.process_time()
        try:
            report = Checker(read_folder(at)).check(x.numpy())
            found["verdict"], found["spare"] = report.verdicts[0], float(report.spare[0])
            found["checker_notes"] = report.notes
        except BadCertificate as error:
            found["verdict"] = f"no certificate: {error}"
        found["checker_cpu_seconds"] = time.process_time() - start
    return found


def main() -> None:
    """Train, patch one point, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--effort", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = load_records("cifar10", data_dir=os.environ.get("EXPUNGE_DATA"))
    split = make_split(records, limit=options.records)
    blueprint = architecture("resnet20", records, split)
    start = time.process_time()
    trained = train(
        records, split, blueprint, recipe=get_recipe("one-cycle", epochs=options.epochs, batch_size=64), seed=0
    )
    training = time.process_time() - start
    model = trained.model.eval()
    network, box = trace(model, records.input_shape), Box.of(records.input_shape)
    batch, labels = next(iter(Batches(records, records.rows(split.retain[:64]), batch_size=64).in_order()))
    logits = compute_patterns(network, batch)[0]
    row = int((logits.argmax(1) == labels).nonzero()[0, 0])
    x, label = batch[row : row + 1], labels[row : row + 1].long()
    plain, bits = compute_patterns(network, x)
    target = plain.argsort(1)[:, -2]
    size = measure_region(network, x[0], box, samples=50, flips=0)
    case = (model, network, x, bits, label, target, box, plain)
    claims = {claim: attempt(case, claim, options.effort) for claim in ("real", "float32")}
    real, executed = claims["real"], claims["float32"]
    claims["float32"]["useful"] = bool(
        executed.get("verdict") == "certified" and executed["shift"] < 100 * max(1.0, real.get("shift", 1.0))
    )
    write_result(
        "patches_resnet",
        {
            "network": {
                "name": "resnet20", "atoms": network.atoms, "inputs": network.inputs, "seed": 0,
                "training_records": len(split.retain), "epochs": options.epochs, "training_cpu_seconds": training,
                "accuracy_of_64_training_records": float((logits.argmax(1) == labels).float().mean()),
            },
            "effort": options.effort,
            "region": size.to_json(),
            "claims": claims,
            "load_average": list(os.getloadavg()),
            "peak_memory_mib": peak_memory_mib(),
            "pattern_bytes": int(np.ceil(network.atoms / 8)),
            "note": f"CPU seconds of one thread ({machine()['cpu']})",
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
