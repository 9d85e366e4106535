"""What Gaussian noise after Rewind guarantees, if the loss has the stated constants (docs/replay-noise.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.probe import make_probe
from expunge.core.seeds import epoch_order, global_rng, torch_generator
from expunge.core.trained import Trained, clone_model, find_running_tensors
from expunge.data.records import Records
from expunge.training.recipes import Recipe

#: What the bound assumes and nothing checks.
ASSUMPTIONS = (
    "the loss of each record is smooth with the stated constant, wherever the runs go",
    "its gradient is at most the stated bound on D, wherever the run on D goes",
    "training is exact gradient descent: rounding is not covered",
    "the noise is secret: whoever knows the seed of the method can subtract it",
    "the checkpoint, and models and outputs released before, are not available",
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of two coupled runs of gradient descent.

    Attributes:
        rates: learning rates of the run on D and of that on D_r; 0 where a run makes no step.
        unequal: sum over records of the difference of their weights, |rate_D w_i - rate_r w'_i|: w_i is 1 / B for a
            record of the batch, and 0 for others.
    """

    rates: tuple[float, float]
    unequal: float


def bound_distance(
    steps: Iterable[Step], *, smoothness: float, gradient_bound: float, weight_decay: float = 0.0, norm: float = 0.0,
    distance: float = 0.0,
) -> float:  # fmt: skip
    """Bound how far two coupled runs of gradient descent come apart (docs/replay-noise.md).

    Args:
        steps: their steps.
        smoothness: L, a Lipschitz constant of the gradient of the loss of each record, without weight decay.
        gradient_bound: G, a bound of the norm of that gradient.
        weight_decay: of both runs.
        norm: of the weights that the run on D starts from; it matters only with weight decay.
        distance: of the weights that the two start from.

    >>> round(bound_distance([Step((0.1, 0.1), 0.1 * 0.5)] * 2, smoothness=1.0, gradient_bound=2.0), 3)
    0.21
    """
    for step in steps:
        all_rate, retain_rate = step.rates
        growth = abs(1 - retain_rate * weight_decay) + retain_rate * smoothness
        drift = gradient_bound * step.unequal + abs(all_rate - retain_rate) * weight_decay * norm
        distance = growth * distance + drift
        norm = abs(1 - all_rate * weight_decay) * norm + all_rate * gradient_bound
    return distance


def couple_epochs(
    records: Records, rows: tuple[NDArray[np.int64], NDArray[np.int64]], recipe: Recipe, order: int, epochs: range
) -> Iterator[Step]:
    """Couple the steps of two runs of the recipe, batch by batch, as `expunge.training.fit` makes them.

    Args:
        records: the records.
        rows: row numbers of the records of the two runs.
        recipe: of both.
        order: seed of the order of records.
        epochs: the epochs.
    """
    for epoch in epochs:
        batches = [_split(records, part, recipe.batch_size, order, epoch) for part in rows]
        weights = [np.zeros(len(records)), np.zeros(len(records))]
        for step in range(max(len(part) for part in batches)):
            rates = []
            for part, weight in zip(batches, weights, strict=True):
                rate = recipe.rate(epoch + step / len(part), len(part)) if step < len(part) else 0.0
                weight[:] = 0
                if step < len(part):
                    weight[part[step]] = rate / len(part[step])
                rates.append(rate)
            yield Step((rates[0], rates[1]), float(np.abs(weights[0] - weights[1]).sum()))


def _split(
    records: Records, rows: NDArray[np.int64], batch_size: int, order: int, epoch: int
) -> list[NDArray[np.int64]]:
    ordered = rows[epoch_order(records.keys[rows], order, epoch)]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def find_delta(epsilon: float, ratio: float) -> float:
    """The smallest delta of the Gaussian mechanism: P(ratio/2 - eps/ratio) - e^eps P(-ratio/2 - eps/ratio).

    P is the distribution function of the normal distribution (Balle, Wang 2018, theorem 5).

    Args:
        epsilon: at least 0.
        ratio: distance of the two means in standard deviations.

    >>> round(find_delta(0.0, 1.0), 4)  # the total variation distance
    0.3829
    """
    if ratio == 0:
        return 0.0
    subtracted = math.exp(min(0.0, epsilon + float(log_ndtr(-ratio / 2 - epsilon / ratio))))
    return max(0.0, float(ndtr(ratio / 2 - epsilon / ratio)) - subtracted)


def find_epsilon(delta: float, ratio: float) -> float:
    """The smallest epsilon of the Gaussian mechanism for a delta, rounded up; see `find_delta`.

    >>> find_epsilon(1e-5, 0.0)
    0.0
    >>> epsilon = find_epsilon(1e-5, 1.0)
    >>> 4.37 < epsilon < 4.38, find_delta(epsilon, 1.0) <= 1e-5
    (True, True)
    """
    if find_delta(0.0, ratio) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while find_delta(high, ratio) > delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high or high - low < 1e-9 * high:
            break
        low, high = (low, middle) if find_delta(middle, ratio) <= delta else (middle, high)
    return high


def check_covered(trained: Trained, where: str) -> None:
    """Raise MethodError if the bound does not cover a model.

    Args:
        trained: the original without patches.
        where: the option, for the error.
    """
    provenance = trained.provenance
    if trained.mask is not None:
        _refuse("the mask was made from the records", where)
    if provenance.architecture.get("normalisation_from") == "training records":
        _refuse("the inputs are normalised by statistics of the training records", where)


def check_covered_network(model: nn.Module, input_shape: Sequence[int], where: str) -> None:
    """Raise MethodError if the bound does not cover a network: its loss has to be a mean over records."""
    if running := find_running_tensors(model, input_shape):
        _refuse(f"forward passes change tensors of the network ({running[0]})", where)
    if _mixes_records(model, input_shape):
        _refuse("the network mixes the records of a batch, or draws random numbers (BatchNorm, dropout)", where)


def check_covered_recipe(recipe: Recipe, where: str) -> None:
    """Raise MethodError if the bound does not cover the training of a recipe."""
    if not recipe.is_plain_sgd:
        _refuse("the recipe is not plain SGD (optimiser, clipping, label smoothing, parameters without decay)", where)
    if recipe.momentum:
        _refuse("the recipe has momentum, which the checkpoint does not store", where)
    if recipe.select != "last":
        _refuse("the recipe selects the best epoch by its validation accuracy", where)
    if recipe.augment != "none":
        _refuse("the recipe augments records", where)


def _refuse(what: str, where: str) -> NoReturn:
    raise MethodError(
        f"the bound does not cover this model: {what}",
        where=where,
        hint="leave smoothness and gradient_bound out: then the noise has no guarantee",
    )


def _mixes_records(model: nn.Module, input_shape: Sequence[int]) -> bool:
    """Whether the outputs for a record depend on the others of its batch, or on chance, or cannot be found."""
    copied = clone_model(model).cpu()
    for module in copied.modules():
        module.training = True
    x = make_probe(model, input_shape, 8, torch_generator(0, "rewind", "records"))
    try:
        with torch.no_grad(), global_rng(0, "rewind", 0):
            together, alone = copied(x), torch.cat([copied(one[None]) for one in x])
    except Exception:
        return True
    return not torch.allclose(together, alone, rtol=1e-3, atol=1e-4)


def add_noise(model: nn.Module, deviation: float, seed: int) -> None:
    """Add Gaussian noise to the trainable parameters of a model on the CPU, in place; the sum is formed in float64."""
    generator = torch_generator(seed, "rewind", "noise")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(parameter.double() + deviation * noise)
