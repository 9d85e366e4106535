"""Scores of topologies: how alike two masks are, whether a mask moved to where it should, and what masks leak.

Masks are compared over the tensors they both name. Two random masks of density r have an expected IoU near r / (2 - r):
an overlap means nothing without that, and without the overlap of two runs that differ in their seeds alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, MaskError
from expunge.core.mask import Mask
from expunge.core.seeds import numpy_generator

from .auc import Separation, separation
from .score import Interval

Floats = NDArray[np.float64]


def _pairs(a: Mask, b: Mask) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    if set(a.kept) != set(b.kept):
        odd = sorted(set(a.kept) ^ set(b.kept))
        raise MaskError(
            "only one of the two masks speaks of this weight", where=odd[0], hint="compare masks of one kind"
        )
    for name, tensor in a.kept.items():
        if tensor.shape != b.kept[name].shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(b.kept[name].shape)}"
            raise MaskError(f"the masks have shapes {shapes}", where=name, hint="they are of two architectures")
    return [(name, tensor, b.kept[name]) for name, tensor in a.kept.items()]


def _ratio(both: int, either: int) -> float:
    return both / either if either else 1.0


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of the alive weights of two masks, in [0, 1]; 1 for two empty ones (paper B)."""
    pairs = _pairs(a, b)
    return _ratio(sum(int((x & y).sum()) for _, x, y in pairs), sum(int((x | y).sum()) for _, x, y in pairs))


def layer_iou(a: Mask, b: Mask) -> dict[str, float]:
    """Intersection over union of every tensor."""
    return {name: _ratio(int((x & y).sum()), int((x | y).sum())) for name, x, y in _pairs(a, b)}


def random_iou(density: float) -> float:
    """r / (2 - r): what two independent random masks of density r overlap by, for many weights."""
    return density / (2 - density)


def random_layer_iou(a: Mask, b: Mask) -> float:
    """Expected IoU of two independent random masks with the layers' densities of `a` and of `b`, for many weights.

    With n weights and densities p and q in a layer: sum n p q / sum n (p + q - p q).
    """
    both = either = 0.0
    for _, x, y in _pairs(a, b):
        p, q = float(x.double().mean()), float(y.double().mean())
        both, either = both + x.numel() * p * q, either + x.numel() * (p + q - p * q)
    return both / either if either else 1.0


