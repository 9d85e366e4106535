"""All hyper-parameters of training in one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

from expunge.core.errors import ConfigError, name_fields
from expunge.core.reading.plain import as_plain
from expunge.core.show import repr_fields

from .checks import check_fields
from .rates import rate_at


@name_fields("a recipe")
@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of training by an optimiser with a learning-rate schedule (docs/recipes.md).

    Attributes:
        name: name of the recipe.
        epochs: passes over the training records.
        batch_size: records per step.
        learning_rate: the peak learning rate.
        momentum, nesterov: of `sgd`.
        weight_decay: as in the optimiser: added to the gradient by `sgd` and `adam`, decoupled from it by `adamw`.
        lr_schedule: `constant`; `multistep` (multiplied by `lr_decay` at each milestone); `cosine` and `linear`
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
        optimiser: `sgd`, `adam` or `adamw`, those of `torch.optim`.
        betas, eps: of `adam` and `adamw`.
        lr_update: when the rate changes: by the `position` in epochs, by the number of the `step`, or once an `epoch`.
        warmup_steps: optimiser steps of the warm-up, instead of `warmup`.
        clip_norm: the gradient of all parameters is scaled down to this 2-norm if it is longer
            (`torch.nn.utils.clip_grad_norm_`); None: no clipping.
        label_smoothing: s: the target of a record is 1 - s for its class, plus s / K for each of K classes.
        keep_moments: store the moments of the optimiser too after `keep_epochs` (state `optimiser_moments`), so that
            Rewind continues with them.
        no_decay: parameters without weight decay: a rule, or patterns of names with `*` and `?`.

    Raises:
        ConfigError: a value has the wrong type or is out of range.

    >>> import expunge
    >>> recipe = expunge.Recipe(epochs=10, learning_rate=0.1, lr_schedule="multistep", milestones=(0.5,))
    >>> recipe.rate(4.9), round(recipe.rate(5.0), 3)
    (0.1, 0.01)
    >>> recipe = expunge.Recipe(epochs=2, learning_rate=1.0, lr_schedule="linear", lr_update="step", warmup_steps=2)
    >>> [recipe.rate(step / 4, 4) for step in range(8)]  # 4 steps in an epoch
    [0.0, 0.5, 1.0, 0.8333333333333334, 0.6666666666666666, 0.5, 0.3333333333333333, 0.16666666666666666]
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
    optimiser: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_update: str = "position"
    warmup_steps: int = 0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    no_decay: str | tuple[str, ...] = "none"
    keep_moments: bool = False

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, as_plain(value))
        check_fields(self)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "betas", (self.betas[0], self.betas[1]))
        if not isinstance(self.no_decay, str):
            object.__setattr__(self, "no_decay", tuple(self.no_decay))
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

    @property
    def counts_steps(self) -> bool:
        """Whether the learning rate depends on the number of optimiser steps in an epoch."""
        return self.lr_update == "step" or self.warmup_steps > 0

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is one of SGD on the mean cross-entropy, with one weight decay and no clipping."""
        plain = self.clip_norm is None and self.label_smoothing == 0 and self.no_decay == "none"
        return plain and self.optimiser == "sgd"

    @property
    def decays_objective(self) -> bool:
        """Whether the weight decay is that of the objective, w -> (decay / 2) ||w||^2 over all parameters."""
        return self.weight_decay == 0 or (self.optimiser != "adamw" and self.no_decay == "none")

    def rate(self, position: float, steps: int | None = None) -> float:
        """Return the learning rate at `position`, in epochs from the start (fractional inside an epoch).

        Args:
            position: of the step s of epoch e, both counted from 0: e + s / `steps`.
            steps: optimiser steps in an epoch; needed if the recipe counts steps.

        Raises:
            ConfigError: the recipe counts steps, and `steps` is not given.
        """
        return rate_at(self, position, steps)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; later ones (`keep_epochs` and those below it) only if they are not the
        default, so that the hashes of older recipes stay."""
        body: dict[str, Any] = {}
        for field in dataclasses.fields(Recipe):
            value = getattr(self, field.name)
            if field.name not in _LATER_FIELDS or value != field.default:
                body[field.name] = list(value) if isinstance(value, tuple) else value
        return body


_LATER_FIELDS = (
    "keep_epochs", "optimiser", "betas", "eps", "lr_update", "warmup_steps", "clip_norm", "label_smoothing", "no_decay",
    "keep_moments",
)  # fmt: skip


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
