"""Cost of the Fisher information, of products with the curvature and of influence, in training passes; peak memory.

    EXPUNGE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/curvature.py [--records 2000] [--rounds 3] [--threads 2]

ResNet-20 on the first training records of CIFAR-10, in float32. One pass is a forward pass in training mode and a
backward pass over the same records, in batches of 128, without optimiser, measured before and after each quantity; the
ratio is that of CPU seconds of this process, which other processes on the machine change less than the wall clock; that
ratio is printed too. The goals are those of the table `GOALS`. The Fisher information is taken on all records,
influence on a quarter of them, other quantities on an eighth, and the loop over single records and labels, as in
released code, on a few. Peak memory: of processes that
compute one quantity, by records and batch size.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _common import write_result
from torch import nn

import expunge
from expunge.data.batches import Batch, Batches
from expunge.training.curvature import (
    Curvature,
    conjugate_gradient,
    diagonal_fisher,
    draw_vector,
    gradient,
    kronecker_factors,
    per_record_gradients,
)

BATCH = 128
LOOPED = 8
STEPS = 20
#: Largest numbers of passes.
GOALS = {"fisher exact": 14.0, "fisher sampled": 3.0, f"influence, {STEPS} products": 45.0}


def load(count: int, batch: int = BATCH) -> tuple[nn.Module, Batches]:
    """ResNet-20 with the initial weights of seed 0 after one pass of training mode, and the records in order."""
    records = expunge.load_records("cifar10")
    batches = Batches(records, np.arange(count), batch_size=batch)
    torch.manual_seed(0)
    model = expunge.architecture("resnet20", records).build(seed=0)
    with torch.no_grad():
        model.train()(next(batches.in_order())[0])
    return model, batches


def train_pass(model: nn.Module, batches: Batches) -> None:
    """Forward in training mode and backward over all records."""
    model.train()
    for x, y in batches.in_order():
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()


def loop_over_records(model: nn.Module, batches: Batches) -> None:
    """The squares of the gradients of single records and labels, one backward pass each, as in released code."""
    model.eval()
    done, parameters = 0, list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x, _ in batches.in_order():
        for record in x:
            logits = model(record[None])
            p = logits.softmax(1).detach()[0]
            for label in range(len(p)):
                loss = nn.functional.cross_entropy(logits, torch.tensor([label]))
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                for t, g in zip(total, gradients, strict=True):
                    t += p[label] * g.square()
            done += 1
            if done == LOOPED:
                return


def influence(model: nn.Module, batches: Batches) -> None:
    """Both gradients and `STEPS` products of conjugate gradients, all on the same records, as IU takes them."""

    def source() -> Iterator[Batch]:
        return batches.in_order()

    v = gradient(model, source())
    matrix = Curvature(model, source, matrix_type="gauss-newton", damping=1e-2)
    assert conjugate_gradient(matrix, v, steps=STEPS, tolerance=0.0).products == STEPS


def clocks(run: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall-clock seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_memory(quantity: str, records: int, batch: int) -> dict[str, float]:
    """Peak memory in a process of its own, above that of the process with data and network, in MiB."""
    command = [sys.executable, __file__, "--memory-of", quantity, "--records", str(records), "--batch", str(batch)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"records": records, "batch": batch, **found}


def resident_peak_mib() -> float:
    """Peak resident memory of this process since it was reset, in MiB; Linux only."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def quantities(model: nn.Module, batches: Batches) -> dict[str, Callable[[], object]]:
    matrix = {name: Curvature(model, batches.in_order, matrix_type=name) for name in ("gauss-newton", "hessian")}
    v = draw_vector(dict(model.named_parameters()), 0)
    return {
        "fisher exact": lambda: diagonal_fisher(model, batches.in_order()),
        "fisher sampled": lambda: diagonal_fisher(model, batches.in_order(), kind="sampled"),
        "fisher empirical": lambda: diagonal_fisher(model, batches.in_order(), kind="empirical"),
        "gradients of single records": lambda: [per_record_gradients(model, x, y) for x, y in batches.in_order()],
        "kronecker factors sampled": lambda: kronecker_factors(model, batches.in_order(), kind="sampled"),
        "gauss-newton product": lambda: matrix["gauss-newton"].multiply(v),
        "hessian product": lambda: matrix["hessian"].multiply(v),
        f"influence, {STEPS} products": lambda: influence(model, batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, batches = load(arguments.records, arguments.batch)
    every = quantities(model, batches)
    if arguments.memory_of:
        train_pass(model, dataclasses.replace(batches, rows=batches.rows[:16], batch_size=16))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again: loading the records takes more
        before = resident_peak_mib()
        every[arguments.memory_of]()
        print(json.dumps({"mib": round(resident_peak_mib() - before, 1)}))
        return
    fewer = dataclasses.replace(batches, rows=batches.rows[: max(LOOPED, len(batches.rows) // 8)])
    quarter = dataclasses.replace(batches, rows=batches.rows[: max(LOOPED, len(batches.rows) // 4)])
    chosen = {name: (every[name], batches, arguments.rounds) for name in GOALS if name.startswith("fisher")}
    chosen[f"influence, {STEPS} products"] = (lambda: influence(model, quarter), quarter, 1)
    chosen |= {name: (run, fewer, 1) for name, run in quantities(model, fewer).items() if name not in GOALS}
    chosen["loop over records and labels"] = (lambda: loop_over_records(model, fewer), fewer, 1)
    train_pass(model, fewer)
    ratios: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in chosen}
    for turn in range(arguments.rounds):
        for name, (run, over, rounds) in chosen.items():
            if turn >= rounds:
                continue
            one_pass = functools.partial(train_pass, model, over)
            before, found, after = clocks(one_pass), clocks(run), clocks(one_pass)
            scale = over.count / LOOPED if name.startswith("loop") else 1.0
            for clock, number in (("cpu", 0), ("wall", 1)):
                ratio = 2.0 * found[number] * scale / (before[number] + after[number])
                ratios[name][clock].append(round(ratio, 2))
            print(name, ratios[name], flush=True, file=sys.stderr)
    medians = {name: float(np.median(found["cpu"])) for name, found in ratios.items()}
    memory = [
        measure_memory(name, records, batch)
        for name in ("fisher exact", "gauss-newton product")
        for records, batch in ((64, 64), (512, 64), (512, 256))
    ]
    write_result(
        "curvature",
        {
            "network": "resnet20",
            "data": "cifar10, the first records, not augmented",
            "records": {name: over.count for name, (_, over, _) in chosen.items()},
            "seed": 0,
            "passes": ratios,
            "goals": {
                name: {"most": most, "median": medians[name], "met": medians[name] <= most}
                for name, most in GOALS.items()
            },
            "peak memory above data and network (MiB)": {
                "fisher exact": memory[:3], "gauss-newton product": memory[3:]
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
