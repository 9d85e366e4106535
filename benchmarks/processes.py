"""Training on two processes with one thread each, beside one process with two threads; and whether both train the same.

    python benchmarks/processes.py [--rounds 5] [--steps 10] [--result FILE]

Data: CIFAR-10-shaped random images; model: ResNet-20; batch 128; SGD with momentum 0.9. The rate is
that between the first and the last report of progress, so that it has no start of processes in it; that is a number of
its own. The runs alternate, so that they share the noise of the machine.

The second part trains 20 steps of 8 augmented images: in float64 on one process, on two, and begun on two and resumed
on one; in float32 on one process, on two, and on one in channels-last order. It records the largest differences of a
weight or running statistic; channels-last order is a yardstick: it differs by rounding alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import paired, ratio, write_result
from torch import nn
from training_loop import records

from expunge.core.errors import Interrupted
from expunge.models import architecture
from expunge.training import Context, Recipe, Runtime, Steps, cross_entropy, fit, loop

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers" / "networks"))
from in_double import InDouble, apart, double_cross_entropy

BATCH = 128
RUNTIMES = {
    "one process": Runtime("cpu"),
    "two processes": Runtime("cpu", devices=2, strategy="ddp"),
    "two processes, local BatchNorm": Runtime("cpu", devices=2, strategy="ddp", sync_batchnorm=False),
}


class Watch:
    """Notes when how many records were done, and interrupts after some."""

    def __init__(self, stop: int | None = None) -> None:
        self.begun, self.noted, self.stop = time.perf_counter(), [(0.0, 0)], stop

    def __call__(self, label: str, done: int, total: int, info: Any) -> None:
        self.noted.append((time.perf_counter() - self.begun, done))
        if self.stop is not None and done >= self.stop:
            raise KeyboardInterrupt

    @property
    def seconds_a_record(self) -> float:
        (first, before), (last, after) = self.noted[1], self.noted[-1]
        return (last - first) / (after - before)


def time_run(runtime: Runtime, steps: int, starts: list[float]) -> float:
    """Seconds for a record; those before the first report are appended to `starts`."""
    data = records(steps * BATCH)
    model = architecture("resnet20", data).build(0)
    watch = Watch()
    fit(model, np.arange(len(data)), Recipe(epochs=1, batch_size=BATCH), Context(data, runtime, progress=watch))
    starts.append(watch.noted[1][0] - watch.noted[1][1] * watch.seconds_a_record)
    return watch.seconds_a_record


def train(runtime: Runtime, *, double: bool, path: Path | None = None, stop: int | None = None) -> nn.Module:
    """Two epochs of ten steps."""
    data = records(80)
    model = architecture("resnet20", data).build(0)
    model = runtime.place(InDouble(model) if double else model)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.01, augment="crop-flip")
    context = Context(data, runtime, checkpoint=path, progress=Watch(stop))
    fit(model, np.arange(80), recipe, context, steps=Steps(double_cross_entropy if double else cross_entropy))
    return runtime.release(model)


def compare() -> dict[str, float]:
    """Differences from 20 steps on one process."""
    one, two = RUNTIMES["one process"], RUNTIMES["two processes"]
    exact, plain = train(one, double=True), train(one, double=False)
    found = {"float64: two processes": apart(train(two, double=True), exact)}
    loop.CHECKPOINT_SECONDS = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        try:
            train(two, double=True, path=path, stop=100)
        except Interrupted:
            assert path.exists()
        found["float64: begun on two, resumed on one"] = apart(train(one, double=True, path=path), exact)
    found["float64: not trained"] = apart(InDouble(architecture("resnet20", records(80)).build(0)), exact)
    found["float32: two processes"] = apart(train(two, double=False), plain)
    found["float32: channels-last"] = apart(train(Runtime("cpu", channels_last=True), double=False), plain)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    starts: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    runs = {name: lambda n=name, r=r: time_run(r, arguments.steps, starts[n]) for name, r in RUNTIMES.items()}
    seconds = paired(runs, arguments.rounds)
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    body = {
        "images_a_second": {name: 1 / value for name, value in middle.items()},
        "speed_over_one_process": {name: ratio(seconds["one process"], found) for name, found in seconds.items()},
        "seconds_to_start": {name: sorted(values)[len(values) // 2] for name, values in starts.items()},
        "threads": {"one process": 2, "each of two processes": 1},
        "batch": BATCH,
        "images": arguments.steps * BATCH,
    }
    differences = compare()
    write_result(
        "processes", {**body, "largest_difference_from_one_process_after_20_steps": differences}, arguments.result
    )


if __name__ == "__main__":
    main()
