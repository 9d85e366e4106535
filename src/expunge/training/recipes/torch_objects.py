"""A recipe from an optimiser and a scheduler of torch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.hashing import plain_name

from .decay_rules import find_undecayed
from .recipe import Recipe

_KINDS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw",
}  # fmt: skip
_RELATIVE = 1e-9
_MOST_MILESTONES = 1000
#: A training that is over has only objects that were stepped; a recipe needs their arguments alone.
_FRESH = (
    "pass new ones, made with the same arguments: a new optimiser (on any parameters; if some have no weight decay, on "
    "those of a model of the same names), and a new scheduler of it"
)


def from_torch(
    optimiser: torch.optim.Optimizer,
    scheduler: Any = None,
    *,
    epochs: int,
    batch_size: int,
    steps_per_epoch: int | None = None,
    model: nn.Module | None = None,
    name: str = "torch",
    **fields: Any,
) -> Recipe:
    """Return the recipe of a training loop with an optimiser and a scheduler of torch.

    The schedule is found by its rates: a copy of the scheduler is stepped through the whole training, and the recipe
    must give the same rates. So schedulers of torch, `transformers.get_scheduler` and your own are read alike.

    Args:
        optimiser: `SGD`, `Adam` or `AdamW`. Its parameters may be in groups with and without weight decay; then `model`
            is needed for their names.
        scheduler: a scheduler that has not been stepped; None: the rate is constant. After a training, make a new
            optimiser and a new scheduler with the same arguments.
        epochs: of the loop.
        batch_size: records in a step.
        steps_per_epoch: optimiser steps in an epoch, if the scheduler is stepped after each; None: it is stepped after
            each epoch.
        model: the network.
        name: name of the recipe.
        fields: further fields of `Recipe`, such as `clip_norm` and `label_smoothing`, which no optimiser knows.

    Raises:
        ConfigError: optimiser, option or schedule cannot be repeated; the message names it.

    >>> import torch
    >>> from expunge.training.recipes import from_torch
    >>> model = torch.nn.Linear(2, 2)
    >>> optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=5)
    >>> recipe = from_torch(optimiser, scheduler, epochs=5, batch_size=32, clip_norm=1.0)
    >>> recipe.optimiser, recipe.lr_schedule, recipe.lr_update, recipe.clip_norm
    ('adamw', 'cosine', 'epoch', 1.0)
    """
    kind = next((text for known, text in _KINDS.items() if type(optimiser) is known), None)
    if kind is None:
        _refuse("optimiser", f"expunge has no optimiser {type(optimiser).__name__}", "SGD, Adam or AdamW")
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(f"epochs must be an integer of at least 1, not {epochs!r}", where="epochs")
    groups = optimiser.param_groups
    decays = sorted({float(group["weight_decay"]) for group in groups}, reverse=True)
    without = [group for group in groups if not group["weight_decay"]]
    if len(decays) > 2 or (len(decays) == 2 and decays[1] != 0):
        _refuse("weight_decay", f"the parameter groups have the weight decays {decays}", "one value, and 0")
    base = Recipe(
        name=name, epochs=epochs, batch_size=batch_size, optimiser=kind, weight_decay=decays[0],
        **_read_options(groups, kind),
    )  # fmt: skip
    values: dict[str, Any] = {"no_decay": "none" if not decays[0] or not without else _find_rule(without, model)}
    rates = list(_simulate(optimiser, scheduler, epochs * (steps_per_epoch or 1)))
    values |= _find_schedule(base, rates, epochs, steps_per_epoch, scheduler)
    known = set(vars(base))
    for field in fields:
        if field not in known:
            raise ConfigError(f"a recipe has no field {field!r}", where="from_torch")
    return Recipe(**{**vars(base), **values, **fields})


def _refuse(where: str, why: str, hint: str | None = None) -> NoReturn:
    raise ConfigError(f"cannot be repeated: {why}", where=where, hint=hint)


def _read_options(groups: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The options of the optimiser that a recipe has; others must have their defaults."""
    used = ("momentum", "nesterov") if kind == "sgd" else ("betas", "eps")
    for option in (*used, "lr", "dampening", "maximize", "amsgrad"):
        values = [group.get("initial_lr", group["lr"]) if option == "lr" else group.get(option) for group in groups]
        if any(value != values[0] for value in values):
            _refuse(option, f"the parameter groups have the values {values}", "one value for all parameters")
        if option in ("dampening", "maximize", "amsgrad") and values[0]:
            _refuse(option, f"{option} = {values[0]} is not a field of a recipe")
    found = {option: groups[0][option] for option in used}
    return {key: tuple(map(float, value)) if key == "betas" else value for key, value in found.items()}


