"""Replay: the first epochs of training again without D_f; the difference is added to the trained weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.core import early_checkpoints
from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import plain_parameters
from expunge.core.seeds import derive, epoch_order
from expunge.core.show import plural
from expunge.core.trained import Trained, clone_model
from expunge.methods.composition.stopping import find_stop
from expunge.methods.finetuning import FineTuning
from expunge.methods.ft import FT
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.start import strip_patches
from expunge.methods.task import Task
from expunge.training import batchnorm
from expunge.training.checkpoint import load_state
from expunge.training.recipes import Recipe, count_epochs, get_recipe

from .arithmetic import combine
from .prefix import PREFIXES, Prefixes, check_prefix, run_prefixes, update_provenance


@register_method(
    "Replay",
    guarantee="empirical",
    citation="this project's own idea (docs/replay.md)",
    space={"epochs": [1, 2, 3, 5], "learning_rate": (0.001, 0.1, "log"), "scale": [0.5, 1.0, 1.5]},
)
@dataclasses.dataclass(frozen=True)
class Replay(FineTuning):
    """Replay the first epochs of training without D_f, add the difference to the trained weights, and fine-tune on D_r.

    With theta_k(S), the weights after the first k of T epochs of the original's recipe on the records S, from the same
    initial weights and in the same order:

        theta_hat = theta_T(D) + c (theta_k(D_r) - theta_k(D)),

    then `epochs` epochs of FT on D_r. Of a masked model, the difference is restricted to the kept weights. The buffers
    are those of theta_k(D_r); BatchNorm's are re-estimated for theta_hat on D_r. Cost: k + `epochs` passes over D_r,
    and k over D unless theta_k(D) is stored (`training.keep_epochs`). If it is stored, D_f is never read.

    theta_T(D) is part of the result, so nothing is proved. theta_k(D) and the difference are not stored with it;
    theta_k(D_r) is, as the checkpoint for the next request.

    With c = 1, k = T, `epochs=0` and `re_estimate=0`, the result is that of `Retrain` for recipes that select the last
    epoch. With c = 0 and `re_estimate=0`, it is that of `FT`.

    Attributes:
        prefix_epochs: k, an integer, or a fraction of the recipe's epochs below 1.
        scale: c.
        prefix: where theta_k(D) comes from: `recorded`, `recomputed` or `compressed` (`PREFIXES`).
        re_estimate: maximum number of records of D_r for re-estimating the BatchNorm buffers before fine-tuning; 0:
            they are not re-estimated.
        epochs: epochs of fine-tuning; 0: none.
        label_smoothing: of the fine-tuning; see `FT`.
        learning_rate, batch_size, momentum, weight_decay, optimiser, clip_norm, batch_norm, augment: of the
            fine-tuning; see `FineTuning`.
    """

    epochs: int = 2
    prefix_epochs: float = 0.2
    scale: float = 1.0
    prefix: str = "recorded"
    re_estimate: int = 2048
    label_smoothing: float = 0.0
    idle_if_zero: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(
            "Replay",
            scale=(self.scale, abs(self.scale) < float("inf")),
            prefix_epochs=(self.prefix_epochs, 0 < self.prefix_epochs < float("inf")),
            re_estimate=(self.re_estimate, self.re_estimate == 0 or self.re_estimate >= 2),
        )
        if self.prefix not in PREFIXES:
            hint = unknown_name_hint(self.prefix, PREFIXES)
            raise MethodError(f"unknown prefix {self.prefix!r}", where="Replay.prefix", hint=hint)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: recipe, order or initial weights of the original are not available.
            ConfigError: its recipe has fewer epochs than `prefix_epochs`.
        """
        if self.scale:
            check_prefix(self.prefix, self.prefix_epochs, strip_patches(trained), "Replay.prefix")

    def check_recipe(self, recipe: Recipe) -> None:
        """See `Method.check_recipe`."""
        count_epochs(self.prefix_epochs, recipe.epochs, "Replay.prefix_epochs")

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = super().estimate_reads(trained, sizes)
        if found is None or not self.scale:
            return found
        recipe = trained.provenance.recipe
        if not recipe:
            return None
        k = count_epochs(self.prefix_epochs, get_recipe(recipe).epochs, "Replay.prefix_epochs")
        found = found + Reads(retain=k * sizes.retain)
        if batchnorm.find_layers(trained.model):
            found = found + Reads(retain_forward=min(self.re_estimate, sizes.retain))
        if self.prefix == "recorded" and early_checkpoints.STATE in trained.state:
            return found
        return found + Reads(retain=k * sizes.retain, forget=k * sizes.forget, at_most=True)

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: the first epochs cannot be repeated, or the stored ones are of another run.
        """
        trained = strip_patches(task.trained)
        current = dataclasses.replace(trained, state={}) if not self.scale else self._replay(task, trained)
        stopped = ""
        if self.epochs:
            fine_tuning = {field.name: getattr(self, field.name) for field in dataclasses.fields(FT)}
            outcome = task.run(FT(**fine_tuning), current, task.context.for_part("fine-tuning"))
            task.history.extend(outcome.history)
            stopped, model = find_stop(outcome), outcome.trained.model
            current = dataclasses.replace(current, model=model)
        task.line += f", fine-tuned for {plural(self.epochs, 'epoch')}{stopped}" if self.epochs else ""
        state = {name: value for name, value in task.state.items() if name != "patches"}
        return dataclasses.replace(current, state={**state, **current.state})

    def _replay(self, task: Task, trained: Trained) -> Trained:
        """Return the original with theta_hat, the buffers of theta_k(D_r), and the checkpoints of D_r as state."""
        prefixes = run_prefixes(
            task, trained, prefix=self.prefix, epochs=self.prefix_epochs, where="Replay.prefix"
        )  # fmt: skip
        task.line += f"; {prefixes.line}"
        current = add_difference(trained, prefixes, self.scale)
        if self.re_estimate and batchnorm.find_layers(current.model):
            runtime = task.context.runtime
            model = runtime.place(current.model)
            rows = sample_rows(task, self.re_estimate)
            batches = task.make_batches(rows, max(self.batch_size, batchnorm.ESTIMATION_BATCH)).in_order()
            task.forward_records += batchnorm.re_estimate(model, batches, runtime)
            task.recomputed.add("batch_norm")
            current = dataclasses.replace(current, model=runtime.release(model))
        task.recomputed |= set(prefixes.state)
        return dataclasses.replace(current, state=prefixes.state)


def sample_rows(task: Task, limit: int) -> NDArray[np.int64]:
    """Sample at most `limit` records of D_r by hash, so that a request does not change the choice among the others."""
    rows = task.retain_rows
    order = epoch_order(task.context.records.keys[rows], derive(task.context.seed, "replay", "re-estimate"), 0)
    return rows[order[:limit]]


def add_difference(trained: Trained, prefixes: Prefixes, scale: float) -> Trained:
    """Return a model with theta_hat, with the buffers of theta_k(D_r), and without state."""
    model, mask = clone_model(trained.model), trained.mask
    current = {name: p.detach() for name, p in plain_parameters(model).items()}
    kept = None if mask is None else mask.kept
    new = combine(current, prefixes.before, prefixes.after, scale=scale, kept=kept)
    buffers = {name: tensor for name, tensor in prefixes.after.items() if name not in new}
    load_state(model, {**buffers, **new})
    return dataclasses.replace(
        trained, model=model, provenance=update_provenance(trained.provenance, prefixes), state={}
    )  # fmt: skip
