"""The section `training` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from expunge.core.files import read_text, refuse_pickle
from expunge.core.reading.strict_json import parse_json
from expunge.core.reading.training_arguments import read_training_arguments
from expunge.experiments.config.validation import OpenSection


def _read_arguments_file(path: str) -> dict[str, Any]:
    """The fields of a recipe from a JSON file of `transformers.TrainingArguments`."""
    refuse_pickle(path)
    read = read_training_arguments(parse_json(read_text(path), where=path), where=path)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in read.items()}


class TrainingConfig(OpenSection):
    """A recipe by name, or `from` a JSON file of `transformers.TrainingArguments`; other keys override fields of it.

    The file is read when the configuration is, so the fields, not the path, are part of the keys of stages.
    """

    recipe: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "from" not in values:
            return values
        if "recipe" in values:
            raise ValueError("training has either `recipe` or `from`, not both")
        if not isinstance(values["from"], str):
            raise ValueError("training.from is the path of a JSON file of TrainingArguments")
        given = {key: value for key, value in values.items() if key != "from"}
        read = _read_arguments_file(values["from"])
        return {"recipe": "custom", **read, **given}

    @pydantic.model_validator(mode="after")
    def _reject_name(self) -> TrainingConfig:
        if "name" in self.extra_keys:
            raise ValueError("a recipe has no field 'name'; training.recipe names the recipe")
        return self
