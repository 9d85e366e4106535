"""The training loop that `train` and most methods use: masked SGD steps, checkpoints, progress."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from expunge.core.errors import Interrupted, ModelError, TrainingError
from expunge.core.hashing import hash_json, hash_tensors
from expunge.core.mask import Mask
from expunge.core.seeds import derive, global_rng
from expunge.core.show import repr_fields
from expunge.core.trained import plain_state
from expunge.data.batches import Batches
from expunge.models import architectures
from expunge.models.trainable import check_trainable

from . import batchnorm, checkpoint
from .context import Context
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
    """The result of `fit`.

    Attributes:
        history: one dictionary per epoch: `epoch`, `loss`, `learning_rate`, and `validation_accuracy` if measured.
        snapshots: state dicts after the requested epochs, by epoch.
        best_epoch: the epoch that the model's weights are from, if the recipe selects the best; None for the last.
        trained_records: records that went forward and backward, with repetition.
        forward_records: records that only went forward.
        seconds: wall-clock time in the loop, summed over all resumed runs.
    """

    history: tuple[dict[str, Any], ...]
    snapshots: dict[int, dict[str, torch.Tensor]]
    best_epoch: int | None
    trained_records: int
    forward_records: int
    seconds: float

    __repr__ = repr_fields


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the mean cross-entropy of logits, in nats: -mean_i log softmax(logits_i)[labels_i].

    Args:
        logits: `B x K`, cast to float32.
        labels: `B` class indices.

    >>> import torch
    >>> from expunge.training import cross_entropy
    >>> round(float(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 3]))), 3)  # log 4
    1.386
    """
    return functional.cross_entropy(logits.float(), labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """What the steps of a training run do.

    Each step computes objective + penalty, backpropagates, sets the gradients of masked weights to 0, takes an SGD
    step, sets masked weights to +0.0, and calls `after_step`.

    Attributes:
        objective: `(B x K logits, B labels) -> scalar`.
        penalty: `(model, epoch) -> scalar or None`, added to the objective.
        after_step: `(model, epoch, learning rate)`, called after the masked step (a proximal map, for example).
        before_epoch: `(model, epoch) -> mask or None`; a mask replaces the previous one from this epoch on (pruning
            during training). It may depend on model and epoch only, so that a resumed run repeats it.
        batch_norm: a key of `expunge.training.batchnorm.MODES`.
    """

    objective: Objective = cross_entropy
    penalty: Penalty | None = None
    after_step: AfterStep | None = None
    before_epoch: BeforeEpoch | None = None
    batch_norm: str = "train"

    __repr__ = repr_fields


def fit(
    model: nn.Module,
    rows: NDArray[np.int64],
    recipe: Recipe,
    context: Context,
    *,
    mask: Mask | None = None,
    steps: Steps | None = None,
    start: int = 0,
    stop: int | None = None,
    snapshots: Collection[int] = (),
    validate: Callable[[nn.Module], tuple[float, int]] | None = None,
    run_options: Mapping[str, Any] | None = None,
    label: str = "training",
) -> Fit:
    """Train `model` in place on some records from epoch `start` to epoch `stop` of the recipe.

    Args:
        model: the model, on the runtime's device; it is modified, so pass a copy.
        rows: row numbers of the records to train on.
        recipe: epochs, batch size, learning rates, momentum, weight decay, augmentation.
        context: records, device and precision. Its seed seeds the order of records, the augmentation and the global
            generators (dropout), separately per epoch. Its checkpoint is written at the end of an epoch if the last one
            is more than 10 seconds old, and removed at the end. Its progress is called with records.
        mask: weights that stay +0.0, or None.
        steps: objective, penalty and hooks; None: plain cross-entropy.
        start: epochs of the learning-rate schedule to skip (after rewinding, for example).
        stop: the epoch to stop after, `recipe.epochs` if None; beyond the schedule its last rate is used.
        snapshots: epochs after which to copy the state dict.
        validate: `model -> (accuracy in percent, records used)`, called after each epoch if the recipe selects `best`.
        run_options: JSON values that identify this run among others with the same recipe and records (a method's
            options); a checkpoint written under other values is rejected.
        label: name of this run in progress and errors.

    Raises:
        ModelError: the network cannot be trained (`expunge.models.check_trainable`), or not on a batch of one record
            (BatchNorm without running statistics); nothing was trained.
        TrainingError: the loss is not finite; or, before the first epoch, running statistics cannot be frozen.
        Interrupted: Ctrl-C. With a checkpoint path, the end of an earlier epoch is on disk, at most 10 seconds plus one
            epoch old.
        FileError: the checkpoint is damaged or belongs to another run.

    >>> import numpy as np
    >>> import expunge
    >>> from expunge.training import fit
    >>> records = expunge.load_records("digits")
    >>> model = expunge.architecture("mlp", records, widths=(8,), normalise="none").build(seed=0)
    >>> recipe = expunge.Recipe(epochs=2, batch_size=20)
    >>> result = fit(model, np.arange(100), recipe, expunge.Context(records, expunge.Runtime("cpu")))
    >>> result.trained_records
    200
    >>> result.history[1]["loss"] < result.history[0]["loss"]
    True
    """
    steps, runtime, seed = steps or Steps(), context.runtime, context.seed
    batches = batchnorm.join_single_records(model, make_batches(rows, recipe, context))
    stop = recipe.epochs if stop is None else stop
    checkpoint_path = None if context.checkpoint is None else Path(context.checkpoint)
    frozen = batchnorm.check_mode(steps.batch_norm) == "frozen"
    if stop > start:
        _check_network(model, batches, frozen=frozen)
    keeper = MaskKeeper(model, mask)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )
    validate = validate if recipe.select == "best" else None
    state = checkpoint.LoopState(epoch=start)
    identity = ""
    if checkpoint_path is not None:
        identifying = (
            start,
            stop,
            steps.batch_norm,
            label,
            sorted(snapshots),
            runtime.precision,
            dict(run_options or {}),
        )
        identity = _hash_run(model, batches, recipe, seed, mask, identifying)
        state = checkpoint.restore(checkpoint_path, identity, model, optimiser) or state
    start_time = time.perf_counter() - state.seconds
    saved_epoch, saved_at = state.epoch, time.perf_counter()
    loop = _Loop(
        model=model,
        batches=batches,
        recipe=recipe,
        runtime=runtime,
        seed=seed,
        optimiser=optimiser,
        keeper=keeper,
        steps=steps,
        frozen=frozen,
        progress=context.progress,
        label=label,
        total=(stop - start) * batches.count,
    )
    try:
        while state.epoch < stop:
            epoch = state.epoch
            new_mask = None if steps.before_epoch is None else steps.before_epoch(model, epoch)
            if new_mask is not None:
                loop = dataclasses.replace(loop, keeper=MaskKeeper(model, new_mask))
            with global_rng(seed, "epoch", epoch):
                loss, rate = loop.run_epoch(epoch, (epoch - start) * batches.count)
            entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "learning_rate": rate}
            state.trained_records += batches.count
            if validate is not None:
                entry["validation_accuracy"], used = validate(model)
                state.forward_records += used
                if entry["validation_accuracy"] > state.best_score:
                    state.best_score = entry["validation_accuracy"]
                    state.best = checkpoint.copy_state(model)
                    state.best["__epoch__"] = torch.tensor(epoch + 1)
            state.history.append(entry)
            state.epoch = epoch + 1
            if state.epoch in snapshots:
                state.snapshots[state.epoch] = checkpoint.copy_state(model)
            if checkpoint_path is not None and time.perf_counter() - saved_at > CHECKPOINT_SECONDS:
                state.seconds = time.perf_counter() - start_time
                checkpoint.save(checkpoint_path, identity, model, optimiser, state)
                saved_epoch, saved_at = state.epoch, time.perf_counter()
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{label} was interrupted in epoch {state.epoch + 1} of {stop}",
            hint=f"the same command resumes after epoch {saved_epoch}" if checkpoint_path else None,
        ) from error
    optimiser.zero_grad(set_to_none=True)  # a returned model carries no gradient of the last batch
    runtime.synchronise()
    seconds = time.perf_counter() - start_time
    best_epoch = None
    if state.best:
        best_epoch = int(state.best.pop("__epoch__"))
        checkpoint.load_state(model, state.best)
    if checkpoint_path is not None:
        checkpoint_path.unlink(missing_ok=True)
    return Fit(
        history=tuple(state.history),
        snapshots=state.snapshots,
        best_epoch=best_epoch,
        trained_records=state.trained_records,
        forward_records=state.forward_records,
        seconds=seconds,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Loop:
    """The values that all epochs of one run share."""

    model: nn.Module
    batches: Batches
    recipe: Recipe
    runtime: Runtime
    seed: int
    optimiser: torch.optim.Optimizer
    keeper: MaskKeeper
    steps: Steps
    frozen: bool
    progress: Progress | None
    label: str
    total: int

    def run_epoch(self, epoch: int, seen: int) -> tuple[float, float]:
        """Run one epoch; return the mean objective per record and the last learning rate."""
        model, hooks, steps = self.model, self.steps, len(self.batches)
        shape = self.batches.records.input_shape
        batchnorm.set_training_mode(model, frozen=self.frozen, input_shape=shape)
        rate = self.recipe.rate(epoch)
        loss_sum = torch.zeros((), device=self.runtime.torch_device)
        reported_at = time.perf_counter()
        for step, (x, y) in enumerate(self.batches.epoch(self.seed, epoch)):
            rate = self.recipe.rate(epoch + step / steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            if len(x) == 1:  # one record has no batch variance: normalise with the running statistics
                batchnorm.set_training_mode(model, frozen=True, input_shape=shape)
            with self.runtime.autocast():
                loss = hooks.objective(model(x), y)
            extra = None if hooks.penalty is None else hooks.penalty(model, epoch)
            self.optimiser.zero_grad(set_to_none=True)
            self.runtime.backward(loss if extra is None else loss + extra)
            self.keeper.before_step()
            self.optimiser.step()
            self.keeper.after_step()
            if hooks.after_step is not None:
                hooks.after_step(model, epoch, rate)
            loss_sum += loss.detach() * len(x)
            seen += len(x)
            if self.progress is not None and (time.perf_counter() - reported_at > 0.2 or seen >= self.total):
                reported_at = time.perf_counter()
                self.progress(self.label, seen, self.total, {"epoch": epoch + 1, "loss": float(loss.detach())})
        mean = float(loss_sum) / max(1, self.batches.count)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss of epoch {epoch + 1} is {mean}",
                where=self.label,
                hint="lower the learning rate, or check the records",
            )
        return mean, rate


def _check_network(model: nn.Module, batches: Batches, *, frozen: bool) -> None:
    """Raise ModelError or TrainingError, before the first epoch, for what would stop the training or its use later."""
    records = batches.records
    if not type(model).__module__.startswith(f"{architectures.__name__}."):  # the reference networks are tested
        check_trainable(model, records.input_shape, records.classes)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("no parameter is trainable (requires_grad is off)", where=type(model).__name__)
    if frozen:
        batchnorm.check_can_freeze(model, records.input_shape)


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
    )


def _hash_run(
    model: nn.Module, batches: Batches, recipe: Recipe, seed: int, mask: Mask | None, identifying: tuple[Any, ...]
) -> str:
    return hash_json(
        {
            "recipe": recipe.to_json(),
            "seed": seed,
            "records": [batches.records.hash, hash_json(batches.records.record_ids[batches.rows].tolist())],
            "mask": None if mask is None else mask.hash(),
            "weights": hash_tensors(plain_state(model)),
            "more": list(identifying),
        }
    )


def order_seed(seed: int) -> int:
    """Return the seed of the order of records and the augmentation of a training run with seed `seed`."""
    return derive(seed, "order")
