"""CPU seconds of GA, with everything around it, against a bare PyTorch loop of gradient ascent, in one process.

    python benchmarks/ascent.py [--rounds 20] [--records 1000 4500] [--epochs 5]

Data: random images of Fashion-MNIST's shape (uint8, 1 x 28 x 28), of which the first are forgotten; model: small-cnn.
The bare loop indexes a float32 tensor that is ready in memory, and does the same number of SGD steps with the same
momentum and weight decay. GA's time is that of `forget` as a whole: it copies the model, converts the images, draws the
order, compares every tensor with the original and hashes the result. 4,500 records are the random request of [Jia2023],
a tenth of 45,000. CPU seconds of the process, with one thread: on a shared machine they depend less on others than
wall-clock time. Both runs alternate; the ratio is that of each pair.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
from _common import paired, ratio, write_result
from torch import nn

from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data import Records
from expunge.methods import get_method
from expunge.models import architecture
from expunge.training import Context, Recipe, Runtime, train

BATCH, RATE, MOMENTUM, DECAY = 256, 1e-4, 0.9, 5e-4


def make(forgotten: int) -> tuple[Trained, ForgetRequest, Context]:
    """A model after one epoch on a few records, a request, and its context."""
    count = forgotten + 512
    draw = np.random.default_rng(0)
    ids = [f"image-{i:05d}" for i in range(count)]
    records = Records(
        "random images", ids, draw.integers(0, 10, count), tuple("0123456789"),
        features=draw.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8),
    )  # fmt: skip
    split = Split(retain=ids, forget=[], validation=[], test=[], non_members=[])
    network = architecture("small-cnn", records, split)
    recipe = Recipe(epochs=1, batch_size=BATCH, augment="none")
    trained = train(records, split, network, recipe=recipe, seed=0, runtime=Runtime("cpu"))
    return trained, ForgetRequest(ids[:forgotten]), Context(records, Runtime("cpu"), seed=0)


def run_bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> float:
    """CPU seconds of the plainest loop of gradient ascent that does the same steps."""
    started = time.process_time()
    model = copy.deepcopy(model)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            index = order[start : start + BATCH]
            loss = -nn.functional.cross_entropy(model(x[index]), y[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return time.process_time() - started


def run_ours(trained: Trained, request: ForgetRequest, context: Context, epochs: int) -> float:
    """CPU seconds of `forget`."""
    method = get_method("GA", epochs=epochs, learning_rate=RATE, batch_size=BATCH, augment="none")
    started = time.process_time()
    method.forget(trained, request, context)
    return time.process_time() - started


def measure(records: int, epochs: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of both for a request of some records."""
    trained, request, context = make(records)
    rows = context.records.rows(request.record_ids)
    x = torch.from_numpy(context.records.features[rows].astype(np.float32)) / 255
    y = torch.from_numpy(context.records.labels[rows])
    runs = {
        "bare": lambda: run_bare(trained.model, x, y, epochs),
        "GA": lambda: run_ours(trained, request, context, epochs),
    }
    for run in runs.values():
        run()
    seconds = paired(runs, rounds)
    return {
        "records": records,
        "cpu_seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "ours_over_bare": ratio(seconds["GA"], seconds["bare"]),
    }


def main() -> None:
    """Measure, and write benchmarks/results/ascent.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 4500])
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_result(
        "ascent",
        {
            "network": "small-cnn",
            "epochs": arguments.epochs,
            "batch": BATCH,
            "target": "no slower than the bare loop: a ratio of at most 1, up to its spread over rounds",
            "requests": [measure(count, arguments.epochs, arguments.rounds) for count in arguments.records],
        },
    )


if __name__ == "__main__":
    main()
