"""The topology attack: what an attacker who sees only masks can infer about whether D_f was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from expunge.core.errors import ConfigError, DataError, MaskError
from expunge.core.mask import Mask
from expunge.core.seeds import numpy_generator
from expunge.core.show import repr_fields
from expunge.evaluation.auc import Separation, separation
from expunge.evaluation.predictions import Bools, Floats
from expunge.evaluation.score import Interval


def extract_mask_features(mask: Mask, initial: dict[str, torch.Tensor] | None = None) -> Floats:
    """Features of one mask for the topology attack, as one vector.

    For each tensor: all bits, the density, the density of each input, and the sorted densities of the outputs. (An
    input has the same meaning in every model, whatever the initial weights; an output does not.) If the initial weights
    are known: also each bit minus the mean bit of weights with similar initial magnitude (32 groups a tensor), and that
    residual times the sign of the initial weight.

    Args:
        mask: the mask of one model.
        initial: initial weights by parameter name, if the attacker knows them.

    Returns:
        `F` features; `F` is the same for all masks of one architecture.

    Raises:
        MaskError: there are no initial weights for a tensor of the mask, or their shape differs.

    Examples:
        >>> import torch
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.evaluation import extract_mask_features
        >>> mask = Mask({"w": torch.tensor([[True, False], [True, True]])}, MaskProvenance("magnitude"))
        >>> extract_mask_features(mask).tolist()  # bits, density, densities of inputs, densities of outputs
        [1.0, 0.0, 1.0, 1.0, 0.75, 1.0, 0.5, 0.5, 1.0]
    """
    parts: list[Floats] = []
    for name, kept in sorted(mask.kept.items()):
        bits = kept.double()
        parts.append(bits.reshape(-1).numpy())
        parts.append(np.asarray([float(bits.mean())]))
        if kept.dim() > 1:
            parts.append(bits.movedim(1, 0).reshape(kept.shape[1], -1).mean(1).numpy())
            parts.append(np.sort(bits.reshape(kept.shape[0], -1).mean(1).numpy()))
        if initial is not None:
            if name not in initial or initial[name].shape != kept.shape:
                raise MaskError("there are no initial weights of this shape", where=name)
            start = initial[name].double().reshape(-1)
            flat = bits.reshape(-1)
            order = torch.argsort(start.abs(), stable=True)
            residual = torch.empty_like(flat)
            for group in order.tensor_split(min(32, len(order))):
                residual[group] = flat[group] - flat[group].mean()
            parts += [residual.numpy(), (residual * start.sign()).numpy()]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Leakage:
    """How much masks reveal about whether D_f was in the training records.

    Attributes:
        auc: AUC of the attack on held-out models: P(score of a mask with D_f > score of one without) + P(equal) / 2.
        interval: bootstrap interval over the held-out models.
        null: the same AUC after random permutations of the labels (with or without D_f): the null distribution.
        null_interval: central interval of `null`, at the same level.
        p_value: fraction of `null` (with 1 added to both counts) at least as far from 1/2 as `auc`.
        models: number of held-out models with D_f and without.
    """

    auc: float
    interval: Interval
    null: tuple[float, ...]
    null_interval: Interval
    p_value: float
    models: tuple[int, int]

    __repr__ = repr_fields


def _score_attacks(features: Floats, fits: Bools, truths: Bools) -> Floats:
    """Fit `P` diagonal linear discriminants on subsets of the models and score all models.

    score(x) = sum_j (m1_j - m0_j) / (var_j + prior) x_j, where m1 and m0 are the means of the two groups of an attack's
    fitting models and var is their pooled variance. The variance is shrunk towards its mean over the features (the
    prior), because there are many more features than models. A larger score means "trained with D_f". All attacks are
    computed together as matrix products, a block of features at a time.

    Args:
        features: `N x F`.
        fits: `P x N`, True for the models that an attack is fitted on; both groups occur.
        truths: `P x N`, True for the models that an attack takes as trained with D_f.

    Returns:
        `P x N` scores of all models, including the fitting models.
    """
    ones, zeros = (fits & truths).astype(np.float64), (fits & ~truths).astype(np.float64)
    count_one, count_zero = ones.sum(1, keepdims=True), zeros.sum(1, keepdims=True)
    count = count_one + count_zero
    centred = features - features.mean(0)  # shifts all scores of an attack equally, and keeps the precision of squares
    gram = centred @ centred.T
    means = [group / size for group, size in ((ones, count_one), (zeros, count_zero))]
    lengths = [np.einsum("pn,nm,pm->p", mean, gram, mean, optimize=True)[:, None] for mean in means]
    scatter = (ones + zeros) @ np.diag(gram)[:, None] - count_one * lengths[0] - count_zero * lengths[1]
    prior = scatter / count / features.shape[1] + 1e-12
    scores = np.zeros(fits.shape)
    for start in range(0, features.shape[1], 4096):
        block = centred[:, start : start + 4096]
        mean_one, mean_zero = means[0] @ block, means[1] @ block
        pooled = ((ones + zeros) @ block**2 - count_one * mean_one**2 - count_zero * mean_zero**2) / count
        scores += ((mean_one - mean_zero) / (np.maximum(pooled, 0) + prior)) @ block.T
    digits = 1e-10 * np.maximum(np.abs(scores).max(1, keepdims=True), 1e-30)
    return np.round(scores / digits) * digits  # equal masks get equal scores, whatever the order of summation


def measure_topology_leakage(
    with_forget: Floats,
    without_forget: Floats,
    *,
    permutations: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Leakage:
    """Measure how well an attacker who sees only masks separates models trained with D_f from models trained without.

    The attack is a diagonal linear discriminant. It is fitted on one half of the models of each group and evaluated on
    the other half.

    Args:
        with_forget: `A x F` features (`extract_mask_features`) of models whose training records include D_f.
        without_forget: `B x F` features of models whose training records do not. All other training records are drawn
            independently for every model.
        permutations: number of label permutations for the null distribution.
        level: confidence level of both intervals, in (0, 1).
        seed: seed of the halves, the permutations and the bootstrap.

    Raises:
        DataError: a group has fewer than four models, the features have different lengths, or one is not finite.
        ConfigError: `permutations` is below 1.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import measure_topology_leakage
        >>> rng = np.random.default_rng(0)
        >>> with_forget, without_forget = rng.random((16, 30)) < 0.9, rng.random((16, 30)) < 0.1
        >>> leakage = measure_topology_leakage(with_forget.astype(float), without_forget.astype(float), permutations=20)
        >>> leakage.auc, leakage.models
        (1.0, (8, 8))
    """
    if min(len(with_forget), len(without_forget)) < 4:
        raise DataError(
            f"{len(with_forget)} models with D_f and {len(without_forget)} without are too few for an attack",
            hint="use at least 4 of each; 64 give a useful interval",
        )
    if with_forget.shape[1] != without_forget.shape[1]:
        raise DataError("the two groups have features of different lengths: their masks belong to two architectures")
    for group in (with_forget, without_forget):
        if not np.isfinite(group).all():
            row = int(np.flatnonzero(~np.isfinite(group).all(1))[0])
            raise DataError("the features contain NaN or infinite values", where=f"model {row} of its group")
    if permutations < 1:
        raise ConfigError("the null distribution needs at least one permutation", where="permutations")
    features = np.concatenate([with_forget, without_forget])
    features = features[:, features.std(0) > 0]
    labels = np.arange(len(features)) < len(with_forget)
    if features.shape[1] == 0:  # all masks are equal
        features = np.zeros((len(labels), 1))
    rng = numpy_generator(seed, "topology leakage")
    truths = np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))])
    fits = np.stack([_draw_half(truth, rng) for truth in truths])
    scores = _score_attacks(features, fits, truths)

    def score_held_out(number: int, resamples: int = 0) -> Separation:
        held_out, truth = ~fits[number], truths[number]
        members, non_members = scores[number][held_out & truth], scores[number][held_out & ~truth]
        return separation(members, non_members, resamples=resamples, level=level, seed=seed)

    attack = score_held_out(0, 2000)
    auc, interval = attack.auc, attack.auc_interval
    assert interval is not None
    null = [score_held_out(number).auc for number in range(1, len(truths))]
    low, high = np.quantile(null, [(1 - level) / 2, (1 + level) / 2])
    extreme = sum(abs(value - 0.5) >= abs(auc - 0.5) - 1e-12 for value in null)
    return Leakage(
        auc=auc,
        interval=interval,
        null=tuple(null),
        null_interval=Interval(float(low), float(high), level),
        p_value=(extreme + 1) / (len(null) + 1),
        models=(int((labels & ~fits[0]).sum()), int((~labels & ~fits[0]).sum())),
    )


def _draw_half(truth: Bools, rng: np.random.Generator) -> Bools:
    """Draw a random half of each group."""
    chosen = np.zeros(len(truth), dtype=np.bool_)
    for group in (np.flatnonzero(truth), np.flatnonzero(~truth)):
        chosen[rng.permutation(group)[: len(group) // 2]] = True
    return chosen
