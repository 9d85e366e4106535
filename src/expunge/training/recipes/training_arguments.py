"""A recipe from the `TrainingArguments` of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from expunge.core.errors import ConfigError
from expunge.core.files import read_text, refuse_pickle
from expunge.core.reading.strict_json import parse_json
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
    if isinstance(source, (str, Path)):
        refuse_pickle(source)
        values: object = parse_json(read_text(source), where=source)
        return Recipe(name=name, **read_training_arguments(values, where=str(source), records=records))
    values = source
    if not isinstance(source, Mapping):
        if not hasattr(source, "to_dict"):
            kind = type(source).__name__
            raise ConfigError(f"training arguments are a file, a mapping or an object of transformers, not {kind}")
        # numbers of devices are properties, which the mapping lacks
        devices = {name: getattr(source, name, None) for name in ("n_gpu", "world_size")}
        values = {**devices, **source.to_dict()}
    return Recipe(name=name, **read_training_arguments(values, records=records))
