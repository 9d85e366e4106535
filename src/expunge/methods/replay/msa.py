"""MSA: model state arithmetic with an early checkpoint of the original's run."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.core import early_checkpoints
from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.hashing import plain_parameters
from expunge.core.seeds import derive, epoch_order
from expunge.core.trained import Trained, clone_model
from expunge.methods.finetuning import FineTuning
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.start import strip_patches
from expunge.methods.task import Task
from expunge.training import batchnorm
from expunge.training.checkpoint import copy_state, load_state
from expunge.training.loop import Steps
from expunge.training.recipes import Recipe, count_epochs, get_recipe

from .arithmetic import combine
from .method import sample_rows
from .prefix import PREFIXES
from .start_point import StartPoint, check_start_point, find_start_point

#: What to do if the checkpoint has seen records of the request.
DIRTY: dict[str, str] = {
    "label": "run, and say that it is task-vector negation, because the checkpoint has seen the records",
    "refuse": "raise an error",
}


@register_method(
    "MSA",
    guarantee="empirical",
    citation="[MSA2025] (model state arithmetic)",
    space={
        "epochs": [1, 2, 5, 10],
        "learning_rate": (0.001, 0.1, "log"),
        "alpha": [0.5, 1.0, 1.5],
        "beta": [0.5, 1.0, 1.5],
    },
)
@dataclasses.dataclass(frozen=True)
class MSA(FineTuning):
    """Subtract what fine-tuning an early checkpoint on D_f changes, and add what fine-tuning it on D_r changes.

    With a checkpoint theta_0 of the original's run, theta_1 = theta_0 trained on D_f, and theta_2 = theta_0 trained on
    a sample of D_r of equal size:

        theta_u = theta_D - alpha (theta_1 - theta_0) + beta (theta_2 - theta_0).

    The paper needs a checkpoint that has not seen D_f. In a classifier that is trained for several epochs, only the
    initial weights are (k = 0); with a later checkpoint the result is task-vector negation, and its history says so.
    Of a masked model, the trainings and the arithmetic are restricted to the kept weights. The paper trains language
    models by AdamW; here it is SGD unless `optimiser` says otherwise. Buffers are not part of the arithmetic:
    BatchNorm's are re-estimated on D_r. Cost: `epochs` (|D_f| + sample) records, and k passes over D unless the
    checkpoint is stored.

    Attributes:
        prefix_epochs: k, an integer, or a fraction of the recipe's epochs below 1; 0: the initial weights.
        prefix: where the checkpoint comes from: `recorded` or `recomputed`.
        alpha, beta: the factors; the paper chooses them on validation data (alpha of 1, 1.5 or 2; beta 1).
        retain_sample: records of D_r for theta_2; 0: as many as D_f has.
        dirty: `label` or `refuse` (`DIRTY`).
        re_estimate: maximum number of records of D_r for re-estimating the BatchNorm buffers; 0: they stay the
            original's.
        epochs, learning_rate, batch_size, momentum, weight_decay, optimiser, clip_norm, batch_norm, augment: of both
            trainings; see `FineTuning`.
    """

    prefix_epochs: float = 0.2
    prefix: str = "recorded"
    alpha: float = 1.0
    beta: float = 1.0
    retain_sample: int = 0
    dirty: str = "label"
    re_estimate: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        infinity = float("inf")
        require_range(
            "MSA",
            prefix_epochs=(self.prefix_epochs, 0 <= self.prefix_epochs < infinity),
            alpha=(self.alpha, 0 <= self.alpha < infinity),
            beta=(self.beta, 0 <= self.beta < infinity),
            retain_sample=(self.retain_sample, self.retain_sample >= 0),
            re_estimate=(self.re_estimate, self.re_estimate == 0 or self.re_estimate >= 2),
        )
        if self.stop != "never":
            raise MethodError(
                "the models that it trains are terms of a sum, so their forget errors are not that of the result",
                where="MSA.stop",
                hint="leave it out",
            )
        known = [name for name in PREFIXES if name != "compressed"]
        for option, value, names in (("prefix", self.prefix, known), ("dirty", self.dirty, list(DIRTY))):
            if value not in names:
                hint = unknown_name_hint(value, names)
                raise MethodError(f"unknown {option} {value!r}", where=f"MSA.{option}", hint=hint)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: recipe, order or initial weights of the original are not available.
            ConfigError: its recipe has fewer epochs than `prefix_epochs`.
        """
        check_start_point(self.prefix_epochs, self.prefix, strip_patches(trained), "MSA.prefix_epochs")

    def check_recipe(self, recipe: Recipe) -> None:
        """See `Method.check_recipe`."""
        count_epochs(self.prefix_epochs or 1, recipe.epochs, "MSA.prefix_epochs")

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        sample = min(self.retain_sample or sizes.forget, sizes.retain)
        return Reads(retain=sample if self.beta else 0, forget=sizes.forget if self.alpha else 0)

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        found = self.epochs * self.epoch_reads(sizes)
        if self.saliency < 1 and self.saliency_source == "gradient" and self.epochs:
            found = found + (bool(self.alpha) + bool(self.beta)) * Reads(forget=sizes.forget)
        if (self.alpha or self.beta) and batchnorm.find_layers(trained.model):
            found = found + Reads(retain_forward=min(self.re_estimate, sizes.retain))
        recipe = trained.provenance.recipe
        if not self.prefix_epochs or (self.prefix == "recorded" and early_checkpoints.STATE in trained.state):
            return found
        if not recipe:
            return None
        k = count_epochs(self.prefix_epochs, get_recipe(recipe).epochs, "MSA.prefix_epochs")
        return found + Reads(retain=k * sizes.retain, forget=k * sizes.forget, at_most=True)

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: with `dirty=refuse`, the checkpoint has seen the records; or it is of another run.
        """
        trained, runtime = strip_patches(task.trained), task.context.runtime
        where = "MSA.prefix_epochs"
        point = find_start_point(task, trained, prefix=self.prefix, epochs=self.prefix_epochs, where=where)
        if not point.clean and self.dirty == "refuse":
            raise MethodError(
                f"the checkpoint of epoch {point.epoch} has seen records of the request",
                where=where,
                hint="use prefix_epochs=0 (the initial weights), or dirty=label",
            )
        model = clone_model(trained.model)
        current = {name: p.detach() for name, p in plain_parameters(model).items()}
        kept = None if trained.mask is None else trained.mask.kept
        start = copy_state(point.build())
        if self.alpha:
            forget = self._train_from(task, point, task.forget_rows)
            current = combine(current, start, forget, scale=-self.alpha, kept=kept)
        if self.beta:
            retain = self._train_from(task, point, self._sample(task))
            current = combine(current, start, retain, scale=self.beta, kept=kept)
        load_state(model, current)
        if self.re_estimate and (self.alpha or self.beta) and batchnorm.find_layers(model):
            placed = runtime.place(model)
            rows = sample_rows(task, self.re_estimate)
            batches = task.make_batches(rows, max(self.batch_size, batchnorm.ESTIMATION_BATCH)).in_order()
            task.forward_records += batchnorm.re_estimate(placed, batches, runtime)
            task.recomputed.add("batch_norm")
            model = runtime.release(placed)
        label = "" if point.clean else ", so this is task-vector negation"
        task.line += f"; arithmetic with {point.line}{label}"
        provenance = dataclasses.replace(trained.provenance, checkpoints={})
        state = {name: tensors for name, tensors in task.state.items() if name != "patches"}
        return dataclasses.replace(trained, model=model, provenance=provenance, state=state)

    def _sample(self, task: Task) -> NDArray[np.int64]:
        """Sample records of D_r for theta_2, by hash."""
        rows, count = task.retain_rows, self.retain_sample or len(task.forget_rows)
        order = epoch_order(task.context.records.keys[rows], derive(task.context.seed, "msa", "retain"), 0)
        return rows[order[:count]]

    def _train_from(self, task: Task, point: StartPoint, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Train the checkpoint on some records with the mask of the model; return all tensors."""
        task.model = task.context.runtime.place(point.build())
        if task.mask is not None:
            task.mask.apply_(task.model)
        steps = self.complete_steps(task, Steps(batch_norm=self._mode()))
        task.fit(rows, self.make_recipe(task.trained), steps=steps)
        return copy_state(task.model)

    def _mode(self) -> str:
        """Treatment of the buffers in the trainings; those of the result are set afterwards."""
        return "frozen" if self.batch_norm == "frozen" else "train"
