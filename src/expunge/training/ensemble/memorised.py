"""Memorised records: held-out losses over an ensemble of models, each trained on a random half of the records.

A record is memorised if only models that were trained on it classify it well. Its held-out loss (the mean loss of the
models that were not trained on it) is then large. Feldman (2020) and Feldman and Zhang (2020) also subtract the loss of
the models that were trained on it, which is near 0 for networks that fit their training records.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core.errors import ConfigError
from expunge.core.reading.limits import MODELS
from expunge.core.seeds import derive, mix
from expunge.core.show import repr_fields
from expunge.data.records import Records
from expunge.training.progress import Progress
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .member import Member
from .train import train_ensemble

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutLosses:
    """Held-out losses of records.

    Attributes:
        rows: `N` row numbers of the records.
        losses: `N` mean cross-entropies over the models that were not trained on the record, in nats.
        models: `N` counts of those models.
    """

    rows: NDArray[np.int64]
    losses: NDArray[np.float64]
    models: NDArray[np.int64]

    __repr__ = repr_fields

    def largest_first(self) -> NDArray[np.int64]:
        """Return the rows by descending loss; equal losses in ascending order of rows."""
        return self.rows[np.lexsort((self.rows, -self.losses))]


def measure_held_out_losses(
    records: Records,
    rows: NDArray[np.int64],
    architecture: Architecture,
    *,
    recipe: str | Recipe,
    models: int = 32,
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> HeldOutLosses:
    """Train models on random halves of the records and measure each record's held-out loss.

    Models 2 i and 2 i + 1 are trained on complementary halves, drawn by hash(seed, i, record id). So every record is
    held out by exactly half of the models. Each model has its own initial weights and order of records.

    Args:
        records: features and labels.
        rows: `N` row numbers of the records; the models are trained on these only.
        architecture: the network of all models.
        recipe: the recipe of all models; it must select the last epoch.
        models: number of models, even and at least 2.
        seed: seeds halves, initial weights and orders.
        runtime: device and precision.
        progress: callback for progress in records.

    Raises:
        ConfigError: the number of models is odd or less than 2.

    >>> import numpy as np
    >>> import expunge
    >>> from expunge.training.ensemble import measure_held_out_losses
    >>> records = expunge.load_records("digits")
    >>> network = expunge.architecture("mlp", records, widths=(8,), normalise="none")
    >>> recipe = expunge.Recipe(epochs=1)
    >>> found = measure_held_out_losses(records, np.arange(40), network, recipe=recipe, models=4)
    >>> found.losses.shape, set(found.models.tolist())  # 2 of the 4 models hold each record out
    ((40,), {2})
    """
    if not 2 <= models <= MODELS or models % 2:
        what = f"the number of models must be even and at most {MODELS:,}, not {models}"
        raise ConfigError(what, where="models", hint="use 16 or 32")
    rows = np.sort(rows)
    inside = assign_halves(records, rows, models, seed)
    counts = (~inside).sum(0)
    seeds = [derive(seed, "held out model", number) % 2**31 for number in range(models)]
    members = [Member(rows[part], seed=member_seed) for part, member_seed in zip(inside, seeds, strict=True)]
    ensemble = train_ensemble(
        records, architecture, members, recipe=recipe, runtime=runtime, snapshots=(), progress=progress,
        label="held-out losses",
    )  # fmt: skip
    labels = torch.from_numpy(records.labels[rows])
    total = np.zeros(len(rows))
    for number in range(models):
        logits = ensemble.predict_member(number, records, rows, runtime=runtime)
        losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
        total += np.where(inside[number], 0.0, losses)
    return HeldOutLosses(rows, total / counts, counts)


def assign_halves(records: Records, rows: NDArray[np.int64], models: int, seed: int) -> NDArray[np.bool_]:
    """Assign records to models, `models x N` bool: models 2 i and 2 i + 1 get complementary halves."""
    keys = records.keys[rows]
    inside = np.zeros((models, len(rows)), dtype=np.bool_)
    for pair in range(models // 2):
        order = np.lexsort((keys, mix(keys, derive(seed, "held out", pair))))
        inside[2 * pair, order[: len(rows) // 2]] = True
        inside[2 * pair + 1] = ~inside[2 * pair]
    return inside
