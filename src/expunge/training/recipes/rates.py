"""Learning-rate schedules as formulas: at a fraction of the training, or at an optimiser step."""

from __future__ import annotations

import math
from typing import Protocol

from expunge.core.errors import ConfigError

LR_SCHEDULES = ("constant", "multistep", "cosine", "linear", "one-cycle")
#: When the rate changes.
LR_UPDATES: dict[str, str] = {
    "position": "at every step, by the position in epochs, which does not depend on the number of steps",
    "step": "at every step, by its number, as in `transformers`, and as torch's schedulers stepped once a step",
    "epoch": "at the start of every epoch, as torch's schedulers stepped once an epoch",
}


class Schedule(Protocol):
    """The fields of a recipe that determine its learning rates."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_schedule(self) -> str: ...
    @property
    def lr_update(self) -> str: ...
    @property
    def lr_decay(self) -> float: ...
    @property
    def milestones(self) -> tuple[float, ...]: ...
    @property
    def warmup(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def counts_steps(self) -> bool: ...


def rate_at(recipe: Schedule, position: float, steps: int | None) -> float:
    """Return the learning rate of a recipe.

    Args:
        recipe: the recipe.
        position: epochs from the start, fractional inside an epoch.
        steps: optimiser steps in an epoch; needed if the recipe counts steps.

    Raises:
        ConfigError: the recipe counts steps, and `steps` is not given.
    """
    if recipe.counts_steps and steps is None:
        raise ConfigError(
            "the learning rate depends on the number of steps in an epoch", where="recipe", hint="give `steps`"
        )
    if recipe.lr_update == "step":
        assert steps is not None
        return _rate_of_step(recipe, math.floor(position * steps + 1e-6), recipe.epochs * steps)
    if recipe.lr_update == "epoch":
        position = math.floor(position + 1e-9)
    warmup = recipe.warmup
    if recipe.warmup_steps:
        assert steps is not None
        warmup = min(1.0, recipe.warmup_steps / max(1, recipe.epochs * steps))
    return _rate_of_position(recipe, position, warmup)


def _rate_of_position(recipe: Schedule, position: float, warmup: float) -> float:
    fraction, peak = min(max(position / max(recipe.epochs, 1), 0.0), 1.0), recipe.learning_rate
    if recipe.lr_schedule == "one-cycle":
        first, last = peak / 25, peak / 1e4
        if fraction < warmup:
            low, high, progress = first, peak, fraction / warmup
        else:
            low, high, progress = peak, last, (fraction - warmup) / max(1 - warmup, 1e-12)
        return low + (high - low) * 0.5 * (1 - math.cos(math.pi * progress))
    if warmup > 0 and fraction < warmup:
        return peak * fraction / warmup
    if recipe.lr_schedule == "multistep":
        milestones_passed = sum(position >= round(m * recipe.epochs) for m in recipe.milestones)
        return peak * recipe.lr_decay**milestones_passed
    progress = (fraction - warmup) / max(1 - warmup, 1e-12)
    if recipe.lr_schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.lr_schedule == "linear":
        return peak * max(0.0, 1 - progress)
    return peak


def _rate_of_step(recipe: Schedule, step: int, total: int) -> float:
    """The rate of an optimiser step, counted from 0, of `total`: the formulas of `transformers.optimization`.

    One-cycle is that of `torch.optim.lr_scheduler.OneCycleLR(div_factor=25, final_div_factor=400)`, whose last rate is
    the peak / 1e4.
    """
    peak = recipe.learning_rate
    warm = recipe.warmup_steps or math.ceil(recipe.warmup * total)
    if recipe.lr_schedule == "one-cycle":
        return _one_cycle_rate(peak, step, total, float(recipe.warmup_steps or recipe.warmup * total))
    if step < warm:
        return peak * (float(step) / float(max(1, warm)))
    if recipe.lr_schedule == "multistep":
        return peak * recipe.lr_decay ** sum(step >= round(m * total) for m in recipe.milestones)
    if recipe.lr_schedule == "cosine":
        progress = float(min(step, total) - warm) / float(max(1, total - warm))
        return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
    if recipe.lr_schedule == "linear":
        return peak * max(0.0, float(total - step) / float(max(1, total - warm)))
    return peak


def _one_cycle_rate(peak: float, step: int, total: int, warm: float) -> float:
    top, end, first, last = warm - 1, max(1, total - 1), peak / 25, peak / 1e4
    if step <= top:
        low, high, progress = first, peak, step / max(top, 1e-12)
    else:
        low, high, progress = peak, last, (min(step, end) - max(top, 0.0)) / max(end - max(top, 0.0), 1e-12)
    return high + (low - high) / 2.0 * (1 + math.cos(math.pi * progress))