def _find_rule(without: Sequence[dict[str, Any]], model: nn.Module | None) -> str | tuple[str, ...]:
    """The rule of the parameters without weight decay, or their names."""
    if model is None:
        _refuse("weight_decay", "some parameters have none, and their names are not known", "give model=")
    chosen = {id(parameter) for group in without for parameter in group["params"]}
    names = {plain_name(name) for name, parameter in model.named_parameters() if id(parameter) in chosen}
    if len(names) != len(chosen):
        _refuse("weight_decay", "the optimiser has parameters that the model does not have")
    for rule in ("bias-and-norm", "transformers", "one-dimensional"):
        if find_undecayed(model, rule) == names:
            return rule
    return tuple(sorted(names))


def _simulate(optimiser: torch.optim.Optimizer, scheduler: Any, count: int) -> Iterator[float]:
    """The learning rates of the first steps of a scheduler; the caller's objects are not changed."""
    if scheduler is None:
        rate = float(optimiser.param_groups[0]["lr"])
        yield from [rate] * count
        return
    if getattr(scheduler, "last_epoch", 0) not in (0, -1):
        _refuse("scheduler", "it has been stepped", _FRESH)
    # parameters and their state are shared with the copy, which changes neither
    shared = [p for group in optimiser.param_groups for p in group["params"]]
    memo: dict[int, Any] = {id(p): p for p in shared}
    memo[id(optimiser.state)] = {}
    copied = copy.deepcopy(scheduler, memo)
    group = copied.optimizer.param_groups[0]
    for _ in range(count):
        yield float(group["lr"])
        try:
            with warnings.catch_warnings():  # about a scheduler that is stepped without its optimiser
                warnings.simplefilter("ignore")
                copied.step()
        except TypeError:
            _refuse("scheduler", f"{type(scheduler).__name__} depends on what is measured during training")


def _find_schedule(
    base: Recipe, rates: Sequence[float], epochs: int, steps: int | None, scheduler: Any
) -> dict[str, Any]:
    """The fields of the recipe whose rates are these."""
    peak = max(rates)
    for found in _candidates(rates, peak):
        fields = {"learning_rate": peak, "lr_update": "epoch" if steps is None else "step", **found}
        if set(found) <= {"lr_schedule"} and found["lr_schedule"] == "constant":
            fields["lr_update"] = "position"
        if steps is None and fields.get("warmup_steps"):
            fields["warmup"] = fields.pop("warmup_steps") / epochs
        try:
            recipe = Recipe(**{**vars(base), **fields})
        except ConfigError:
            continue
        places = [(at, None) if steps is None else (at / steps, steps) for at in range(len(rates))]
        if all(_is_close(recipe.rate(*place), rate, peak) for place, rate in zip(places, rates, strict=True)):
            return fields
    _refuse(
        "scheduler", f"no schedule of a recipe has the rates of {type(scheduler).__name__}",
        "constant, multistep, cosine or linear to 0, with a linear warm-up from 0; or one-cycle with div_factor=25 and "
        "final_div_factor=400",
    )  # fmt: skip


def _is_close(a: float, b: float, peak: float) -> bool:
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_RELATIVE * peak * 1e-3)


def _candidates(rates: Sequence[float], peak: float) -> Iterator[dict[str, Any]]:
    """Schedules that may have these rates."""
    total, top = len(rates), rates.index(peak)
    yield {"lr_schedule": "constant"}
    for warm in sorted({0, top, top + 1}):
        for schedule in ("constant", "cosine", "linear"):
            yield {"lr_schedule": schedule, "warmup_steps": warm}
        falls = [at for at in range(warm + 1, total) if rates[at] < rates[at - 1] * (1 - _RELATIVE)]
        if 0 < len(falls) <= _MOST_MILESTONES and rates[falls[0] - 1]:
            decay = rates[falls[0]] / rates[falls[0] - 1]
            yield {
                "lr_schedule": "multistep", "warmup_steps": warm, "lr_decay": decay,
                "milestones": tuple(at / total for at in falls),
            }  # fmt: skip
    for warm in (top, top + 1):
        yield {"lr_schedule": "one-cycle", "warmup_steps": warm}
        yield {"lr_schedule": "one-cycle", "warmup": warm / total}
