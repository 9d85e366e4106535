"""Games of topology leakage: what shadow models are trained on, what they forget, and how replay forgets it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, DataError, unknown_name_hint
from expunge.core.request import ForgetRequest
from expunge.core.show import repr_fields
from expunge.core.split import Split
from expunge.data.records import Records
from expunge.evaluation.predictions import Bools
from expunge.methods.replay import combine
from expunge.training.ensemble.member import Member, Stacked
from expunge.training.recipes import Recipe, get_recipe
from expunge.training.runtime import Runtime

from .shadow_models import check_shadow_settings, draw_shadow_members, draw_shadow_seeds, train_shadow_models

if TYPE_CHECKING:
    from expunge.models import Architecture
    from expunge.training.progress import Progress

#: What the attacker tells apart.
GAMES: dict[str, str] = {
    "trained": "models trained with D_f, or without",
    "unlearned": "models that forgot D_f, or were trained without it",
    "two-requests": "models that forgot D_f, or forgot another set of the same size by the same processing",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowGame:
    """The shadow models of a game; the first half is one side, the second half the other.

    Attributes:
        members: what each model is trained on before anything is forgotten.
        remaining: the same models with the records that are left after forgetting.
    """

    members: tuple[Member, ...]
    remaining: tuple[Member, ...]

    __repr__ = repr_fields

    def __len__(self) -> int:
        return len(self.members)

    @property
    def forgets(self) -> Bools:
        """Which models forget something."""
        pairs = zip(self.members, self.remaining, strict=True)
        return np.asarray([len(before.rows) > len(after.rows) for before, after in pairs], dtype=np.bool_)


def draw_shadow_game(
    records: Records,
    split: Split,
    request: ForgetRequest,
    *,
    game: str = "trained",
    other: ForgetRequest | None = None,
    models: int = 64,
    initial: str = "shared",
    seed: int = 0,
) -> ShadowGame:
    """Draw the training records of the shadow models of a game, and what each of them forgets.

    - `trained`: see `draw_shadow_members`; nothing is forgotten.
    - `unlearned`: the first half is trained on D_f and a random half of D_r, and forgets D_f. The second half is
      trained on a random half of D_r. So a model that forgets exactly is one of the second half.
    - `two-requests`: with G the other set, the first half is trained on D_f and a random half of D_r without G, and
      forgets D_f; the second half is trained on G and such a half, and forgets G. Of the larger of the two sets, as
      many records are used as the smaller one has; the rest is in no model. So models that forget exactly have the
      same distribution on both sides.

    The half is drawn independently for each model, as is the order of records.

    Args:
        records: the records of the split.
        split: D is its training records.
        request: D_f.
        game: a key of `GAMES`.
        other: the other set, for `two-requests`.
        models: number of shadow models of each side.
        initial: a key of `INITIAL_WEIGHTS`.
        seed: seed of the draws, the initial weights and the orders.

    Raises:
        ConfigError: an unknown game; `two-requests` without another set, or another game with one; see also
            `draw_shadow_members`.
        DataError: the other set has fewer than 0.9 |D_f| records, or records of D_f; or too few records are left.
    """
    if game not in GAMES:
        raise ConfigError(f"unknown game {game!r}", where="game", hint=unknown_name_hint(game, GAMES))
    if (other is not None) != (game == "two-requests"):
        raise ConfigError("the game two-requests, and no other, needs another set", where="other")
    if game == "trained":
        drawn = tuple(draw_shadow_members(records, split, request, models=models, initial=initial, seed=seed))
        return ShadowGame(drawn, drawn)
    check_shadow_settings(models, initial)
    forget_rows = records.rows(request.record_ids)
    pool = np.setdiff1d(records.rows(split.train), forget_rows)
    other_rows = np.asarray([], dtype=np.int64)
    if other is not None:
        other_rows = records.rows(other.record_ids)
        pool = np.setdiff1d(pool, other_rows)
        forget_rows, other_rows = _cut_to_equal_size(records, forget_rows, other_rows)
    half = len(pool) // 2
    if half == 0:
        raise DataError(
            f"{len(pool)} records are outside D_f and the other set: too few to draw from",
            where="topology leakage",
            hint="use a smaller forget set",
        )
    members, remaining = [], []
    for number in range(2 * models):
        order, start = draw_shadow_seeds(number, initial=initial, seed=seed)
        rows = order.permutation(pool)[:half]
        extra = forget_rows if number < models else other_rows
        remaining.append(dataclasses.replace(start, rows=np.sort(rows)))
        members.append(dataclasses.replace(start, rows=np.sort(np.concatenate([rows, extra]))))
    return ShadowGame(tuple(members), tuple(remaining))


def _cut_to_equal_size(
    records: Records, forget_rows: NDArray[np.int64], other_rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the larger of the two sets to the size of the smaller, by the hash of the record id."""
    if len(np.intersect1d(forget_rows, other_rows)):
        raise DataError("the other set has records of D_f", where="topology leakage")
    if len(other_rows) < 0.9 * len(forget_rows):
        raise DataError(
            f"the other set has {len(other_rows)} records, D_f has {len(forget_rows)}: masks would show the difference",
            where="topology leakage",
            hint="select another set of about as many records; of a larger one a part is used",
        )
    size = min(len(forget_rows), len(other_rows))
    first, second = (rows[np.argsort(records.keys[rows], kind="stable")[:size]] for rows in (forget_rows, other_rows))
    return first, second


