"""Speed and tightness of certified patches on an MLP 600-256-20 with binary features.

    python benchmarks/patches.py [--points 500] [--threads 2] [--highs 50] [--search 1000000] [--many 50000]

The records are drawn from 20 random product distributions over 600 bits (Purchase-20, the data of [Li2025], is not
available). Rates are in wall-clock time and depend on the load of the machine, so the result also has CPU seconds and
the load average before and after. Latency factors are medians of ratios of alternating runs, in CPU time and in
wall-clock time, on one thread and, for comparison, on all threads: a network that takes a millisecond gains little from
a second thread, and waiting for it costs CPU time. Writes results/patches.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import paired, peak_memory_mib, ratio, write_result
from torch import nn

from expunge.patches.bounds.falsify import falsify
from expunge.patches.bounds.solve import SolveOptions, soften, solve
from expunge.patches.certificate import write_certificate
from expunge.patches.model.gates import choose_local_slope
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import compute_atom_values
from expunge.patches.network.regions import Box, compute_patterns, measure_region, pack, unpack
from expunge.patches.network.trace import trace

sys.path.insert(0, str(Path(__file__).parents[1] / "checker" / "src"))


def records(count: int, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return records of the 20 distributions and their classes; with a seed, new records of them."""
    draws = np.random.default_rng(0)
    rates = 0.5 * draws.beta(0.4, 1.6, size=(20, 600))
    rates += rates.mean(0)
    draws = draws if seed is None else np.random.default_rng(seed)
    y = draws.integers(0, 20, count)
    x = torch.from_numpy((draws.random((count, 600)) < rates[y]).astype(np.float32))
    return x, torch.from_numpy(y)


