"""How the difference of two runs changes along training: what a prefix of them says about their ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from expunge.core.errors import ConfigError
from expunge.core.hashing import plain_parameters
from expunge.core.request import ForgetRequest
from expunge.core.show import repr_fields
from expunge.core.trained import Trained
from expunge.methods.initial_weights import RECORD_HINT, build_initial_network
from expunge.methods.retraining import Retraining
from expunge.methods.start import find_start, strip_patches
from expunge.training.context import Context
from expunge.training.recipes import Recipe, get_recipe

from .prefix import check_prefix

#: The trace of all parameters together.
ALL = "all"


@dataclasses.dataclass(frozen=True)
class DecayTrace:
    """The difference d_t = theta_t(D_r) - theta_t(D) of some parameters, for the epochs t of a `Decay`.

    Attributes:
        norm: ||d_t||.
        relative: ||d_t|| / ||theta_T(D) - theta_0||; None if these parameters did not move.
        cosine: cosine of d_t with d_T; None where one of them is 0.
        cosine_at: the same with d_k, by k.
        error: ||d_T - d_t|| / ||d_T||: the distance of theta_T(D) + d_t from the retrained weights, relative to that of
            theta_T(D). Below 1, replay to t comes nearer to them than doing nothing does; None if d_T is 0.
        factor: the c for which theta_T(D) + c d_t is nearest to the retrained weights; None if d_t is 0.
    """

    norm: tuple[float, ...]
    relative: tuple[float | None, ...]
    cosine: tuple[float | None, ...]
    cosine_at: Mapping[int, tuple[float | None, ...]]
    error: tuple[float | None, ...]
    factor: tuple[float | None, ...]

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Decay:
    """The difference of two runs against the epochs t = 0, ..., T.

    Attributes:
        epochs: t.
        rates: mean learning rate of the epoch that ends at t; 0 for t = 0.
        layers: trace by layer, and that of `all` parameters together.
    """

    epochs: tuple[int, ...]
    rates: tuple[float, ...]
    layers: Mapping[str, DecayTrace]

    __repr__ = repr_fields

    @property
    def rate_fractions(self) -> tuple[float, ...]:
        """The sum of the learning rates up to t, as a fraction of their sum up to T."""
        total = math.fsum(self.rates) or 1.0
        return tuple(math.fsum(self.rates[: place + 1]) / total for place in range(len(self.rates)))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        body = dataclasses.asdict(self)
        for trace in body["layers"].values():
            trace["cosine_at"] = {str(k): values for k, values in trace["cosine_at"].items()}
        return body


def compare_runs(
    with_records: Mapping[int, Mapping[str, torch.Tensor]],
    without: Mapping[int, Mapping[str, torch.Tensor]],
    *,
    at: Sequence[int] = (),
    rates: Sequence[float] = (),
) -> Decay:
    """Compare the weights of two runs that start from the same weights, epoch by epoch, in float64.

    Args:
        with_records: parameters of the run on D, by epoch and name; epoch 0 are the initial weights.
        without: those of the run on D_r, for the same epochs.
        at: epochs k to compare the direction with, besides the last.
        rates: mean learning rate of each epoch, that of epoch 0 included.

    Raises:
        ConfigError: the runs have other epochs, or an epoch of `at` is none of them.

    >>> import torch
    >>> from expunge.methods.replay import compare_runs
    >>> def run(*weights):
    ...     return {epoch: {"layer.weight": torch.tensor(w)} for epoch, w in enumerate(weights)}
    >>> runs = run([0.0, 0.0], [3.0, 0.0], [3.0, 4.0]), run([0.0, 0.0], [3.0, 1.0], [5.0, 6.0])
    >>> trace = compare_runs(*runs).layers["layer"]  # differences: (0, 0), (0, 1), (2, 2)
    >>> [None if value is None else round(value, 3) for value in trace.cosine], round(trace.error[1], 3)
    ([None, 0.707, 1.0], 0.791)
    """
    epochs = tuple(sorted(with_records))
    if tuple(sorted(without)) != epochs or len(epochs) < 2:
        raise ConfigError("the two runs do not have the same epochs", where="compare_runs")
    for k in at:
        if k not in epochs:
            raise ConfigError(f"epoch {k} is not one of the runs'", where="at", hint=f"0 to {epochs[-1]}")
    layers: dict[str, list[str]] = {}
    for name in with_records[epochs[0]]:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    groups = {**layers, ALL: list(with_records[epochs[0]])}
    traces = {group: _trace(with_records, without, epochs, names, at) for group, names in groups.items()}
    return Decay(epochs, tuple(rates) or (0.0,) * len(epochs), traces)


def _trace(
    with_records: Mapping[int, Mapping[str, torch.Tensor]],
    without: Mapping[int, Mapping[str, torch.Tensor]],
    epochs: Sequence[int],
    names: Sequence[str],
    at: Sequence[int],
) -> DecayTrace:
    def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].detach().cpu().double().flatten() for name in names])

    moved = float((flat(with_records[epochs[-1]]) - flat(with_records[epochs[0]])).norm())
    apart = [flat(without[epoch]) - flat(with_records[epoch]) for epoch in epochs]
    norms = [float(one.norm()) for one in apart]

    def cosines(other: int) -> tuple[float | None, ...]:
        pairs = [
            None if min(norm, norms[other]) == 0 else float(one @ apart[other]) / (norm * norms[other])
            for one, norm in zip(apart, norms, strict=True)
        ]
        return tuple(None if value is None else max(-1.0, min(1.0, value)) for value in pairs)

    end = apart[-1]
    return DecayTrace(
        norm=tuple(norms),
        relative=tuple(norm / moved if moved else None for norm in norms),
        cosine=cosines(len(epochs) - 1),
        cosine_at={k: cosines(epochs.index(k)) for k in at},
        error=tuple(float((end - one).norm()) / norms[-1] if norms[-1] else None for one in apart),
        factor=tuple(
            float(one @ end) / norm**2 if norm else None for one, norm in zip(apart, norms, strict=True)
        ),
    )  # fmt: skip


def measure_decay(trained: Trained, request: ForgetRequest, context: Context, *, at: Sequence[int] = ()) -> Decay:
    """Train with and without the records of a request, and compare the two runs after every epoch.

    Both runs repeat the dense training of the original: recipe, initial weights, order of records. They take the
    weights of the last epoch. This costs T passes over D and T over D_r.

    Args:
        trained: the original. Its recipe and the seeds of its order and its initial weights are needed; its weights are
            not.
        request: D_f.
        context: records and runtime.
        at: epochs k to compare the direction with, besides the last.

    Raises:
        MethodError: recipe, order or initial weights of the original are not available.
        ConfigError: an epoch of `at` is not one of the recipe's.
        RequestError: the request does not fit the split.

    >>> import expunge
    >>> from expunge.methods.replay import measure_decay
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> trained = expunge.train(records, split, network, recipe=expunge.get_recipe("one-cycle", epochs=3), seed=0)
    >>> decay = measure_decay(trained, expunge.ForgetRequest(split.retain[:100]), expunge.Context(records), at=[1])
    >>> decay.epochs, sorted(decay.layers), decay.layers["all"].error[0], decay.layers["all"].error[3]
    ((0, 1, 2, 3), ['all', 'classifier', 'hidden.0'], 1.0, 0.0)
    """
    where = "measure_decay"
    trained = strip_patches(trained)
    check_prefix("recomputed", 1, trained, where)
    recipe = get_recipe(trained.provenance.recipe)
    for k in at:
        if not 0 <= k <= recipe.epochs:
            raise ConfigError(f"epoch {k} is not one of the recipe's", where="at", hint=f"0 to {recipe.epochs}")
    network = build_initial_network(trained, where=where, hint=RECORD_HINT)
    initial = {name: p.detach().clone() for name, p in plain_parameters(network).items()}
    seeds = {"initial": 0, **trained.provenance.seeds}
    start = find_start(trained, seeds["initial"])
    runs = []
    for part, split in (("with", trained.split), ("without", request.apply(trained.split))):
        retraining = Retraining(trained, split, context, dict(seeds), start, "decay", initial)
        run = retraining.train_prefix(recipe.epochs, recipe=recipe, keep=range(1, recipe.epochs), part=part)
        snapshots = {epoch: {name: state[name] for name in initial} for epoch, state in run.snapshots.items()}
        runs.append({0: initial, **snapshots})
    steps = -(-len(trained.split.train) // recipe.batch_size)
    return compare_runs(*runs, at=at, rates=list_rates(recipe, steps) if recipe.counts_steps else list_rates(recipe))


def list_rates(recipe: Recipe, steps: int = 100) -> tuple[float, ...]:
    """Mean learning rate of the epochs 1, ..., T of a recipe, after a 0 for the start.

    Args:
        recipe: the recipe.
        steps: points of an epoch at which the rate is read; if the recipe counts steps, the steps of an epoch.
    """
    means = [
        math.fsum(recipe.rate(epoch + (step + 0.5) / steps, steps) for step in range(steps)) / steps
        for epoch in range(recipe.epochs)
    ]
    return (0.0, *means)
