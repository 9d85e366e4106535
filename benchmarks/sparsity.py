"""Speed of sparsity, in one process: masked against dense training, physically smaller networks, stacked ensembles.

    python benchmarks/sparsity.py [--rounds 5] [--parts stacked small masked]

* masked: an epoch of expunge's loop on ResNet-20 with a 95 % mask against the same without one (limit: the arithmetic
  of convolutions; a mask costs two passes over the weights a step).
* small: inference of ResNet-20, batch 64, with 50 % of every coupled channel removed, against the dense network (limit:
  memory traffic of early layers; a quarter of the arithmetic is left).
* stacked: the ensemble trainer against a bare tensor-indexed loop, one model after the other, per model and step; at
  64-64-10 the limit is the overhead of calls, at 446-256-30 the arithmetic and the traffic of weights and momentum.

Every comparison is run in turn and given as the median ratio of CPU seconds of this process (the machine may be
shared), with wall-clock seconds beside it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import paired, peak_memory_mib, ratio, write_result
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.data import Records
from expunge.models import architecture
from expunge.sparsity import Rule, make_mask, prunable_weights, shrink
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import train_ensemble

CPU = Runtime("cpu")


def records(count: int, shape: tuple[int, ...], classes: int) -> Records:
    """Random records with random labels."""
    draw = np.random.default_rng(0)
    return Records(
        "random",
        np.asarray([f"r{i:05d}" for i in range(count)]),
        draw.integers(0, classes, count),
        tuple(str(k) for k in range(classes)),
        features=draw.random((count, *shape), dtype=np.float32),
    )


def cpu_seconds(work: Callable[[], Any], wall: list[float]) -> float:
    """CPU seconds of the calling thread; wall seconds are appended."""
    begun, start = time.perf_counter(), time.process_time()
    work()
    used = time.process_time() - start
    wall.append(time.perf_counter() - begun)
    return used


def bare(sizes: tuple[int, ...], x: torch.Tensor, y: torch.Tensor, recipe: Recipe, models: int) -> None:
    """The plainest loop: one model after the other, tensors indexed in memory."""
    for seed in range(models):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        optimiser = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        for _ in range(recipe.epochs):
            order = torch.randperm(len(x))
            for index in order.split(recipe.batch_size):
                loss = nn.functional.cross_entropy(model(x[index]), y[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()


def stacked(
    sizes: tuple[int, ...], count: int, models: int, rounds: int, engine: str, one_by_one: int
) -> dict[str, Any]:
    """Ratio of one-by-one to stacked training, per model."""
    data = records(count, (sizes[0],), sizes[-1])
    x, y = torch.from_numpy(data.features), torch.from_numpy(data.labels)
    recipe = Recipe(name="bench", epochs=2, batch_size=64, learning_rate=0.05)
    blueprint = architecture("mlp", data, normalise="none", widths=sizes[1:-1])
    members = [Member(np.arange(count), seed=seed) for seed in range(models)]
    walls: dict[str, list[float]] = {"bare": [], "stacked": []}
    timed = {
        "bare": lambda: cpu_seconds(lambda: bare(sizes, x, y, recipe, one_by_one), walls["bare"]) / one_by_one,
        "stacked": lambda: (
            cpu_seconds(
                lambda: train_ensemble(
                    data, blueprint, members, recipe=recipe, runtime=CPU, engine=engine, snapshots=()
                ),
                walls["stacked"],
            )
            / models
        ),
    }
    paired(timed, 1)
    for values in walls.values():
        values.clear()
    found = paired(timed, rounds)
    wall = ratio([w / one_by_one for w in walls["bare"]], [w / models for w in walls["stacked"]])
    return {"models": models, "engine": engine, "cpu": ratio(found["bare"], found["stacked"]), "wall": wall}


def small(rounds: int) -> dict[str, Any]:
    """Ratio of dense to physically smaller inference of ResNet-20 at batch 64."""
    data = records(64, (3, 32, 32), 10)
    model = architecture("resnet20", data, normalise="none").build(0).eval()
    mask, _ = make_mask(model, Rule("filter-l2", "filter", "layer", sparsity=0.5), input_shape=(3, 32, 32))
    smaller = shrink(model, mask, (3, 32, 32))
    x = torch.from_numpy(data.features)

    def timed(network: nn.Module, wall: list[float]) -> Callable[[], float]:
        def run() -> None:
            with torch.inference_mode():
                for _ in range(6):
                    network(x)

        return lambda: cpu_seconds(run, wall)

    walls: tuple[list[float], list[float]] = ([], [])
    pair = {"dense": timed(model, walls[0]), "small": timed(smaller.model, walls[1])}
    paired(pair, 1)
    for values in walls:
        values.clear()
    found = paired(pair, rounds)
    return {
        "cpu": ratio(found["dense"], found["small"]),
        "wall": ratio(*walls),
        "parameters": [smaller.parameters_before, smaller.parameters_after],
        "largest_difference": smaller.difference,
    }


def masked(rounds: int) -> dict[str, Any]:
    """Ratio of masked to dense training of ResNet-20."""
    data = records(384, (3, 32, 32), 10)
    blueprint = architecture("resnet20", data, normalise="none")
    weights = prunable_weights(blueprint.build(0))
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(p.shape, generator=generator) > 0.95 for name, p in weights.items()}
    mask = Mask(kept, MaskProvenance("random"))
    recipe = Recipe(name="bench", epochs=1, batch_size=128, learning_rate=0.01)

    def timed(with_mask: Mask | None, wall: list[float]) -> Callable[[], float]:
        def run() -> None:
            model = blueprint.build(0)
            fit(model, np.arange(384), recipe, Context(data, CPU), mask=with_mask)

        return lambda: cpu_seconds(run, wall)

    walls: tuple[list[float], list[float]] = ([], [])
    pair = {"masked": timed(mask, walls[0]), "dense": timed(None, walls[1])}
    paired(pair, 1)
    for values in walls:
        values.clear()
    found = paired(pair, rounds)
    return {"cpu": ratio(found["masked"], found["dense"]), "wall": ratio(*walls)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", nargs="*", default=["stacked", "small", "masked"])
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    body: dict[str, Any] = {
        "targets": {"masked": "<= 1.05", "small": ">= 1.8", "64-64-10": ">= 6", "446-256-30": ">= 1.6"}
    }
    if "stacked" in settings.parts:
        body["stacked"] = {
            "64-64-10": stacked((64, 64, 10), 1257, 64, settings.rounds, "products", 4),
            "64-64-64-10": stacked((64, 64, 64, 10), 1257, 64, settings.rounds, "products", 4),
            "446-256-30": stacked((446, 256, 30), 1600, 16, settings.rounds, "products", 3),
            "64-64-10 by vmap": stacked((64, 64, 10), 1257, 64, settings.rounds, "vmap", 4),
        }
    if "small" in settings.parts:
        body["small"] = small(settings.rounds)
    if "masked" in settings.parts:
        body["masked"] = masked(settings.rounds)
    body["peak_memory_mib"] = peak_memory_mib()
    write_result("sparsity", body)


if __name__ == "__main__":
    main()
