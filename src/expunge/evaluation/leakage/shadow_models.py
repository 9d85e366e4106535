"""Topology leakage with shadow models: train many with D_f and many without, prune them, and attack their masks."""

from __future__ import annotations

import dataclasses
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
from expunge.evaluation.predictions import Floats
from expunge.sparsity import Rule, make_mask
from expunge.sparsity.criteria.registry import get_criterion
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import Ensemble, train_ensemble
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .mask_attack import Leakage, extract_mask_features, measure_topology_leakage

if TYPE_CHECKING:
    from expunge.models import Architecture
    from expunge.training.progress import Progress

#: Initial weights of the shadow models.
INITIAL_WEIGHTS: dict[str, str] = {
    "shared": "all models start from the same initial weights",
    "own": "every model starts from different initial weights",
}


def draw_shadow_members(
    records: Records, split: Split, request: ForgetRequest, *, models: int = 64, initial: str = "shared", seed: int = 0
) -> list[Member]:
    """Draw the training records of shadow models: the first half is trained with D_f, the second half without.

    All shadow models have equally many records. One with D_f has D_f and a random half of D_r; one without has a random
    half of D_r and |D_f| further records of D_r. The half is drawn independently for each, as is the order of records.

    Args:
        records: the records of the split.
        split: D is its training records.
        request: D_f.
        models: number of shadow models with D_f, and of those without.
        initial: a key of `INITIAL_WEIGHTS`.
        seed: seed of the draws, the initial weights and the orders.

    Returns:
        `2 models` members of an ensemble.

    Raises:
        ConfigError: fewer than four models with and without D_f, or an unknown `initial`.
        DataError: D_r has too few records to replace D_f in the models without it.
    """
    check_shadow_settings(models, initial)
    forget_rows = records.rows(request.record_ids)
    retain_rows = np.setdiff1d(records.rows(split.train), forget_rows)
    half = len(retain_rows) // 2
    if half + len(forget_rows) > len(retain_rows) or half == 0:
        raise DataError(
            f"{len(forget_rows)} of {len(forget_rows) + len(retain_rows)} records are in D_f: "
            "too few other records are left to replace them",
            where="topology leakage",
            hint="use a smaller forget set",
        )
    members = []
    for number in range(2 * models):
        order, start = draw_shadow_seeds(number, initial=initial, seed=seed)
        shuffled = order.permutation(retain_rows)
        rows = (
            np.concatenate([forget_rows, shuffled[:half]]) if number < models else shuffled[: half + len(forget_rows)]
        )
        members.append(dataclasses.replace(start, rows=np.sort(rows)))
    return members


def check_shadow_settings(models: int, initial: str) -> None:
    """Raise ConfigError for fewer than four models of each side, or an unknown `initial`."""
    if models < 4:
        raise ConfigError(
            f"{models} models with and {models} without D_f are too few",
            where="models",
            hint="use at least 4; 64 give a useful interval",
        )
    if initial not in INITIAL_WEIGHTS:
        raise ConfigError(
            f"unknown initial {initial!r}", where="initial", hint=unknown_name_hint(initial, INITIAL_WEIGHTS)
        )


def draw_shadow_seeds(number: int, *, initial: str, seed: int) -> tuple[np.random.Generator, Member]:
    """The generator that draws the records of a shadow model, and a member without records that has its seeds."""
    start = derive(seed, "leakage initial", number if initial == "own" else "all") % 2**31
    member = Member(
        np.asarray([], dtype=np.int64), seed=derive(seed, "leakage order", number) % 2**31, initial_seed=start
    )
    return numpy_generator(seed, "leakage", number), member


def train_shadow_models(
    records: Records,
    architecture: Architecture,
    members: Sequence[Member],
    *,
    recipe: str | Recipe,
    stop: int | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Ensemble:
    """Train dense shadow models; `prune_shadow_models` prunes them.

    Args:
        records: the records of the split.
        architecture: what to build.
        members: from `draw_shadow_members`.
        recipe: a registered name or a `Recipe`.
        stop: the epoch to stop after; None: the last.
        runtime: device and precision.
        progress: reports progress.
    """
    return train_ensemble(
        records, architecture, members, recipe=recipe, runtime=runtime, stop=stop, snapshots=(), progress=progress,
        label="topology leakage",
    )  # fmt: skip


def prune_shadow_models(
    records: Records,
    members: Sequence[Member],
    model: Callable[[int], nn.Module],
    rule: Rule,
    *,
    score_records: int = 1024,
) -> list[Mask]:
    """Prune each shadow model by ranking its trained dense weights, as the schedules `one-shot` and `omp` do.

    Args:
        records: the records of the split.
        members: the members that were trained.
        model: returns a trained model by its index.
        rule: criterion, granularity, scope, layers and sparsity.
        score_records: number of a model's training records that a data-driven criterion uses.

    Returns:
        The mask of each model.
    """
    needs = get_criterion(rule.validate().criterion).needs_data
    masks = []
    for number, member in enumerate(members):
        rows = member.rows[np.argsort(records.keys[member.rows], kind="stable")[:score_records]]
        batches = Batches(records, rows, batch_size=256).in_order if needs else None
        shape = records.input_shape
        masks.append(make_mask(model(number), rule, input_shape=shape, batches=batches, seed=member.seed)[0])
    return masks


def measure_mask_leakage(
    masks: Sequence[Mask],
    *,
    architecture: Architecture | None = None,
    members: Sequence[Member] | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Leakage:
    """Measure the topology leakage of the masks of shadow models.

    Args:
        masks: `2 M` masks, the first `M` of models trained with D_f.
        architecture: with `members`, the attacker knows the initial weights; None: it does not.
        members: the members that were trained.
        permutations: number of label permutations for the null distribution.
        seed: seed of `measure_topology_leakage`.
    """
    starts: list[dict[str, torch.Tensor] | None] = [None] * len(masks)
    if architecture is not None and members is not None:
        starts = [plain_state(architecture.build(member.seeds["initial"])) for member in members]
    features: Floats = np.stack([extract_mask_features(mask, start) for mask, start in zip(masks, starts, strict=True)])
    half = len(masks) // 2
    return measure_topology_leakage(features[:half], features[half:], permutations=permutations, seed=seed)
