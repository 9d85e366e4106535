"""The training loop: plain, visible, mask-safe, resumable. Training and most methods run through it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import Interrupted, TrainingError
from expunge.core.hashing import hash_json, hash_tensors
from expunge.core.mask import Mask
from expunge.core.seeds import derive, global_rng
from expunge.core.trained import plain_state
from expunge.data.batches import Batches

from . import batchnorm, checkpoint
from .masked import MaskKeeper
from .progress import Progress
from .recipes import Recipe
from .runtime import Runtime

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Penalty = Callable[[nn.Module, int], torch.Tensor | None]
AfterStep = Callable[[nn.Module, int, float], None]
BeforeEpoch = Callable[[nn.Module, int], Mask | None]
CHECKPOINT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` did.

    Attributes:
        history: one dictionary an epoch: `epoch`, `loss`, `learning_rate`, and `validation_accuracy` where measured.
        snapshots: copies of the state after the epochs that were asked for.
        best_epoch: the epoch whose weights were kept, or None where the last ones were.
        trained_records, forward_records: cost in records.
        seconds: wall-clock time in the loop, over all resumptions.
    """

    history: tuple[dict[str, Any], ...]
    snapshots: dict[int, dict[str, torch.Tensor]]
    best_epoch: int | None
    trained_records: int
    forward_records: int
    seconds: float


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of `B x K` logits against `B` class indices, in float32, natural logarithm."""
    return functional.cross_entropy(logits.float(), labels)


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    *,
    runtime: Runtime,
    seed: int,
    mask: Mask | None = None,
    objective: Objective = cross_entropy,
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
    before_epoch: BeforeEpoch | None = None,
    batch_norm: str = "train",
    start: int = 0,
    stop: int | None = None,
    snapshots: Collection[int] = (),
    validate: Callable[[nn.Module], tuple[float, int]] | None = None,
    checkpoint_path: Path | None = None,
    belongs_to: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    label: str = "training",
) -> Fit:
    """Train `model` in place on `batches` from epoch `start` to epoch `stop` of the recipe's schedule.

    A step is: forward, loss = objective + penalty, backward, gradients of masked weights to 0, SGD step, masked weights
    to +0.0, then `after_step` (proximal maps live there).

    Args:
        model: a model that expunge owns, on the runtime's device.
        batches: the records to train on.
        recipe: epochs, rates and the rest.
        runtime: device and precision.
        seed: seeds the order, the augmentation and whatever draws from the global generators (dropout), epoch by epoch.
        mask: weights that stay +0.0, or None.
        objective: `(B x K logits, B labels) -> scalar`.
        penalty: `(model, epoch) -> scalar or None`, added to the objective.
        after_step: `(model, epoch, learning rate)`, called after the masked step.
        before_epoch: `(model, epoch) -> mask or None`; a mask takes the place of the former one from this epoch on
            (pruning during training). It must depend on model and epoch alone, so that a resumed run repeats it.
        batch_norm: a key of `expunge.training.batchnorm.MODES`.
        start: epochs of the schedule that are already behind (rewinding starts late in it).
        stop: where to stop, `recipe.epochs` if None; past the end of the schedule its last rate stays.
        snapshots: epochs after which to copy the state.
        validate: `model -> (accuracy in percent, records used)`, called each epoch when the recipe selects `best`.
        checkpoint_path: file for resuming; written at the end of an epoch if the last one is 10 seconds old, removed on
            success.
        belongs_to: JSON values that tell this run from others with the same recipe and records (a method's options); a
            checkpoint that was written under other values is refused.
        progress: told of progress in records.
        label: what this run is called in progress and errors.

    Raises:
        TrainingError: the loss is not finite.
        Interrupted: Ctrl-C; if a path was given, a checkpoint of an earlier epoch's end is on disk, at most 10 seconds
            and one epoch old.
        FileError: the checkpoint is damaged or belongs to another run.
    """
    stop = recipe.epochs if stop is None else stop
    checkpoint_path = None if checkpoint_path is None else Path(checkpoint_path)
    frozen = batchnorm.check_mode(batch_norm) == "frozen"
    keeper = MaskKeeper(model, mask)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )
    validate = validate if recipe.select == "best" else None
    done = checkpoint.Progressed(epoch=start)
    identity = ""
    if checkpoint_path is not None:
        more = (start, stop, batch_norm, label, sorted(snapshots), runtime.precision, dict(belongs_to or {}))
        identity = _identity(model, batches, recipe, seed, mask, more)
        done = checkpoint.restore(checkpoint_path, identity, model, optimiser) or done
    begun = time.perf_counter() - done.seconds
    saved_epoch, saved_at = done.epoch, time.perf_counter()
    loop = _Loop(
        model=model,
        batches=batches,
        recipe=recipe,
        runtime=runtime,
        seed=seed,
        optimiser=optimiser,
        keeper=keeper,
        objective=objective,
        penalty=penalty,
        after_step=after_step,
        frozen=frozen,
        progress=progress,
        label=label,
        total=(stop - start) * batches.count,
    )
    try:
        while done.epoch < stop:
            epoch = done.epoch
            changed = None if before_epoch is None else before_epoch(model, epoch)
            if changed is not None:
                loop = dataclasses.replace(loop, keeper=MaskKeeper(model, changed))
            with global_rng(seed, "epoch", epoch):
                loss, rate = loop.epoch(epoch, (epoch - start) * batches.count)
            entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "learning_rate": rate}
            done.trained_records += batches.count
            if validate is not None:
                entry["validation_accuracy"], used = validate(model)
                done.forward_records += used
                if entry["validation_accuracy"] > done.best_score:
                    done.best_score = entry["validation_accuracy"]
                    done.best = checkpoint.copied_state(model)
                    done.best["__epoch__"] = torch.tensor(epoch + 1)
            done.history.append(entry)
            done.epoch = epoch + 1
            if done.epoch in snapshots:
                done.snapshots[done.epoch] = checkpoint.copied_state(model)
            if checkpoint_path is not None and time.perf_counter() - saved_at > CHECKPOINT_SECONDS:
                done.seconds = time.perf_counter() - begun
                checkpoint.save(checkpoint_path, identity, model, optimiser, done)
                saved_epoch, saved_at = done.epoch, time.perf_counter()
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{label} was interrupted in epoch {done.epoch + 1} of {stop}",
            hint=f"the same command resumes after epoch {saved_epoch}" if checkpoint_path else None,
        ) from error
    optimiser.zero_grad(set_to_none=True)  # the last batch's gradient is nobody's to keep
    runtime.synchronise()
    seconds = time.perf_counter() - begun
    best_epoch = None
    if done.best:
        best_epoch = int(done.best.pop("__epoch__"))
        checkpoint.load_state(model, done.best)
    if checkpoint_path is not None:
        checkpoint_path.unlink(missing_ok=True)
    return Fit(
        history=tuple(done.history),
        snapshots=done.snapshots,
        best_epoch=best_epoch,
        trained_records=done.trained_records,
        forward_records=done.forward_records,
        seconds=seconds,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """What every epoch of one run shares."""

    model: nn.Module
    batches: Batches
    recipe: Recipe
    runtime: Runtime
    seed: int
    optimiser: torch.optim.Optimizer
    keeper: MaskKeeper
    objective: Objective
    penalty: Penalty | None
    after_step: AfterStep | None
    frozen: bool
    progress: Progress | None
    label: str
    total: int

    def epoch(self, epoch: int, seen: int) -> tuple[float, float]:
        """Run one epoch; the mean objective a record, and the last learning rate."""
        model, steps = self.model, len(self.batches)
        batchnorm.set_training(model, frozen=self.frozen)
        rate = self.recipe.rate(epoch)
        loss_sum = torch.zeros((), device=self.runtime.torch_device)
        told = time.perf_counter()
        for step, (x, y) in enumerate(self.batches.epoch(self.seed, epoch)):
            rate = self.recipe.rate(epoch + step / steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            if len(x) == 1:  # one record has no batch variance: normalise it with the running statistics
                batchnorm.set_training(model, frozen=True)
            with self.runtime.autocast():
                loss = self.objective(model(x), y)
            extra = None if self.penalty is None else self.penalty(model, epoch)
            self.optimiser.zero_grad(set_to_none=True)
            self.runtime.backward(loss if extra is None else loss + extra)
            self.keeper.before_step()
            self.optimiser.step()
            self.keeper.after_step()
            if self.after_step is not None:
                self.after_step(model, epoch, rate)
            loss_sum += loss.detach() * len(x)
            seen += len(x)
            if self.progress is not None and (time.perf_counter() - told > 0.2 or seen >= self.total):
                told = time.perf_counter()
                self.progress(self.label, seen, self.total, {"epoch": epoch + 1, "loss": float(loss.detach())})
        mean = float(loss_sum) / max(1, self.batches.count)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss of epoch {epoch + 1} is {mean}",
                where=self.label,
                hint="lower the learning rate, or check the records",
            )
        return mean, rate


def _identity(
    model: nn.Module, batches: Batches, recipe: Recipe, seed: int, mask: Mask | None, more: tuple[Any, ...]
) -> str:
    return hash_json(
        {
            "recipe": recipe.to_json(),
            "seed": seed,
            "records": [batches.records.hash, hash_json(batches.records.record_ids[batches.rows].tolist())],
            "mask": None if mask is None else mask.hash(),
            "weights": hash_tensors(plain_state(model)),
            "more": list(more),
        }
    )


def order_seed(seed: int) -> int:
    """The seed of the order and augmentation of a training run, apart from that of its initial weights."""
    return derive(seed, "order")
