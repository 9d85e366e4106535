"""Topology leakage on real models: train many with D_f and many without, prune them, and attack their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, numpy_generator
from expunge.core.split import Split
from expunge.core.trained import plain_state
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.sparsity import Rule, make_mask
from expunge.sparsity.criteria.registry import get_criterion
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import Ensemble, train_ensemble
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .topology import Floats, Leakage, mask_features, topology_leakage

if TYPE_CHECKING:
    from expunge.models import Architecture
    from expunge.training.progress import Progress

#: Initial weights of the models that are told apart.
INITIAL: dict[str, str] = {
    "shared": "all models start from the same initial weights",
    "own": "every model starts from initial weights of its own",
}


def two_sides(
    records: Records, split: Split, request: ForgetRequest, *, models: int = 64, initial: str = "shared", seed: int = 0
) -> list[Member]:
    """Members of an ensemble: the first half is trained with D_f, the second half without.

    Every member has as many records as the others: D_f and half of D_r drawn anew for each, or half of D_r and as many
    more of it as D_f holds. Each has its own order.

    Args:
        records: the source.
        split: D is its training records.
        request: D_f.
        models: on each side.
        initial: a key of `INITIAL`.
        seed: of the draws, the initial weights and the orders.

    Raises:
        ConfigError: fewer than four models a side, or an unknown `initial`.
        DataError: D_f is more than half of D: the side without it has too few records.
    """
    if models < 4:
        raise ConfigError(
            f"{models} models a side are too few", where="models", hint="64 for an interval worth printing"
        )
    if initial not in INITIAL:
        raise ConfigError(f"unknown initial {initial!r}", where="initial", hint=unknown_name_hint(initial, INITIAL))
    gone = records.rows(request.record_ids)
    rest = np.setdiff1d(records.rows(split.train), gone)
    half = len(rest) // 2
    if half + len(gone) > len(rest) or half == 0:
        raise DataError(
            f"{len(gone)} of {len(gone) + len(rest)} records are to be forgotten: none are left to take their place",
            where="topology leakage",
        )
    members = []
    for number in range(2 * models):
        others = numpy_generator(seed, "leakage", number).permutation(rest)
        rows = np.concatenate([gone, others[:half]]) if number < models else others[: half + len(gone)]
        start = derive(seed, "leakage initial", number if initial == "own" else "all") % 2**31
        members.append(Member(np.sort(rows), seed=derive(seed, "leakage order", number) % 2**31, initial_seed=start))
    return members


def train_sides(
    records: Records,
    architecture: Architecture,
    members: Sequence[Member],
    *,
    recipe: str | Recipe,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Train the members densely; `attacked_masks` prunes them."""
    return train_ensemble(
        records, architecture, members, recipe=recipe, runtime=runtime, snapshots=(), progress=progress,
        label="topology leakage",
    )  # fmt: skip


def attacked_masks(
    records: Records,
    members: Sequence[Member],
    model: Callable[[int], nn.Module],
    rule: Rule,
    *,
    score_records: int = 1024,
) -> list[Mask]:
    """The mask of every model: its trained dense weights, ranked and thresholded by the rule (as `one-shot`, `omp`).

    Args:
        records: the source.
        members: as trained.
        model: gives one model by its number.
        rule: criterion, granularity, scope, layers, sparsity.
        score_records: how many of a model's own records a data-driven criterion reads.
    """
    needs = get_criterion(rule.validate().criterion).needs_data
    masks = []
    for number, member in enumerate(members):
        rows = member.rows[np.argsort(records.keys[member.rows], kind="stable")[:score_records]]
        batches = Batches(records, rows, batch_size=256).in_order if needs else None
        shape = records.input_shape
        masks.append(make_mask(model(number), rule, input_shape=shape, batches=batches, seed=member.seed)[0])
    return masks


def masks_leak(
    masks: Sequence[Mask],
    *,
    architecture: Architecture | None = None,
    members: Sequence[Member] | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Leakage:
    """The topology leakage of masks, the first half of models with D_f.

    Args:
        masks: `2 M`.
        architecture: with `members`, gives the attacker the initial weights; None: unknown.
        members: as trained.
        permutations: for the null spread.
        seed: see `topology_leakage`.
    """
    starts: list[dict[str, torch.Tensor] | None] = [None] * len(masks)
    if architecture is not None and members is not None:
        starts = [plain_state(architecture.build(member.seeds["initial"])) for member in members]
    features: Floats = np.stack([mask_features(mask, start) for mask, start in zip(masks, starts, strict=True)])
    half = len(masks) // 2
    return topology_leakage(features[:half], features[half:], permutations=permutations, seed=seed)
