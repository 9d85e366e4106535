"""Images per second of expunge's training loop against a bare tensor-indexed PyTorch loop, in one process.

    python benchmarks/training_loop.py [--rounds 7] [--steps 12] [--clock wall|cpu]

Data: CIFAR-10-shaped random images (uint8, 3 x 32 x 32) with crop and flip in expunge and none of it in the bare loop;
model: ResNet-20; batch 128; SGD with momentum 0.9 and weight decay 5e-4. The bare loop indexes a float32 tensor that is
ready in memory: no augmentation, no records, no mask, no progress. The limit that binds is the CPU's arithmetic: the
forward and backward passes of ResNet-20 are more than 95 % of either loop. On a machine that others use too, `--clock
cpu` with one thread (OMP_NUM_THREADS=1) counts the seconds of this process alone.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from _common import cpu_flags, paired, peak_memory_mib, ratio, write_result
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.data import Records
from expunge.models import architecture
from expunge.sparsity import prunable_weights
from expunge.training import Context, Recipe, Runtime, fit

BATCH = 128
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter


def records(count: int) -> Records:
    """Random images with random labels."""
    draw = np.random.default_rng(0)
    return Records(
        "random images",
        np.asarray([f"image-{i:05d}" for i in range(count)]),
        draw.integers(0, 10, count),
        tuple("0123456789"),
        features=draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
    )


def bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
    """Seconds for `steps` steps of the plainest loop there is."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    order = torch.randperm(len(x))
    begun = clock()
    for step in range(steps):
        index = order[step * BATCH : (step + 1) * BATCH]
        loss = nn.functional.cross_entropy(model(x[index]), y[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return clock() - begun


def ours(model: nn.Module, data: Records, runtime: Runtime, augment: str, mask: Mask | None = None) -> float:
    """Seconds of one epoch of expunge's loop, everything included."""
    begun = clock()
    recipe = Recipe(epochs=1, batch_size=BATCH, augment=augment)
    fit(model, np.arange(len(data)), recipe, Context(data, runtime), mask=mask)
    return clock() - begun


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    steps = arguments.steps
    data = records(steps * BATCH)
    x = torch.from_numpy(data.features).float() / 255  # type: ignore[arg-type]
    y = torch.from_numpy(data.labels)
    blueprint = architecture("resnet20", data)
    plain, last, bf16 = (
        Runtime("cpu"),
        Runtime("cpu", channels_last=True),
        Runtime("cpu", precision="bf16", channels_last=True),
    )
    models = {name: blueprint.build(0) for name in ("bare", "expunge", "augmented", "masked", "channels-last", "bf16")}
    for name, runtime in (("channels-last", last), ("bf16", bf16)):
        models[name] = runtime.place(models[name])
    weights = prunable_weights(models["masked"])
    draw = torch.Generator().manual_seed(0)
    mask = Mask({n: torch.rand(w.shape, generator=draw) > 0.95 for n, w in weights.items()}, MaskProvenance("random"))
    runs = {
        "bare": lambda: bare(models["bare"], x, y, steps),
        "expunge": lambda: ours(models["expunge"], data, plain, "none"),
        "augmented": lambda: ours(models["augmented"], data, plain, "crop-flip"),
        "masked": lambda: ours(models["masked"], data, plain, "none", mask),
        "channels-last": lambda: ours(models["channels-last"], data, last, "none"),
        "bf16": lambda: ours(models["bf16"], data, bf16, "none"),
    }
    if not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        del runs["bf16"]  # emulated, it is slower than float32 by more than an order of magnitude
    for run in runs.values():
        run()
    seconds = paired(runs, arguments.rounds)
    images = steps * BATCH
    write_result(
        "training_loop",
        {
            "images_a_second": {name: images / sorted(times)[len(times) // 2] for name, times in seconds.items()},
            "speed_over_bare": {name: ratio(seconds["bare"], times) for name, times in seconds.items()},
            "masked_over_dense": ratio(seconds["masked"], seconds["expunge"]),
            "targets": {
                "expunge": "at least 0.95 of bare",
                "bf16": "at least 1.5 of bare where the CPU has AVX512-BF16"
                + ("" if "avx512_bf16" in cpu_flags() else " (this one has not: the target does not apply)"),
            },
            "peak_memory_mib": peak_memory_mib(),
            "clock": arguments.clock,
            "batch": BATCH,
            "images": images,
        },
    )


if __name__ == "__main__":
    main()