def train_shadow_game(
    records: Records,
    architecture: Architecture,
    game: ShadowGame,
    *,
    recipe: str | Recipe,
    retrained: bool = False,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Stacked:
    """Train the dense shadow models of a game.

    Args:
        records: the records of the split.
        architecture: what to build.
        game: from `draw_shadow_game`.
        recipe: a registered name or a `Recipe`.
        retrained: train on the remaining records, which is exact forgetting.
        runtime: device and precision.
        progress: reports progress.

    Returns:
        Parameters and buffers of all models, `2 M x ...` tensors by name. The models that forget something are trained
        in stacks of their own, so that the runs of `replay_shadow_models` have the same stacks.
    """
    members = game.remaining if retrained else game.members
    states: Stacked = {}
    for chosen in (np.flatnonzero(game.forgets), np.flatnonzero(~game.forgets)):
        if len(chosen) == 0:
            continue
        trained = train_shadow_models(
            records, architecture, [members[i] for i in chosen], recipe=recipe, runtime=runtime, progress=progress
        )
        states = _insert(states, trained.states, chosen, len(game))
    return states


def replay_shadow_models(
    records: Records,
    architecture: Architecture,
    game: ShadowGame,
    states: Stacked,
    *,
    recipe: str | Recipe,
    epochs: int,
    scale: float = 1.0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Stacked:
    """Forget by replay: add what the forgotten records change in the first epochs of training.

    theta_hat = theta_T(D) + scale (theta_k(D_r) - theta_k(D)), where theta_k(S) are the weights after the first k of T
    epochs on the records S, with the initial weights and the order of records of the model. Both runs are computed
    here. Models that forget nothing are unchanged. Buffers are those of theta_k(D_r).

    Args:
        records: the records of the split.
        architecture: what to build.
        game: from `draw_shadow_game`.
        states: from `train_shadow_game`: theta_T(D).
        recipe: the recipe that the models were trained with.
        epochs: k.
        scale: factor of the difference.
        runtime: device and precision.
        progress: reports progress.

    Returns:
        theta_hat of all models, as `states`.

    Raises:
        ConfigError: k is not between 1 and T.
    """
    total = get_recipe(recipe).epochs
    if not 1 <= epochs <= total:
        raise ConfigError(f"replay of {epochs} epochs of a recipe of {total}", where="epochs", hint=f"use 1 to {total}")
    chosen = np.flatnonzero(game.forgets)
    if len(chosen) == 0:
        return states
    before, after = (
        train_shadow_models(
            records, architecture, [members[i] for i in chosen], recipe=recipe, stop=epochs, runtime=runtime,
            progress=progress,
        ).states
        for members in (game.members, game.remaining)
    )  # fmt: skip
    index = torch.from_numpy(chosen)
    trained = {name: states[name].index_select(0, index) for name, _ in architecture.build(0).named_parameters()}
    return _insert(states, {**after, **combine(trained, before, after, scale=scale)}, chosen, len(game))


def _insert(states: Stacked, found: Stacked, chosen: NDArray[np.int64], count: int) -> Stacked:
    """Copy of `states` with the rows `chosen` taken from `found`."""
    index, result = torch.from_numpy(chosen), {}
    for name, tensor in found.items():
        whole = states[name].clone() if name in states else tensor.new_zeros(count, *tensor.shape[1:])
        whole[index] = tensor
        result[name] = whole
    return result
