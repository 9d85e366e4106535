"""The table of stages, and the inputs that a stage gets.

A stage is a function `run(inputs, out)` in its own file: it writes its results into the directory `out` and returns the
hash of what later stages depend on. Nothing here imports the stages.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields

if TYPE_CHECKING:
    from expunge.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """The inputs of a stage.

    Attributes:
        config: the part of the configuration that the stage's key covers.
        directories: directories of earlier stages, by input name (`data`, `trained`, `outcome`, `reference`, ...).
        output_hashes: output hashes of those stages, by input name.
        data_dir: directory of the data source's files, or None.
        work_dir: a directory for checkpoints; it is kept after an interruption and removed after success.
        progress: callback for progress, or None.
    """

    config: Mapping[str, Any]
    directories: Mapping[str, Path]
    output_hashes: Mapping[str, str]
    data_dir: str | None
    work_dir: Path
    progress: Progress | None = None

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Stage:
    """One entry of the table of stages.

    Attributes:
        name: also the directory of its entries in the store.
        version: raised when results change although the source code does not.
        module: the module that defines `run`.
        reads_data: whether it reads the data source; the source's fingerprint is then part of the key.
    """

    name: str
    version: int
    module: str
    reads_data: bool = False

    def run(self, inputs: StageInputs, out: Path) -> str:
        """Run the stage; returns its output hash."""
        function: Callable[[StageInputs, Path], str] = importlib.import_module(self.module).run
        return function(inputs, out)


STAGES: dict[str, Stage] = {
    "data": Stage("data", 1, "expunge.experiments.stages.data", reads_data=True),
    "train": Stage("train", 1, "expunge.experiments.stages.train"),
    "adopt": Stage("adopt", 1, "expunge.experiments.stages.adopt"),
    "memorise": Stage("memorise", 1, "expunge.experiments.stages.memorise"),
    "prune": Stage("prune", 1, "expunge.experiments.stages.prune"),
    "forget": Stage("forget", 1, "expunge.experiments.stages.forget"),
    "shadow_models": Stage("shadow_models", 1, "expunge.experiments.stages.shadow_models"),
    "leakage": Stage("leakage", 1, "expunge.experiments.stages.leakage"),
    "score": Stage("score", 1, "expunge.experiments.stages.score"),
    "score_original": Stage("score_original", 1, "expunge.experiments.stages.score_original"),
}


def load_stage_table(name: str) -> dict[str, Stage]:
    """Import the table of stages `package.module:attribute`; tests and extensions may use another one than `STAGES`.

    Raises:
        ConfigError: the module or the attribute does not exist.
    """
    module, _, attribute = name.partition(":")
    try:
        table: dict[str, Stage] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the table of stages cannot be imported ({error})", where=name) from error
    return table