def task(count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a trained network and its records."""
    x, labels = records(count)
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


def latency(models: dict[str, nn.Module], x: torch.Tensor, rounds: int, threads: int) -> dict[str, Any]:
    """Return the median milliseconds per batch and the ratio of each model to the base, measured alternately."""

    def timed(model: nn.Module, clock: Callable[[], float]) -> float:
        with torch.no_grad():
            start = clock()
            model(x)
            return clock() - start

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"threads": threads}
    for name, clock in (("cpu_time", time.process_time), ("wall_clock", time.perf_counter)):
        calls = {key: functools.partial(timed, model, clock) for key, model in models.items()}
        paired(calls, 5)
        times = paired(calls, rounds)
        found[name] = {
            "milliseconds": {key: 1e3 * float(np.median(some)) for key, some in times.items()},
            "factors": {key: ratio(some, times["base"]) for key, some in times.items() if key != "base"},
        }
    torch.set_num_threads(before)
    return found


class Clock:
    """Wall-clock and CPU seconds of a block."""

    def __enter__(self) -> Clock:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu

    def rate(self, count: int) -> dict[str, float]:
        """Return points per second of wall-clock time, and CPU seconds per point."""
        return {"per_second": count / self.wall, "cpu_seconds_each": self.cpu / count}


def synthetic(network: Any, count: int, *, real: bool = False) -> PatchSet:
    """Return `count` patches with random patterns, or (`real`) with the patterns of new records."""
    draws = np.random.default_rng(1)
    if real:
        pattern = np.unique(pack(compute_patterns(network, records(count + 1000, seed=1)[0])[1]), axis=0)[:count]
    else:
        pattern = np.unique(draws.integers(0, 256, (count + 100, network.atoms // 8), dtype=np.uint8), axis=0)[:count]
    none = np.zeros((len(pattern), 0), np.float32)
    zeros = np.zeros(len(pattern), np.int16)
    shift, group = np.ones(len(pattern), np.float32), np.arange(len(pattern), dtype=np.int32)
    return PatchSet("constant", network.atoms, 20, pattern, zeros, zeros + 1, shift, group, none, none)


def opened(layouts: dict[str, nn.Module], batch: torch.Tensor) -> dict[str, int]:
    """Return the number of rows of a batch with an open gate, by model."""
    return {
        name: int(model.opens_gate(batch).sum()) for name, model in layouts.items() if isinstance(model, PatchedModel)
    }


def main() -> None:
    """Run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--highs", type=int, default=50, help="number of points compared with HiGHS")
    parser.add_argument("--search", type=int, default=1_000_000, help="region points searched for counterexamples")
    parser.add_argument("--many", type=int, default=50_000, help="number of patches of a second latency measurement")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of latency")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = [os.getloadavg()[0]]
    model, x, y = task(6000)
    network, box = trace(model, (600,)), Box.of((600,))
    logits, bits = compute_patterns(network, x)
    rows = np.flatnonzero((logits.argmax(1) == y).numpy())[: options.points]
    order = logits[rows].argsort(1)
    targets = order[:, -2]
    solve(network, bits[rows[:32]], y[rows[:32]], targets[:32], box)
    with Clock() as clock:
        patches, proof = solve(network, bits[rows], y[rows], targets, box)
    patched = PatchedModel(model, network, patches)
    found: dict[str, Any] = {
        "points": len(rows),
        "patches": clock.rate(len(rows)),
        "patch_bytes_besides_the_pattern": patches.bytes_per_patch() - patches.pattern.shape[1],
        "pattern_bytes": patches.pattern.shape[1],
        "proof_bytes": proof.bytes_per_point,
        "median_shift": float(np.median(patches.shift)),
    }
    with tempfile.TemporaryDirectory() as folder:
        from expunge_check.folder.files import read_folder
        from expunge_check.verify import Checker

        write_certificate(Path(folder) / "c", patched, patches, proof, box, claim="float32", epsilon=1e-3)
        with Clock() as clock:
            report = Checker(read_folder(Path(folder) / "c")).check()
        found["checker"] = clock.rate(len(rows))
        found["verdicts"] = report.to_json()["counts"]
    with torch.no_grad():
        others = x[np.setdiff1d(np.arange(len(x)), rows)]
        values = [compute_atom_values(network, part, network.tensors)[1] for part in others.split(500)]
    slope = choose_local_slope(network, values, unpack(patches.pattern, network.atoms).float())
    layouts: dict[str, nn.Module] = {
        "base": model,
        "exact_hash": patched,
        "exact_matrix": patched.with_layout("matrix"),
        "soft_local": PatchedModel(model, network, soften(patches, slope)),
        "soft_wide": PatchedModel(model, network, soften(patches, 0.1)),
    }
    batch = x[-256:]
    found["latency"] = {"batch": 256, "patches": len(rows), "local_slope": slope}
    found["latency"]["runs"] = [latency(layouts, batch, options.rounds, n) for n in sorted({1, options.threads})]
    found["latency"]["rows_with_an_open_gate"] = opened(layouts, batch)
    if options.many:
        many, real = synthetic(network, options.many), synthetic(network, options.many, real=True)
        local = choose_local_slope(network, values, unpack(real.pattern, network.atoms).float())
        layouts = {
            "base": model,
            "exact_hash": PatchedModel(model, network, many),
            "exact_hash_records": PatchedModel(model, network, real),
            "soft_random": PatchedModel(model, network, many.with_gate("soft", slope)),
            "soft_records": PatchedModel(model, network, real.with_gate("soft", slope)),
            "soft_records_local": PatchedModel(model, network, real.with_gate("soft", local)),
        }
        found["latency_many"] = {
            "patches": len(many),
            "slope": slope,
            "local_slope": local,
            "runs": [latency(layouts, batch, max(5, options.rounds // 2), n) for n in sorted({1, options.threads})],
            "rows_with_an_open_gate": opened(layouts, batch),
        }
    load.append(os.getloadavg()[0])
    found["region_of_first_point"] = measure_region(network, x[rows[0]], box).to_json()
    if options.highs:
        some = rows[: options.highs]
        exact, _ = solve(network, bits[some], y[some], targets[: len(some)], box, SolveOptions(solver="highs"))
        loose = patches.shift[: len(some)] / exact.shift - 1
        found["shift_above_highs"] = {
            "points": len(some), "median": float(np.median(loose)), "largest": float(loose.max())
        }  # fmt: skip
        if options.search:
            case = (model, network, x, rows, targets, box)
            found["search"] = search(case, patches, exact, options.search)
    write_result(
        "patches",
        {"network": "MLP 600-256-20", "seed": 0, "load_average": load, **found, "peak_memory_mib": peak_memory_mib()},
    )


def search(case: tuple[Any, ...], patches: PatchSet, exact: PatchSet, count: int) -> dict[str, Any]:
    """Search counterexamples to valid patches, and to patches one per cent below the optimum."""
    model, network, x, rows, targets, box = case
    points = 5
    true = PatchedModel(model, network, patches)
    weak = PatchedModel(model, network, dataclasses.replace(exact, shift=0.99 * (exact.shift - 2e-3)))
    found = [
        falsify(network, true, x[rows[i]], int(targets[i]), box, samples=int(1.3 * count / points), chains=1024)
        for i in range(points)
    ]
    broken = [falsify(network, weak, x[rows[i]], int(targets[i]), box, samples=2000) for i in range(points)]
    return {
        "points": points, "tried": sum(s.tried for s in found), "smallest_margin": min(s.worst for s in found),
        "one_per_cent_below_the_optimum_broken": sum(s.worst < 0 for s in broken),
    }  # fmt: skip


if __name__ == "__main__":
    main()
