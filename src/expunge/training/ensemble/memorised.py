"""Which records a network memorises: their loss where they were left out, over an ensemble of models on random parts.

A record that is classified well only by models that saw it is memorised; one with a large held-out loss is such a
record as soon as a model fits it (Feldman 2020; Feldman and Zhang 2020 subtract the loss where it was seen, which is
near 0 for networks that fit their training records).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import ConfigError
from expunge.core.seeds import derive, mix
from expunge.data.records import Records
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .member import Member
from .train import train_ensemble

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out losses.

    Attributes:
        rows: `N` rows of the records.
        losses: `N` mean cross-entropies over the models that were not trained on the record, in nats.
        models: `N` numbers of such models.
    """

    rows: NDArray[np.int64]
    losses: NDArray[np.float64]
    models: NDArray[np.int64]

    def largest_first(self) -> NDArray[np.int64]:
        """The rows, the most memorised first; equal losses in the order of the source."""
        return self.rows[np.lexsort((self.rows, -self.losses))]


def held_out_losses(
    records: Records,
    rows: NDArray[np.int64],
    architecture: Architecture,
    *,
    recipe: str | Recipe,
    models: int = 32,
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> HeldOut:
    """Train models on random halves of the records and take each record's loss where it was left out.

    Two models share the records out between them, by hash(seed, pair, record id), so every record is left out by just
    half of the models. Each model has its own initial weights and order.

    Args:
        records: the source.
        rows: `N` rows of the records in question; models see no others.
        architecture: of the models.
        recipe: of the models.
        models: how many; an even number.
        seed: of halves, initial weights and orders.
        runtime: device; float32.
        progress: told of progress.

    Raises:
        ConfigError: not an even number of models.
    """
    if models < 2 or models % 2:
        raise ConfigError(
            f"{models} models cannot share out the records in pairs", where="models", hint="take 16 or 32"
        )
    rows = np.sort(rows)
    inside = halves(records, rows, models, seed)
    counts = (~inside).sum(0)
    seeds = [derive(seed, "held out model", number) % 2**31 for number in range(models)]
    members = [Member(rows[part], seed=own) for part, own in zip(inside, seeds, strict=True)]
    together = train_ensemble(
        records, architecture, members, recipe=recipe, runtime=runtime, snapshots=(), progress=progress,
        label="held-out losses",
    )  # fmt: skip
    labels = torch.from_numpy(records.labels[rows])
    total = np.zeros(len(rows))
    for number in range(models):
        logits = together.logits_of(number, records, rows, runtime=runtime)
        losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
        total += np.where(inside[number], 0.0, losses)
    return HeldOut(rows, total / counts, counts)


def halves(records: Records, rows: NDArray[np.int64], models: int, seed: int) -> NDArray[np.bool_]:
    """Which model sees which record, `models x N`: models 2 i and 2 i + 1 share the rows out between them."""
    keys = records.keys[rows]
    inside = np.zeros((models, len(rows)), dtype=np.bool_)
    for pair in range(models // 2):
        order = np.lexsort((keys, mix(keys, derive(seed, "held out", pair))))
        inside[2 * pair, order[: len(rows) // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside
