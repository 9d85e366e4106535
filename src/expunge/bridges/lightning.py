"""A callback of Lightning's `Trainer` that records what later requests need."""

from __future__ import annotations

from typing import Any

from expunge.core.errors import ConfigError
from expunge.training.recipes import Recipe, from_torch

from .recorder import Recorder, read_recipe

try:
    import lightning
except ImportError as error:
    raise ConfigError(
        "recording a training by Lightning needs the package lightning", hint="pip install lightning"
    ) from error


class RecordTraining(lightning.pytorch.Callback):
    """Record a training by Lightning: `lightning.Trainer(..., callbacks=[RecordTraining("recorded")])`.

    The recipe is read from optimiser, scheduler and trainer. The loss is code of the module, which the callback cannot
    read: it is taken to be the mean cross-entropy; give `label_smoothing` if it has some.

    Args:
        folder, ids, keep_epochs, keep_initial: see `expunge.bridges.recorder.Recorder`.
        label_smoothing: of the module's loss.
    """

    def __init__(self, folder: Any, *, label_smoothing: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.recorder, self.label_smoothing = Recorder(folder, **options), label_smoothing

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Store ids, recipe, seeds and the initial weights, and watch the sampler."""
        loader = trainer.train_dataloader
        if not hasattr(getattr(loader, "dataset", None), "__len__"):
            raise ConfigError(
                "the training data is not one data loader with a length", where="RecordTraining",
                hint="use one DataLoader over a map-style dataset",
            )  # fmt: skip
        count = len(loader.dataset)
        recipe, problem = read_recipe(lambda: _read(trainer, pl_module, count, self.label_smoothing))
        self.recorder.begin(
            pl_module, rows=count, tool="lightning.Trainer", recipe=recipe, problem=problem,
            versions={"lightning": lightning.__version__},
        )  # fmt: skip
        if trainer.global_step:
            self.recorder.add_problem("the training was resumed, so its first epochs were not recorded")
        elif trainer.world_size > 1:
            self.recorder.add_problem("several processes share the records")
        else:
            self.recorder.watch(loader)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Store the checkpoint of an epoch."""
        self.recorder.end_epoch(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the recording."""
        self.recorder.finish(pl_module, steps=trainer.global_step)


def _read(trainer: Any, module: Any, count: int, label_smoothing: float) -> Recipe:
    loader = trainer.train_dataloader
    size = loader.batch_size
    if len(trainer.optimizers) != 1 or not getattr(module, "automatic_optimization", True):
        _refuse("optimizers", "the module has several optimisers, or steps by itself")
    if size is None:
        _refuse("batch_size", "the data loader has no batch size")
    if trainer.accumulate_grad_batches != 1 and count % size:
        _refuse("accumulate_grad_batches", "accumulated batches are one batch only if all of them are full")
    if loader.drop_last and count % size:
        _refuse("drop_last", "expunge drops no record")
    if trainer.limit_train_batches not in (None, 1.0) or (trainer.max_steps or -1) > 0:
        _refuse("limit_train_batches, max_steps", "training stops inside an epoch")
    if trainer.precision not in ("32-true", "32", 32):
        _refuse("precision", f"{trainer.precision} is not a field of a recipe")
    clip = trainer.gradient_clip_val
    if clip and trainer.gradient_clip_algorithm not in (None, "norm"):
        _refuse("gradient_clip_algorithm", "it clips single values")
    size *= trainer.accumulate_grad_batches
    configs = trainer.lr_scheduler_configs
    if len(configs) > 1 or any(c.reduce_on_plateau or c.frequency != 1 or c.interval not in _UNITS for c in configs):
        _refuse("lr_scheduler", "it is not one schedule that is stepped once an epoch, or once a step")
    steps = -(-count // size) if configs and configs[0].interval == "step" else None
    return from_torch(
        trainer.optimizers[0], configs[0].scheduler if configs else None, epochs=trainer.max_epochs, batch_size=size,
        steps_per_epoch=steps, model=module, name="lightning", clip_norm=float(clip) if clip else None,
        label_smoothing=label_smoothing,
    )  # fmt: skip


_UNITS = ("epoch", "step")


def _refuse(where: str, why: str) -> None:
    raise ConfigError(f"cannot be repeated: {why}", where=where)
