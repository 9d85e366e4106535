"""Similarity of two masks, and how far un-pruning moves a mask towards the reference's.

Two random masks of density r have an expected IoU near r / (2 - r). Compare an overlap with that value, and with the
overlap of two runs that differ only in their seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from expunge.core.errors import DataError, MaskError
from expunge.core.mask import Mask
from expunge.core.seeds import numpy_generator
from expunge.core.show import repr_fields

from .predictions import Floats
from .score import Interval
from .seeds import mean, t_interval


def _pair_tensors(a: Mask, b: Mask) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    if set(a.kept) != set(b.kept):
        odd = sorted(set(a.kept) ^ set(b.kept))
        raise MaskError(
            "only one of the two masks has this weight", where=odd[0], hint="compare masks of the same layers"
        )
    for name, tensor in a.kept.items():
        if tensor.shape != b.kept[name].shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(b.kept[name].shape)}"
            raise MaskError(f"the masks have shapes {shapes}", where=name, hint="they belong to two architectures")
    return [(name, tensor, b.kept[name]) for name, tensor in a.kept.items()]


def _divide(both: int, either: int) -> float:
    return both / either if either else 1.0


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of the kept weights of two masks, in [0, 1]; 1 if both are empty [Xiao2025].

    IoU(a, b) = sum (a and b) / sum (a or b), over all weights.

    Args:
        a: a mask.
        b: a mask of the same tensors.

    Raises:
        MaskError: the masks name different tensors, or tensors of different shapes.

    Examples:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.evaluation import iou
        >>> rows = ([1, 1, 0], [0, 1, 1])
        >>> a, b = (Mask({"w": torch.tensor(bits).bool()}, MaskProvenance("magnitude")) for bits in rows)
        >>> print(f"{iou(a, b):.3f}")
        0.333
    """
    pairs = _pair_tensors(a, b)
    return _divide(sum(int((x & y).sum()) for _, x, y in pairs), sum(int((x | y).sum()) for _, x, y in pairs))


def layer_iou(a: Mask, b: Mask) -> dict[str, float]:
    """Intersection over union of the kept weights of each tensor, by name, in [0, 1].

    Args:
        a: a mask.
        b: a mask of the same tensors.

    Raises:
        MaskError: the masks name different tensors, or tensors of different shapes.

    Examples:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.evaluation import layer_iou
        >>> a = Mask({"1": torch.tensor([True, True]), "2": torch.tensor([True, False])}, MaskProvenance("magnitude"))
        >>> b = Mask({"1": torch.tensor([True, True]), "2": torch.tensor([False, True])}, MaskProvenance("magnitude"))
        >>> layer_iou(a, b)
        {'1': 1.0, '2': 0.0}
    """
    return {name: _divide(int((x & y).sum()), int((x | y).sum())) for name, x, y in _pair_tensors(a, b)}


def random_iou(density: float) -> float:
    """r / (2 - r): the expected IoU of two independent random masks of density r, for many weights.

    Args:
        density: fraction of kept weights, in [0, 1].

    Examples:
        >>> from expunge.evaluation import random_iou
        >>> print(f"{random_iou(0.05):.4f}")
        0.0256
    """
    return density / (2 - density)


def random_layer_iou(a: Mask, b: Mask) -> float:
    """Expected IoU of two independent random masks with the layers' densities of `a` and of `b`, for many weights.

    With n weights and densities p and q in a layer: sum n p q / sum n (p + q - p q).
    """
    both = either = 0.0
    for _, x, y in _pair_tensors(a, b):
        p, q = float(x.double().mean()), float(y.double().mean())
        both, either = both + x.numel() * p * q, either + x.numel() * (p + q - p * q)
    return both / either if either else 1.0


