"""Speed and tightness of certified patches on an MLP 600-256-20 with binary features. Prints one JSON document.

    python benchmarks/patches.py --points 500 --threads 2 [--highs 50] [--search 1000000] [--many 50000]

The records are drawn from 20 random product distributions over 600 bits (Purchase-20, which paper C uses, cannot be
had). What to expect on two cores is in docs/patches.md's issue; the numbers depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.patches.certificate import write_certificate
from expunge.patches.falsify import falsify
from expunge.patches.patched import PatchedModel
from expunge.patches.patchset import PatchSet
from expunge.patches.regions import Box, patterns, region_size
from expunge.patches.solve import Solve, soften, solve
from expunge.patches.trace import trace

sys.path.insert(0, str(Path(__file__).parents[1] / "checker" / "src"))


def task(count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A trained network and its records."""
    draws = np.random.default_rng(0)
    rates = 0.5 * draws.beta(0.4, 1.6, size=(20, 600))
    rates += rates.mean(0)
    y = draws.integers(0, 20, count)
    x = torch.from_numpy((draws.random((count, 600)) < rates[y]).astype(np.float32))
    labels = torch.from_numpy(y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 256), nn.ReLU(), nn.Linear(256, 20))
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(8):
        for part in torch.randperm(count).split(64):
            loss = nn.functional.cross_entropy(model(x[part]), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval(), x, labels


def latency(models: dict[str, nn.Module], x: torch.Tensor, repeats: int = 200) -> dict[str, float]:
    """Median milliseconds a batch, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(repeats + 10):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                if turn >= 10:
                    times[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(some)) for name, some in times.items()}


def synthetic(network: Any, count: int) -> PatchSet:
    """So many patches with random patterns."""
    draws = np.random.default_rng(1)
    pattern = np.unique(draws.integers(0, 256, (count + 100, network.atoms // 8), dtype=np.uint8), axis=0)[:count]
    none = np.zeros((len(pattern), 0), np.float32)
    zeros = np.zeros(len(pattern), np.int16)
    shift, group = np.ones(len(pattern), np.float32), np.arange(len(pattern), dtype=np.int32)
    return PatchSet("constant", network.atoms, 20, pattern, zeros, zeros + 1, shift, group, none, none)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--highs", type=int, default=0, help="compare so many points with HiGHS")
    parser.add_argument("--search", type=int, default=0, help="look for counterexamples in so many region points")
    parser.add_argument("--many", type=int, default=50_000, help="latency with so many patches")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, x, y = task(6000)
    network, box = trace(model, (600,)), Box.of((600,))
    logits, bits = patterns(network, x)
    rows = np.flatnonzero((logits.argmax(1) == y).numpy())[: options.points]
    targets = torch.where(logits[rows].argsort(1)[:, -1] == y[rows], logits[rows].argsort(1)[:, -2], 0)
    solve(network, bits[rows[:32]], y[rows[:32]], targets[:32], box)
    start = time.perf_counter()
    patches, proof = solve(network, bits[rows], y[rows], targets, box)
    seconds = time.perf_counter() - start
    patched = PatchedModel(model, network, patches)
    found: dict[str, Any] = {
        "points": len(rows), "threads": options.threads, "patches_per_second": len(rows) / seconds,
        "patch_bytes": patches.bytes_per_patch(), "pattern_bytes": patches.pattern.shape[1],
        "proof_bytes": proof.bytes_per_point, "median_shift": float(np.median(patches.shift)),
    }  # fmt: skip
    if options.highs:
        some = rows[: options.highs]
        exact, _ = solve(network, bits[some], y[some], targets[: len(some)], box, Solve(engine="highs"))
        loose = patches.shift[: len(some)] / exact.shift - 1
        found["shift_above_highs"] = {"median": float(np.median(loose)), "largest": float(loose.max())}
    with tempfile.TemporaryDirectory() as folder:
        from expunge_check.files import read_folder
        from expunge_check.verify import Checker

        write_certificate(Path(folder) / "c", patched, patches, proof, box, claim="float32", epsilon=1e-3)
        checker = Checker(read_folder(Path(folder) / "c"))
        start = time.perf_counter()
        report = checker.check()
        found["checker_points_per_second"] = len(rows) / (time.perf_counter() - start)
        found["verdicts"] = report.to_json()["counts"]
    batch = x[-256:]
    forms: dict[str, nn.Module] = {
        "base": model, "hash": patched, "matrix": patched.in_form("matrix"),
        "soft": PatchedModel(model, network, soften(patches, 1.0)),
    }  # fmt: skip
    if options.many:
        forms["hash_many"] = PatchedModel(model, network, synthetic(network, options.many))
    times = latency(forms, batch)
    found["latency_ms"] = times
    found["latency_factor"] = {name: value / times["base"] for name, value in times.items()}
    size = region_size(network, x[rows[0]], box)
    found["region_of_first_point"] = size.to_json()
    if options.search:
        each = max(1, options.search // 20)
        searches = [falsify(network, patched, x[rows[i]], int(targets[i]), box, samples=each) for i in range(20)]
        found["search"] = {"tried": sum(s.tried for s in searches), "worst_margin": min(s.worst for s in searches)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
