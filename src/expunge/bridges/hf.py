"""A callback of `transformers.Trainer` that records what later requests need."""

from __future__ import annotations

from typing import Any

from expunge.core.errors import ConfigError
from expunge.training.recipes import Recipe, from_torch, from_training_arguments

from .recorder import Recorder, read_recipe

try:
    import transformers
except ImportError as error:
    raise ConfigError(
        "recording a training by transformers needs the package transformers", hint='pip install "expunge[hf]"'
    ) from error

#: Fields that the arguments and the optimiser of a Trainer must agree on.
_COMPARED = ("optimiser", "weight_decay", "betas", "eps", "learning_rate")


class RecordTraining(transformers.TrainerCallback):
    """Record a training by `transformers.Trainer`: `Trainer(..., callbacks=[RecordTraining("recorded")])`.

    The recipe is read from the arguments and compared with the optimiser and the schedule that the Trainer made. A
    training that cannot be repeated is recorded all the same, with the reason (`Recording.problem`).

    Args:
        folder, ids, keep_epochs, keep_initial: see `expunge.bridges.recorder.Recorder`.
    """

    def __init__(self, folder: Any, **options: Any) -> None:
        self.recorder = Recorder(folder, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store ids, recipe, seeds and the initial weights, and watch the sampler."""
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        count = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
        if not count:
            raise ConfigError("the training data has no length, so its records have no rows", where="RecordTraining")
        recipe, problem = read_recipe(lambda: _read(args, count, kwargs))
        seeds = {"seed": args.seed, **({} if args.data_seed is None else {"data_seed": args.data_seed})}
        self.recorder.begin(
            model, rows=count, tool="transformers.Trainer", recipe=recipe, problem=problem, seeds=seeds,
            versions={"transformers": transformers.__version__},
        )  # fmt: skip
        if state.global_step:
            self.recorder.add_problem("the training was resumed, so its first epochs were not recorded")
        elif args.world_size > 1:
            self.recorder.add_problem("several processes share the records")
        else:
            self.recorder.watch(loader)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the checkpoint of an epoch."""
        self.recorder.end_epoch(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the recording."""
        self.recorder.finish(kwargs["model"], steps=state.global_step)


def _read(args: Any, count: int, kwargs: dict[str, Any]) -> Recipe:
    """The recipe of the arguments, after comparing it with the Trainer's optimiser and schedule."""
    recipe = from_training_arguments(args, records=count)
    optimiser = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
    scheduler = getattr(kwargs["lr_scheduler"], "scheduler", kwargs["lr_scheduler"])
    steps = -(-count // recipe.batch_size)
    made = from_torch(
        optimiser, scheduler, epochs=recipe.epochs, batch_size=recipe.batch_size, steps_per_epoch=steps,
        model=kwargs["model"],
    )  # fmt: skip
    for field in _COMPARED:
        if getattr(made, field) != getattr(recipe, field):
            raise ConfigError(
                f"the optimiser of the Trainer has {field} = {getattr(made, field)!r}, its arguments have "
                f"{getattr(recipe, field)!r}",
                where="Trainer",
            )
    at = next((s for s in range(recipe.epochs * steps) if not _agree(made, recipe, s, steps)), None)
    if at is not None:
        raise ConfigError(f"the learning rate of step {at + 1} is not that of the arguments", where="Trainer")
    return recipe


def _agree(a: Recipe, b: Recipe, step: int, steps: int) -> bool:
    first, second = a.rate(step / steps, steps), b.rate(step / steps, steps)
    return abs(first - second) <= 1e-9 * max(a.learning_rate, 1e-30)