def hamming(a: Mask, b: Mask) -> float:
    """Share of the weights in which two masks of equal sparsity differ, in [0, 1].

    Raises:
        MaskError: the numbers of alive weights differ by more than one in a thousand of all weights; the distance would
            measure sparsity then.
    """
    pairs = _pairs(a, b)
    if abs(a.kept_count - b.kept_count) > max(1, a.total // 1000):
        raise MaskError(
            f"the masks keep {a.kept_count} and {b.kept_count} of {a.total} weights; "
            "Hamming distances are for equal sparsity",
            hint="use the IoU, or re-prune to one sparsity",
        )
    return sum(int((x ^ y).sum()) for _, x, y in pairs) / max(1, a.total)


def density_divergence(a: Mask, b: Mask) -> float:
    """Jensen-Shannon divergence, in bits, between where two masks put their weights: the layers' shares of all alive.

    0 where every layer holds the same share of the alive weights, 1 where no layer holds weights of both.
    """
    p = np.asarray([int(x.sum()) for _, x, _ in _pairs(a, b)], dtype=float)
    q = np.asarray([int(y.sum()) for _, _, y in _pairs(a, b)], dtype=float)
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    middle = (p + q) / 2

    def divergence(x: Floats) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum())

    return (divergence(p) + divergence(q)) / 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over runs with its interval."""

    value: float
    interval: Interval
    runs: int


@dataclasses.dataclass(frozen=True)
class NormalisedOverlap:
    """Paper B's question as a fraction: (IoU(u, RR) - IoU(o, RR)) / (IoU(RR, RR') - IoU(o, RR)).

    u: un-pruned mask, o: the original's, RR and RR': retrained and re-pruned. 0 where un-pruning did not move the mask
    towards RR, 1 where it came as near as a second run of the reference does.

    Attributes:
        numerator, denominator: with their intervals; what is to be published.
        ratio, ratio_interval: None where the denominator's interval is not above zero: the original is then no farther
            from the reference than the reference from itself, and there is nothing to un-prune.
    """

    numerator: Estimate
    denominator: Estimate
    ratio: float | None
    ratio_interval: Interval | None


def normalised_overlap(
    unpruned: Sequence[float],
    original: Sequence[float],
    again: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> NormalisedOverlap:
    """The normalised overlap over paired runs.

    Run i gives IoU(u_i, RR_i), IoU(o_i, RR_i) and IoU(RR_i, RR_i'); RR_i starts from o_i's initial weights, and so does
    RR_i' with another order. Intervals are Student's t over the runs for numerator and denominator, and percentiles of
    a bootstrap over runs for the ratio.

    Args:
        unpruned: IoU(u_i, RR_i).
        original: IoU(o_i, RR_i).
        again: IoU(RR_i, RR_i').
        level: confidence level.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two runs, or lists of different lengths.
    """
    u, o, r = (np.asarray(values, dtype=float) for values in (unpruned, original, again))
    if not len(u) == len(o) == len(r):
        raise DataError(f"{len(u)}, {len(o)} and {len(r)} overlaps; they come in threes, a run each")
    if len(u) < 2:
        raise DataError("an interval needs at least two runs", hint="repeat with other seeds")
    above, below = u - o, r - o
    numerator, denominator = mean_estimate(above, level), mean_estimate(below, level)
    if denominator.interval.low <= 0:
        return NormalisedOverlap(numerator, denominator, None, None)
    rows = numpy_generator(seed, "normalised overlap").integers(0, len(u), (resamples, len(u)))
    tops, bottoms = above[rows].mean(1), below[rows].mean(1)
    drawn = tops[bottoms != 0] / bottoms[bottoms != 0]
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    ratio = numerator.value / denominator.value
    low, high = min(float(ends[0]), ratio), max(float(ends[1]), ratio)
    return NormalisedOverlap(numerator, denominator, ratio, Interval(low, high, level))


def mean_estimate(values: Sequence[float] | Floats, level: float = 0.95) -> Estimate:
    """Mean over runs with Student's t interval."""
    from scipy import stats

    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        raise DataError("an interval needs at least two runs", hint="repeat with other seeds")
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    mean = float(x.mean())
    return Estimate(mean, Interval(mean - half, mean + half, level), len(x))


def mask_features(mask: Mask, initial: dict[str, torch.Tensor] | None = None) -> Floats:
    """What an attacker who sees one mask reads from it, as one vector.

    Always: every bit, and for every tensor its density, the share of alive weights of every input (which means the same
    in every model, whatever its initial weights) and the sorted shares of its outputs. With the initial weights: every
    bit less what its weight's initial size and sign alone would predict (the mean bit among weights of its tensor with
    like initial size, in 32 groups), and the same times the sign of the initial weight.
    """
    parts: list[Floats] = []
    for name, alive in sorted(mask.kept.items()):
        bits = alive.double()
        parts.append(bits.reshape(-1).numpy())
        parts.append(np.asarray([float(bits.mean())]))
        if alive.dim() > 1:
            parts.append(bits.movedim(1, 0).reshape(alive.shape[1], -1).mean(1).numpy())
            parts.append(np.sort(bits.reshape(alive.shape[0], -1).mean(1).numpy()))
        if initial is not None:
            if name not in initial or initial[name].shape != alive.shape:
                raise MaskError("there are no initial weights of this shape", where=name)
            start = initial[name].double().reshape(-1)
            flat = bits.reshape(-1)
            order = torch.argsort(start.abs(), stable=True)
            surprise = torch.empty_like(flat)
            for group in order.tensor_split(min(32, len(order))):
                surprise[group] = flat[group] - flat[group].mean()
            parts += [surprise.numpy(), (surprise * start.sign()).numpy()]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What masks leak about D_f.

    Attributes:
        auc: P(a mask trained with D_f looks more like the former group than one trained without) + P(equal) / 2, on the
            half of the models that the attacker was not fitted on.
        interval: bootstrap over those models.
        null: the same AUC after shuffling who was trained with D_f, many times: what chance alone gives.
        null_interval: the middle 95 % of `null`.
        p_value: share of `null` (with 1 added to both counts) at least as far from 1/2 as `auc`.
        models: models on each side that were scored.
    """

    auc: float
    interval: Interval
    null: tuple[float, ...]
    null_interval: Interval
    p_value: float
    models: tuple[int, int]


def _attacks(features: Floats, fits: NDArray[np.bool_], truths: NDArray[np.bool_]) -> Floats:
    """Many diagonal linear discriminants on subsets of the same models: sum_j (m1_j - m0_j) / (var_j + prior) x_j.

    m1 and m0 are the means of the two groups of an attack's fitting models, and var their pooled variance; it is shrunk
    towards its mean over the features, the prior, since features outnumber models by far. Larger means trained with
    D_f. All attacks are products with the same matrix, taken a block of features at a time.

    Args:
        features: `N x F`.
        fits: `P x N`; the models that each attack is fitted on, of both groups.
        truths: `P x N`; whom each attack takes to be trained with D_f.

    Returns:
        `P x N` scores, of the fitting models too.
    """
    ones, zeros = (fits & truths).astype(np.float64), (fits & ~truths).astype(np.float64)
    few, many = ones.sum(1, keepdims=True), zeros.sum(1, keepdims=True)
    count = few + many
    centred = features - features.mean(0)  # the scores of an attack all move alike, and its squares lose no digits
    gram = centred @ centred.T
    means = [group / size for group, size in ((ones, few), (zeros, many))]
    lengths = [np.einsum("pn,nm,pm->p", mean, gram, mean, optimize=True)[:, None] for mean in means]
    scatter = (ones + zeros) @ np.diag(gram)[:, None] - few * lengths[0] - many * lengths[1]
    prior = scatter / count / features.shape[1] + 1e-12
    scores = np.zeros(fits.shape)
    for start in range(0, features.shape[1], 4096):
        block = centred[:, start : start + 4096]
        one, none = means[0] @ block, means[1] @ block
        pooled = ((ones + zeros) @ block**2 - few * one**2 - many * none**2) / count
        scores += ((one - none) / (np.maximum(pooled, 0) + prior)) @ block.T
    digits = 1e-10 * np.maximum(np.abs(scores).max(1, keepdims=True), 1e-30)
    return np.round(scores / digits) * digits  # equal masks score the same, whatever the order of summation


def topology_leakage(
    with_forget: Floats,
    without_forget: Floats,
    *,
    permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Leakage:
    """How well an attacker who sees only masks tells models trained with D_f from models trained without it.

    The attacker is fitted on one half of the models of each side and scored on the other half.

    Args:
        with_forget: `A x F` features (`mask_features`) of models whose training records include D_f.
        without_forget: `B x F` features of models whose records do not; the other records re-drawn for every model.
        permutations: shufflings of the labels for the null spread.
        level: of both intervals.
        seed: of the halves, the shufflings and the bootstrap.

    Raises:
        DataError: fewer than four models on a side, features of different lengths, or one that is not finite.
        ConfigError: no permutation.
    """
    if min(len(with_forget), len(without_forget)) < 4:
        raise DataError(
            f"{len(with_forget)} models against {len(without_forget)}; half of each side fits, the other is scored",
            hint="at least 4 on each side; 64 for an interval worth printing",
        )
    if with_forget.shape[1] != without_forget.shape[1]:
        raise DataError("the two sides have features of different lengths: masks of two architectures")
    for side in (with_forget, without_forget):
        if not np.isfinite(side).all():
            row = int(np.flatnonzero(~np.isfinite(side).all(1))[0])
            raise DataError("the features hold NaN or infinite values", where=f"model {row} of its side")
    if permutations < 1:
        raise ConfigError("the null spread needs at least one permutation", where="permutations")
    features = np.concatenate([with_forget, without_forget])
    features = features[:, features.std(0) > 0]
    labels = np.arange(len(features)) < len(with_forget)
    if features.shape[1] == 0:  # all masks are the same
        features = np.zeros((len(labels), 1))
    rng = numpy_generator(seed, "topology leakage")
    truths = np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))])
    fits = np.stack([_half(truth, rng) for truth in truths])
    scores = _attacks(features, fits, truths)

    def held_out(number: int, resamples: int = 0) -> Separation:
        held, truth = ~fits[number], truths[number]
        one, none = scores[number][held & truth], scores[number][held & ~truth]
        return separation(one, none, resamples=resamples, level=level, seed=seed)

    found = held_out(0, 2000)
    auc, interval = found.auc, found.auc_interval
    assert interval is not None
    null = [held_out(number).auc for number in range(1, len(truths))]
    low, high = np.quantile(null, [(1 - level) / 2, (1 + level) / 2])
    farther = sum(abs(value - 0.5) >= abs(auc - 0.5) - 1e-12 for value in null)
    return Leakage(
        auc=auc,
        interval=interval,
        null=tuple(null),
        null_interval=Interval(float(low), float(high), level),
        p_value=(farther + 1) / (len(null) + 1),
        models=(int((labels & ~fits[0]).sum()), int((~labels & ~fits[0]).sum())),
    )


def _half(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random half of each group."""
    chosen = np.zeros(len(truth), dtype=np.bool_)
    for group in (np.flatnonzero(truth), np.flatnonzero(~truth)):
        chosen[rng.permutation(group)[: len(group) // 2]] = True
    return chosen
