"""The stages of a run, what each is told, and the code that each reaches.

A stage is a function `run(job, out)` in a file of its own: it writes its results into the directory `out` and returns
the hash of what later stages depend on. Nothing here imports the stages.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError

if TYPE_CHECKING:
    from expunge.training.progress import Progress


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage is told.

    Attributes:
        config: the configuration that the stage's key covers.
        inputs: directories of earlier stages, by name (`data`, `trained`, `outcome`, `reference`, ...).
        outputs: output hashes of those.
        data_dir: where the source's files lie, or None.
        work: a directory for checkpoints; it outlives an interruption and is removed after success.
        progress: told of progress, or None.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    outputs: Mapping[str, str]
    data_dir: str | None
    work: Path
    progress: Progress | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: short; also the directory of its entries.
        version: raised when results change in a way that the source does not show.
        module: where `run` is.
        reads_data: whether it wants the source's records; the source's fingerprint is then part of the key.
    """

    name: str
    version: int
    module: str
    reads_data: bool = False

    def run(self, job: Job, out: Path) -> str:
        """Run the stage; returns its output hash."""
        function: Callable[[Job, Path], str] = importlib.import_module(self.module).run
        return function(job, out)


STAGES: dict[str, Stage] = {
    "data": Stage("data", 1, "expunge.experiments.stages.data", reads_data=True),
    "train": Stage("train", 1, "expunge.experiments.stages.train"),
    "adopt": Stage("adopt", 1, "expunge.experiments.stages.adopt"),
    "memorise": Stage("memorise", 1, "expunge.experiments.stages.memorise"),
    "prune": Stage("prune", 1, "expunge.experiments.stages.prune"),
    "forget": Stage("forget", 1, "expunge.experiments.stages.forget"),
    "sides": Stage("sides", 1, "expunge.experiments.stages.shadow_models"),
    "leakage": Stage("leakage", 1, "expunge.experiments.stages.leakage"),
    "score": Stage("score", 1, "expunge.experiments.stages.score"),
    "before": Stage("before", 1, "expunge.experiments.stages.score_original"),
}


def stage_table(name: str) -> dict[str, Stage]:
    """The table of stages that `package.module:attribute` names (another one can stand in for tests and extensions)."""
    module, _, attribute = name.partition(":")
    try:
        table: dict[str, Stage] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no table of stages can be read ({error})", where=name) from error
    return table
