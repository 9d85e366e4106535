"""The training loop that `train` and most methods use: masked optimiser steps, checkpoints, progress."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import Interrupted, ModelError
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
from .epochs.batches import make_batches, make_pass_batches
from .epochs.epoch import EpochLoop
from .epochs.optimisers import choose_optimiser, clear_gradients, make_optimisers
from .epochs.steps import (
    AfterStep,
    BeforeEpoch,
    EpochCheck,
    Loss,
    Objective,
    Pass,
    Penalty,
    Steps,
    cross_entropy,
    mean_over_records,
)
from .masked import MaskKeeper, ValueKeeper
from .processes.team import Team
from .recipes import Recipe

__all__ = [
    "CHECKPOINT_SECONDS",
    "AfterStep",
    "BeforeEpoch",
    "EpochCheck",
    "Fit",
    "Interrupted",
    "Loss",
    "Objective",
    "Pass",
    "Penalty",
    "Steps",
    "cross_entropy",
    "fit",
    "make_batches",
    "mean_over_records",
    "order_seed",
]
CHECKPOINT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Attributes:
        history: one dictionary per epoch: `epoch`, `loss`, `learning_rate`, and `validation_accuracy` if measured.
        snapshots: state dicts after the requested epochs, by epoch.
        moments: moments of the optimiser after the same epochs, if the recipe keeps them (`checkpoint.copy_moments`).
        best_epoch: the epoch that the model's weights are from, if the recipe selects the best; None for the last.
        trained_records: records that went forward and backward, with repetition.
        forward_records: records that only went forward.
        optimiser_steps: steps of the optimiser, over all epochs that are in `history`.
        seconds: wall-clock time in the loop, summed over all resumed runs.
        stopped: why the training ended before its last epoch, or empty.
    """

    history: tuple[dict[str, Any], ...]
    snapshots: dict[int, dict[str, torch.Tensor]]
    best_epoch: int | None
    trained_records: int
    forward_records: int
    optimiser_steps: int
    seconds: float
    stopped: str = ""
    moments: dict[int, dict[str, torch.Tensor]] = dataclasses.field(default_factory=dict)

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
    moments: Mapping[str, torch.Tensor] | None = None,
    label: str = "training",
) -> Fit:
    """Train `model` in place on some records from epoch `start` to epoch `stop` of the recipe.

    Args:
        model: the model, on the runtime's device; it is modified, so pass a copy.
        rows: row numbers of the records to train on.
        recipe: epochs, batch size, optimiser, learning rates, weight decay, clipping, label smoothing, augmentation.
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
        moments: state that the optimiser starts with (`checkpoint.copy_moments`); None: it starts without.
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
    batches = make_pass_batches(rows, recipe, context, steps, None)
    batches = batchnorm.join_single_records(model, batches)
    stop = recipe.epochs if stop is None else stop
    checkpoint_path = None if context.checkpoint is None else Path(context.checkpoint)
    frozen = batchnorm.check_mode(steps.batch_norm) == "frozen"
    if stop > start:
        _check_network(model, batches, frozen=frozen)
    keeper, values = MaskKeeper(model, mask), ValueKeeper(model, steps.restriction)
    optimisers = make_optimisers(model, recipe, steps)
    checkpoint.load_moments(model, optimisers[""], moments or {})
    keeper.clear_moments(optimisers[""])
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
            *_identify(steps),
            *([hash_tensors(moments)] if moments else []),
            *(["BatchNorm of each part"] if runtime.devices > 1 and not runtime.sync_batchnorm else []),
        )
        identity = _hash_run(model, batches, recipe, seed, mask, identifying)
        state = checkpoint.restore(checkpoint_path, identity, model, optimisers) or state
    start_time = time.perf_counter() - state.seconds
    saved_epoch, saved_at = state.epoch, time.perf_counter()
    sizes = [batches.count if turn is None else len(turn.rows) for turn in map(steps.pass_of, range(stop))]
    stopped, team, ended = "", None, False
    loop = EpochLoop(
        model=model,
        batches=batches,
        recipe=recipe,
        runtime=runtime,
        seed=seed,
        optimiser=optimisers[""],
        keeper=keeper,
        values=values,
        steps=steps,
        frozen=frozen,
        progress=context.progress,
        label=label,
        total=sum(sizes[start:]),
        clock=time.perf_counter,
    )
    try:
        if runtime.devices > 1 and state.epoch < stop:
            team = Team(model, batches.records, rows, recipe, seed, runtime, steps, label)
            loop = dataclasses.replace(loop, team=team, batches=dataclasses.replace(batches, part=(0, team.count)))
        while state.epoch < stop:
            epoch = state.epoch
            turn = steps.pass_of(epoch)
            if turn is not None:
                loop = _take_turn(loop, turn, context, optimisers)
            new_mask = None if steps.before_epoch is None else steps.before_epoch(model, epoch)
            if new_mask is not None:
                loop = dataclasses.replace(loop, keeper=MaskKeeper(model, new_mask))
                for optimiser in optimisers.values():
                    loop.keeper.clear_moments(optimiser)
            with torch.enable_grad(), global_rng(seed, "epoch", epoch), values.hold():
                loss, rate, bad_step = loop.run_epoch(epoch, sum(sizes[start:epoch]))
                ends_round, check = turn is None or turn.ends_round, EpochCheck()
                diverged = loop.describe_divergence(loss, bad_step, epoch)
                if steps.keep_last_good and ends_round and not diverged:
                    diverged = loop.describe_outputs(epoch)
            if steps.after_epoch is not None and ends_round and not diverged:
                try:
                    check = steps.after_epoch(model, epoch)
                except ModelError as error:  # its outputs are not finite
                    if not steps.keep_last_good:
                        raise
                    diverged = f"after epoch {epoch + 1}, {error.what}"
            if diverged and not (steps.keep_last_good and state.best):
                raise loop.make_error(diverged)
            if diverged:
                stopped = f"{diverged}; the state is that after epoch {int(state.best['__epoch__'])}"
                break
            entry: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "learning_rate": rate}
            state.trained_records += sizes[epoch]
            state.optimiser_steps += len(loop.batches)
            if turn is not None:
                entry |= {"pass": turn.name} if turn.name else {}
                state.trained_records += turn.more_trained
                state.forward_records += turn.more_forward
            if validate is not None:
                entry["validation_accuracy"], used = validate(model)
                state.forward_records += used
                if entry["validation_accuracy"] > state.best_score:
                    state.best_score = entry["validation_accuracy"]
                    state.keep(model, epoch + 1)
            entry |= check.entry
            state.forward_records += check.forward_records
            stopped = check.stop
            state.history.append(entry)
            state.epoch = epoch + 1
            if state.epoch in snapshots:
                state.snapshots[state.epoch] = checkpoint.copy_state(model)
                if recipe.keep_moments:
                    state.moments[state.epoch] = checkpoint.copy_moments(model, optimisers[""])
            if steps.keep_last_good and ends_round:
                state.keep(model, epoch + 1)
            if stopped:
                break
            if checkpoint_path is not None and time.perf_counter() - saved_at > CHECKPOINT_SECONDS:
                state.seconds = time.perf_counter() - start_time
                checkpoint.save(checkpoint_path, identity, model, optimisers, state)
                saved_epoch, saved_at = state.epoch, time.perf_counter()
        ended = True
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{label} was interrupted in epoch {state.epoch + 1} of {stop}",
            hint=_describe_resume(checkpoint_path, saved_epoch),
        ) from error
    finally:
        if team is not None:
            team.close(wait=ended)
    clear_gradients(optimisers.values())
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
        optimiser_steps=state.optimiser_steps,
        seconds=seconds,
        stopped=stopped,
        moments=state.moments,
    )


def _describe_resume(path: Path | None, saved_epoch: int) -> str:
    """How an interrupted training goes on: what of it is on disk."""
    if path is None:
        return "nothing of it is kept: with checkpoint=FILE, the same call would resume"
    if path.exists():
        return f"the same command resumes after epoch {saved_epoch}"
    often = f"at the end of an epoch, every {CHECKPOINT_SECONDS:g} seconds"
    return f"nothing of it was saved yet, which happens {often}; the same command begins it again"


def _take_turn(
    loop: EpochLoop, turn: Pass, context: Context, optimisers: dict[str, torch.optim.Optimizer]
) -> EpochLoop:
    """The loop with the records, the batch size and the momentum of a pass."""
    batches = make_pass_batches(turn.rows, loop.recipe, context, loop.steps, turn)
    batches = dataclasses.replace(batchnorm.join_single_records(loop.model, batches), part=loop.batches.part)
    return dataclasses.replace(
        loop, batches=batches, turn=turn, optimiser=choose_optimiser(optimisers, turn, loop.recipe)
    )


def _identify(steps: Steps) -> list[Any]:
    """JSON values of what the passes and the restriction of a run change, for its checkpoint."""
    found: list[Any] = []
    for turn in steps.passes or ():
        labels = None if turn.records is None else turn.records.labels[turn.rows].tolist()
        found.append([turn.name, turn.momentum, turn.batch_size, hash_json([turn.rows.tolist(), labels])])
    found += [] if steps.order is None else [steps.order.hash()]
    return [*found, *([] if steps.restriction is None else [hash_tensors(steps.restriction.movable)])]


def _check_network(model: nn.Module, batches: Batches, *, frozen: bool) -> None:
    """Raise ModelError or TrainingError, before the first epoch, for what would stop the training or its use later."""
    records = batches.records
    if not type(model).__module__.startswith(f"{architectures.__name__}."):  # the reference networks are tested
        check_trainable(model, records.input_shape, records.classes)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("no parameter is trainable (requires_grad is off)", where=type(model).__name__)
    if frozen:
        batchnorm.check_can_freeze(model, records.input_shape)


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
