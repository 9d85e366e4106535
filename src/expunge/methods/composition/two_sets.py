"""Reading a second set beside the one that a pass is over, and samples of the retain set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from expunge.core.seeds import derive, epoch_order
from expunge.data.batches import Batch, Batches
from expunge.methods.task import Task
from expunge.training.loop import make_batches
from expunge.training.recipes import Recipe


class Partner:
    """Batches of a second set, one for each step of a pass: the set is read again when it ends, in another order.

    A pass gets its own partner, so a resumed run reads the same batches.

    Args:
        task: the task of a method.
        rows: row numbers of the second set.
        recipe: batch size and augmentation.
        turn: number of the pass.
    """

    def __init__(self, task: Task, rows: NDArray[np.int64], recipe: Recipe, turn: int) -> None:
        self.batches: Batches = make_batches(rows, recipe, task.context)
        self.seed = derive(task.seed, "partner", turn)
        self._iterator: Iterator[Batch] = iter(())
        self._cycle = 0

    def draw(self) -> Batch:
        """The next batch."""
        found = next(self._iterator, None)
        if found is None:
            self._iterator = self.batches.epoch(self.seed, self._cycle)
            self._cycle += 1
            found = next(self._iterator)
        return found

    def count(self, steps: int) -> int:
        """Number of records that are read in some steps."""
        cycles, rest = divmod(steps, len(self.batches))
        return cycles * self.batches.count + rest * self.batches.batch_size


def count_steps(rows: NDArray[np.int64], batch_size: int) -> int:
    """Number of batches of a pass."""
    return -(-len(rows) // batch_size)


def count_drawn(first: int, second: int, batch_size: int) -> int:
    """Records of a second set that a `Partner` draws in a pass over the first: one batch for each step.

    Args:
        first: number of records of the first set.
        second: of the second set.
        batch_size: records in a batch.

    Example:
        >>> count_drawn(100, 10, 8)  # 13 steps: six times both batches, and one more
        68
    """
    steps, batches = -(-first // batch_size), -(-second // batch_size)
    cycles, rest = divmod(steps, batches)
    return cycles * second + rest * min(batch_size, second)


def sample_rows(task: Task, rows: NDArray[np.int64], count: int, label: str) -> NDArray[np.int64]:
    """Sample rows by a hash of seed and record id: removing a record changes nothing else. In the given order.

    Args:
        task: the task of a method.
        rows: row numbers.
        count: at most how many to sample.
        label: name of the purpose; part of the seed.
    """
    order = epoch_order(task.context.records.keys[rows], derive(task.seed, "sample", label), 0)
    return rows[np.sort(order[:count])]
