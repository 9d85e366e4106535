"""Training recipes: every number that decides how a model is trained, in one frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from expunge.core.errors import ConfigError, unknown_name_hint

SCHEDULES = ("constant", "multistep", "cosine", "one-cycle")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with a schedule.

    Attributes:
        name: where the numbers come from.
        epochs: passes over the training records.
        batch_size: records a step.
        learning_rate: the peak rate.
        momentum, weight_decay, nesterov: as in `torch.optim.SGD`.
        schedule: `constant`; `multistep` (times `decay` at each milestone); `cosine` to zero; `one-cycle` (cosine up
            over the first `warmup` share of the epochs, then cosine down to `learning_rate / 1e4`).
        milestones: shares of `epochs` in (0, 1).
        decay: factor at each milestone.
        warmup: share of the epochs that warm up linearly (`one-cycle`: by cosine, from a 25th of the rate).
        augment: batch-wise augmentation, `none` or `crop-flip`.
        select: `best` keeps the epoch with the best validation accuracy, `last` the last one.
        rewind: share of the epochs after which the rewind checkpoint is taken (paper A: 8 of 182).
    """

    name: str = "custom"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    decay: float = 0.1
    warmup: float = 0.0
    augment: str = "none"
    select: str = "last"
    rewind: float = 8 / 182

    def __post_init__(self) -> None:
        shares = self.milestones
        if not isinstance(shares, (tuple, list)) or not all(isinstance(m, (int, float)) for m in shares):
            raise ConfigError(f"milestones are a list of shares of the epochs, not {shares!r}", where="recipe")
        object.__setattr__(self, "milestones", tuple(shares))
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"unknown schedule {self.schedule!r}", where="recipe", hint=unknown_name_hint(self.schedule, SCHEDULES)
            )
        if self.select not in ("best", "last"):
            raise ConfigError(f"select is `best` or `last`, not {self.select!r}", where="recipe")
        for field, kind in (("epochs", int), ("batch_size", int), ("nesterov", bool), ("augment", str)):
            value = getattr(self, field)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ConfigError(f"{field} is {kind.__name__}, not {value!r}", where="recipe")
        for field in ("learning_rate", "momentum", "weight_decay", "decay", "warmup", "rewind"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{field} is a finite number, not {value!r}", where="recipe")
        ranges = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (self.learning_rate >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "decay": (self.decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup <= 1, "a share in [0, 1]"),
            "rewind": (0 <= self.rewind <= 1, "a share in [0, 1]"),
            "milestones": (all(0 <= m <= 1 for m in self.milestones), "shares in [0, 1]"),
        }
        for field, (fine, right) in ranges.items():
            if not fine:
                raise ConfigError(f"{field} = {getattr(self, field)!r} is out of range", where="recipe", hint=right)

    @property
    def rewind_epoch(self) -> int:
        """The epoch after which the rewind checkpoint is taken; at least 1, or 0 when the recipe has no epochs."""
        return min(self.epochs, max(1, round(self.rewind * self.epochs)))

    def rate(self, position: float) -> float:
        """Learning rate at `position`, in epochs from the start (fractional inside an epoch)."""
        share = min(max(position / max(self.epochs, 1), 0.0), 1.0)
        if self.schedule == "one-cycle":
            return self._one_cycle(share)
        if self.warmup > 0 and share < self.warmup:
            return self.learning_rate * share / self.warmup
        if self.schedule == "multistep":
            passed = sum(position >= round(m * self.epochs) for m in self.milestones)
            return self.learning_rate * self.decay**passed
        if self.schedule == "cosine":
            rest = (share - self.warmup) / max(1 - self.warmup, 1e-12)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))
        return self.learning_rate

    def _one_cycle(self, share: float) -> float:
        peak, first, last = self.learning_rate, self.learning_rate / 25, self.learning_rate / 1e4
        if share < self.warmup:
            low, high, where = first, peak, share / self.warmup
        else:
            low, high, where = peak, last, (share - self.warmup) / max(1 - self.warmup, 1e-12)
        return low + (high - low) * 0.5 * (1 - math.cos(math.pi * where))

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}


RECIPES: dict[str, Recipe] = {
    # Paper A, code defaults [Jia2023]: 182 epochs, x0.1 at 91 and 136, best validation accuracy kept.
    "paper-a": Recipe(
        name="paper-a",
        epochs=182,
        batch_size=256,
        schedule="multistep",
        milestones=(91 / 182, 136 / 182),
        augment="crop-flip",
        select="best",
    ),
    # A short recipe for small networks and CPUs.
    "one-cycle": Recipe(name="one-cycle", epochs=20, batch_size=128, schedule="one-cycle", warmup=0.25, nesterov=True),
}


def recipe(name: str | Mapping[str, Any] | Recipe = "one-cycle", **overrides: Any) -> Recipe:
    """A registered recipe by name, or one from its dictionary, with fields replaced.

    Raises:
        ConfigError: unknown recipe or field.
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
