"""The batches of a training run, and those of a pass of it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from expunge.data.batches import Batches
from expunge.training.context import Context
from expunge.training.recipes import Recipe

from .steps import Pass, Steps


def make_batches(rows: NDArray[np.int64], recipe: Recipe, context: Context) -> Batches:
    """The batches of a training run: those of the recipe, on the device and in the memory format of the context."""
    runtime = context.runtime
    return Batches(
        context.records,
        rows,
        batch_size=recipe.batch_size,
        device=runtime.torch_device,
        augment=recipe.augment,
        channels_last=runtime.channels_last,
        workers=runtime.workers,
    )


def make_pass_batches(
    rows: NDArray[np.int64], recipe: Recipe, context: Context, steps: Steps, turn: Pass | None
) -> Batches:
    """The batches of one epoch: those of its pass, or those of the run.

    Args:
        rows: row numbers of the run.
        recipe: of the run.
        context: of the run.
        steps: of the run.
        turn: the pass; None: all epochs are alike.
    """
    if turn is None:
        return dataclasses.replace(make_batches(rows, recipe, context), order=steps.order)
    recipe = recipe if turn.batch_size is None else dataclasses.replace(recipe, batch_size=turn.batch_size)
    context = context if turn.records is None else dataclasses.replace(context, records=turn.records)
    return make_batches(turn.rows, recipe, context)