def hamming_distance(a: Mask, b: Mask) -> float:
    """Fraction of the weights in which two masks of equal sparsity differ, in [0, 1].

    Args:
        a: a mask.
        b: a mask of the same tensors.

    Raises:
        MaskError: the masks name different tensors, or the numbers of kept weights differ by more than 0.1 % of all
            weights (the distance would then measure sparsity).

    Examples:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.evaluation import hamming_distance
        >>> rows = ([1, 1, 0, 0], [1, 0, 1, 0])
        >>> a, b = (Mask({"w": torch.tensor(bits).bool()}, MaskProvenance("magnitude")) for bits in rows)
        >>> hamming_distance(a, b)
        0.5
    """
    pairs = _pair_tensors(a, b)
    if abs(a.kept_count - b.kept_count) > max(1, a.total // 1000):
        raise MaskError(
            f"the masks keep {a.kept_count} and {b.kept_count} of {a.total} weights; "
            "the Hamming distance needs equal sparsity",
            hint="use the IoU, or re-prune to one sparsity",
        )
    return sum(int((x ^ y).sum()) for _, x, y in pairs) / max(1, a.total)


def density_divergence(a: Mask, b: Mask) -> float:
    """Jensen-Shannon divergence, in bits, between the distributions of kept weights over the layers of two masks.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, where p and q are the fractions of all kept weights
    in each layer. It is 0 if the two distributions are equal and 1 if no layer has kept weights in both masks.

    Args:
        a: a mask.
        b: a mask of the same tensors.

    Raises:
        MaskError: the masks name different tensors, or tensors of different shapes.

    Examples:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.evaluation import density_divergence
        >>> def mask(first, second):
        ...     tensors = {"1": torch.tensor(first).bool(), "2": torch.tensor(second).bool()}
        ...     return Mask(tensors, MaskProvenance("magnitude"))
        >>> density_divergence(mask([1, 0], [1, 0]), mask([0, 1], [0, 1]))
        0.0
        >>> density_divergence(mask([1, 1], [0, 0]), mask([0, 0], [1, 1]))
        1.0
    """
    p = np.asarray([int(x.sum()) for _, x, _ in _pair_tensors(a, b)], dtype=float)
    q = np.asarray([int(y.sum()) for _, _, y in _pair_tensors(a, b)], dtype=float)
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    middle = (p + q) / 2

    def divergence(x: Floats) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum())

    return (divergence(p) + divergence(q)) / 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over runs with its confidence interval."""

    value: float
    interval: Interval
    runs: int


@dataclasses.dataclass(frozen=True)
class NormalisedOverlap:
    """How far un-pruning moves a mask towards the reference's: (IoU(u, RR) - IoU(o, RR)) / (IoU(RR, RR') - IoU(o, RR)).

    u is the un-pruned mask, o the original's, RR and RR' are two runs of the retrained and re-pruned reference
    [Xiao2025]. The ratio is 0 if un-pruning did not move the mask towards RR and 1 if the mask is as close to RR as a
    rerun of the reference.

    Attributes:
        numerator, denominator: the two differences with their intervals; report these.
        ratio, ratio_interval: None if the denominator's interval is not above zero: the original's mask is then as
            close to the reference as a rerun of the reference, and there is nothing to un-prune.
    """

    numerator: Estimate
    denominator: Estimate
    ratio: float | None
    ratio_interval: Interval | None

    __repr__ = repr_fields


def normalised_overlap(
    unpruned: Sequence[float],
    original: Sequence[float],
    rerun: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> NormalisedOverlap:
    """The normalised overlap over paired runs; see `NormalisedOverlap`.

    Run i gives IoU(u_i, RR_i), IoU(o_i, RR_i) and IoU(RR_i, RR_i'). RR_i and RR_i' both start from the initial weights
    of o_i and differ in the order of records. Numerator and denominator get Student's t intervals over the runs; the
    ratio gets a percentile interval of a bootstrap over runs.

    Args:
        unpruned: IoU(u_i, RR_i), one value a run.
        original: IoU(o_i, RR_i), likewise.
        rerun: IoU(RR_i, RR_i'), likewise.
        level: confidence level of the intervals, in (0, 1).
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        DataError: there are fewer than two runs, or the lists have different lengths.

    Examples:
        >>> from expunge.evaluation import normalised_overlap
        >>> found = normalised_overlap([0.50, 0.52, 0.51], [0.40, 0.41, 0.42], [0.60, 0.62, 0.61], resamples=200)
        >>> print(f"{found.ratio:.2f}")
        0.50
    """
    u, o, r = (np.asarray(values, dtype=float) for values in (unpruned, original, rerun))
    if not len(u) == len(o) == len(r):
        raise DataError(
            f"{len(u)}, {len(o)} and {len(r)} overlaps",
            where="normalised overlap",
            hint="give three overlaps for each run",
        )
    if len(u) < 2:
        raise DataError("an interval needs at least two runs", hint="repeat with other seeds")
    over, under = u - o, r - o
    numerator, denominator = estimate_mean(over, level), estimate_mean(under, level)
    if denominator.interval.low <= 0:
        return NormalisedOverlap(numerator, denominator, None, None)
    rows = numpy_generator(seed, "normalised overlap").integers(0, len(u), (resamples, len(u)))
    tops, bottoms = over[rows].mean(1), under[rows].mean(1)
    drawn = tops[bottoms != 0] / bottoms[bottoms != 0]
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    ratio = numerator.value / denominator.value
    low, high = min(float(ends[0]), ratio), max(float(ends[1]), ratio)
    return NormalisedOverlap(numerator, denominator, ratio, Interval(low, high, level))


def estimate_mean(values: Sequence[float] | Floats, level: float = 0.95) -> Estimate:
    """Estimate the mean over runs with Student's t interval.

    Raises:
        DataError: there are fewer than two runs.
    """
    x = [float(value) for value in values]
    interval, centre = t_interval(x, level), mean(x)
    if interval is None or centre is None:
        raise DataError("an interval needs at least two runs", hint="repeat with other seeds")
    return Estimate(centre, Interval(*interval, level), len(x))
