"""A recipe from the `TrainingArguments` of `transformers`."""

from __future__ import annotations

from expunge.core.reading.training_arguments import read_training_arguments

from .recipe import Recipe


def from_training_arguments(source: object, *, records: int | None = None, name: str = "transformers") -> Recipe:
    """Return the recipe that repeats a training by `transformers.Trainer`.

    The learning rate follows the steps as there, and biases and normalisation have no weight decay (docs/recipes.md).

    Args:
        source: a JSON file (`Path(...).write_text(args.to_json_string())`), a mapping, or a `TrainingArguments`.
        records: number of training records; with it, `max_steps`, accumulated gradients and a dropped last batch are
            accepted where they change nothing.
        name: name of the recipe.

    Raises:
        ConfigError: an argument cannot be repeated, or is unknown; the message names it.
        FileError: the file is missing, is a pickle, or is not JSON.

    >>> from expunge.training.recipes import from_training_arguments
    >>> recipe = from_training_arguments({"num_train_epochs": 2, "learning_rate": 1e-3, "weight_decay": 0.01})
    >>> recipe.optimiser, recipe.lr_schedule, recipe.clip_norm, recipe.rate(1.0, steps=10)
    ('adamw', 'linear', 1.0, 0.0005)
    """
    return Recipe(name=name, **read_training_arguments(source, records=records))
