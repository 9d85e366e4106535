"""Training recipes: all hyper-parameters of training in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.show import repr_fields

LR_SCHEDULES = ("constant", "multistep", "cosine", "one-cycle")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of stochastic gradient descent with a learning-rate schedule.

    Attributes:
        name: name of the recipe.
        epochs: passes over the training records.
        batch_size: records per step.
        learning_rate: the peak learning rate.
        momentum, weight_decay, nesterov: as in `torch.optim.SGD`.
        lr_schedule: `constant`; `multistep` (multiplied by `lr_decay` at each milestone); `cosine`
            (to zero); `one-cycle` (a cosine from `learning_rate / 25` up to the peak over the fraction `warmup` of the
            epochs, then a cosine down to `learning_rate / 1e4`).
        milestones: fractions of `epochs`, in [0, 1].
        lr_decay: factor at each milestone.
        warmup: fraction of the epochs with a linear warm-up from 0 (`one-cycle`: see there), in [0, 1].
        augment: batch-wise augmentation, `none` or `crop-flip`.
        select: `best` keeps the weights of the epoch with the best validation accuracy, `last` those of the last epoch.
        rewind: fraction of the epochs after which the rewind checkpoint is taken ([Jia2023]: 8 of 182).
        keep_epochs: epochs after which all tensors are stored (state `early_checkpoints`), so that the method Replay
            need not recompute them: integers, or fractions of `epochs` below 1; one value or several.

    Raises:
        ConfigError: a value has the wrong type or is out of range.

    >>> import expunge
    >>> recipe = expunge.Recipe(epochs=10, learning_rate=0.1, lr_schedule="multistep", milestones=(0.5,))
    >>> recipe.rate(4.9), round(recipe.rate(5.0), 3)
    (0.1, 0.01)
    """

    name: str = "custom"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    lr_schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    lr_decay: float = 0.1
    warmup: float = 0.0
    augment: str = "none"
    select: str = "last"
    rewind: float = 8 / 182
    keep_epochs: tuple[float, ...] = ()

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        milestones = self.milestones
        if not isinstance(milestones, (tuple, list)) or not all(isinstance(m, (int, float)) for m in milestones):
            raise ConfigError(f"milestones must be a list of fractions, not {milestones!r}", where="recipe")
        object.__setattr__(self, "milestones", tuple(milestones))
        if self.lr_schedule not in LR_SCHEDULES:
            hint = unknown_name_hint(self.lr_schedule, LR_SCHEDULES)
            raise ConfigError(f"unknown lr_schedule {self.lr_schedule!r}", where="recipe", hint=hint)
        if self.select not in ("best", "last"):
            raise ConfigError(f"select must be `best` or `last`, not {self.select!r}", where="recipe")
        for field, expected in (("epochs", int), ("batch_size", int), ("nesterov", bool), ("augment", str)):
            value = getattr(self, field)
            if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
                raise ConfigError(f"{field} must be {expected.__name__}, not {value!r}", where="recipe")
        for field in ("learning_rate", "momentum", "weight_decay", "lr_decay", "warmup", "rewind"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{field} must be a finite number, not {value!r}", where="recipe")
        ranges = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (self.learning_rate >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "lr_decay": (self.lr_decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup <= 1, "a fraction in [0, 1]"),
            "rewind": (0 <= self.rewind <= 1, "a fraction in [0, 1]"),
            "milestones": (all(0 <= m <= 1 for m in self.milestones), "fractions in [0, 1]"),
        }
        for field, (is_valid, allowed) in ranges.items():
            if not is_valid:
                raise ConfigError(f"{field} = {getattr(self, field)!r} is out of range", where="recipe", hint=allowed)
        kept = self.keep_epochs
        object.__setattr__(self, "keep_epochs", tuple(kept) if isinstance(kept, (tuple, list)) else (kept,))
        for value in self.keep_epochs:
            count_epochs(value, self.epochs, "recipe.keep_epochs")

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """The epochs of `keep_epochs` as numbers of epochs, in order."""
        return tuple(sorted({count_epochs(value, self.epochs, "recipe.keep_epochs") for value in self.keep_epochs}))

    @property
    def rewind_epoch(self) -> int:
        """The epoch after which the rewind checkpoint is taken: at least 1, or 0 if the recipe has no epochs."""
        return min(self.epochs, max(1, round(self.rewind * self.epochs)))

    def rate(self, position: float) -> float:
        """Return the learning rate at `position`, in epochs from the start (fractional inside an epoch)."""
        fraction = min(max(position / max(self.epochs, 1), 0.0), 1.0)
        if self.lr_schedule == "one-cycle":
            return self._one_cycle_rate(fraction)
        if self.warmup > 0 and fraction < self.warmup:
            return self.learning_rate * fraction / self.warmup
        if self.lr_schedule == "multistep":
            milestones_passed = sum(position >= round(m * self.epochs) for m in self.milestones)
            return self.learning_rate * self.lr_decay**milestones_passed
        if self.lr_schedule == "cosine":
            progress = (fraction - self.warmup) / max(1 - self.warmup, 1e-12)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate

    def _one_cycle_rate(self, fraction: float) -> float:
        peak, first, last = self.learning_rate, self.learning_rate / 25, self.learning_rate / 1e4
        if fraction < self.warmup:
            low, high, progress = first, peak, fraction / self.warmup
        else:
            low, high, progress = peak, last, (fraction - self.warmup) / max(1 - self.warmup, 1e-12)
        return low + (high - low) * 0.5 * (1 - math.cos(math.pi * progress))

    def to_json(self) -> dict[str, Any]:
        body = {**dataclasses.asdict(self), "milestones": list(self.milestones)}
        kept = body.pop("keep_epochs")
        return {**body, "keep_epochs": list(kept)} if kept else body


def count_epochs(value: float, epochs: int, where: str) -> int:
    """Return a number of epochs that is given as a number, or as a fraction of all epochs (then at least one epoch).

    Args:
        value: an integer from 1 to `epochs` (also as a float), or a fraction in (0, 1).
        epochs: the epochs of the recipe.
        where: the option, for the error.

    Raises:
        ConfigError: the value is neither.

    >>> from expunge.training.recipes import count_epochs
    >>> count_epochs(3, 20, "epochs"), count_epochs(0.2, 20, "epochs"), count_epochs(1.0, 20, "epochs")
    (3, 4, 1)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 1 <= value <= epochs and value == int(value):
            return int(value)
        if 0 < value < 1 and epochs >= 1:
            return max(1, round(value * epochs))
    raise ConfigError(
        f"{value!r} is not a number of epochs of a recipe of {epochs}",
        where=where,
        hint=f"an integer from 1 to {epochs}, or a fraction below 1, such as 0.2",
    )


RECIPES: dict[str, Recipe] = {
    # [Jia2023], defaults of its code: 182 epochs, x0.1 at 91 and 136, the epoch with the best validation accuracy.
    "jia2023": Recipe(
        name="jia2023",
        epochs=182,
        batch_size=256,
        lr_schedule="multistep",
        milestones=(91 / 182, 136 / 182),
        augment="crop-flip",
        select="best",
    ),
    # A short recipe for small networks on CPUs.
    "one-cycle": Recipe(
        name="one-cycle", epochs=20, batch_size=128, lr_schedule="one-cycle", warmup=0.25, nesterov=True
    ),
}


def get_recipe(name: str | Mapping[str, Any] | Recipe = "one-cycle", **overrides: Any) -> Recipe:
    """Return a recipe, with fields replaced.

    Args:
        name: a key of `RECIPES`, a dictionary as `Recipe.to_json` returns it, or a `Recipe`.
        overrides: fields of `Recipe` to replace.

    Raises:
        ConfigError: the recipe or a field is unknown, or a value has the wrong type or is out of range.

    >>> import expunge
    >>> recipe = expunge.get_recipe("one-cycle", epochs=8)
    >>> recipe.epochs, recipe.lr_schedule, recipe.rate(2.0)
    (8, 'one-cycle', 0.1)
    """
    if isinstance(name, Recipe):
        base = name
    elif isinstance(name, Mapping):
        base, overrides = Recipe(), {**name, **overrides}
    elif name in RECIPES:
        base = RECIPES[name]
    else:
        raise ConfigError(f"unknown recipe {name!r}", hint=unknown_name_hint(str(name), RECIPES))
    fields = {f.name for f in dataclasses.fields(Recipe)}
    for key in overrides:
        if key not in fields:
            raise ConfigError(f"a recipe has no field {key!r}", hint=unknown_name_hint(key, fields))
    return dataclasses.replace(base, **overrides)
