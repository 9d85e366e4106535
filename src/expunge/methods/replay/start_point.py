"""The checkpoint that Rewind and MSA start from: an early one of the original's run, or its initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from expunge.core.early_checkpoints import MOMENTS, hash_records, unpack_checkpoints
from expunge.core.trained import Trained
from expunge.methods.task import Task
from expunge.training.checkpoint import load_state

from .prefix import EarlyRuns, check_prefix, plan_early_runs


@dataclasses.dataclass(frozen=True, eq=False)
class StartPoint:
    """A checkpoint of the original's run.

    Attributes:
        epoch: k; 0: the initial weights.
        tensors: all tensors after k epochs, by plain name; empty for k = 0.
        recorded: whether it was read from the state `early_checkpoints`.
        clean: whether it has seen none of the records of the request.
        runs: the runs of the first epochs, for the network and its seeds.
        moments: moments of the optimiser after k epochs, if the recipe keeps them; empty: not known.
    """

    epoch: int
    tensors: Mapping[str, torch.Tensor]
    recorded: bool
    clean: bool
    runs: EarlyRuns
    moments: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def build(self) -> nn.Module:
        """Build the network with these tensors, and with the normalisation statistics of D_r."""
        model = self.runs.retraining.build_start()
        load_state(model, {name: t for name, t in self.tensors.items() if not name.startswith("normalise.")})
        return model

    @property
    def line(self) -> str:
        """What the history of the model says about the checkpoint."""
        if not self.epoch:
            return "the initial weights"
        origin = "stored" if self.recorded else "recomputed"
        return f"the checkpoint of epoch {self.epoch} ({origin}; it has {'not ' if self.clean else ''}seen them)"


def check_start_point(epochs: float, prefix: str, trained: Trained, where: str) -> None:
    """Raise MethodError or ConfigError if there is no such checkpoint and it cannot be recomputed."""
    check_prefix(prefix, epochs or 1, trained, where)


def find_start_point(task: Task, trained: Trained, *, prefix: str, epochs: float, where: str) -> StartPoint:
    """Read the checkpoint, or run the first epochs on D again, which is counted in the task.

    Args:
        task: the request.
        trained: the original without patches.
        prefix: `recorded` or `recomputed` (`prefix.PREFIXES`).
        epochs: k, a number of epochs, or a fraction of them; 0: the initial weights.
        where: the method or option, for errors.
    """
    runs = plan_early_runs(task, trained, prefix=prefix, epochs=epochs or 1, where=where)
    if not epochs:
        return StartPoint(0, {}, False, True, runs)
    stored = runs.read(clean=True) if prefix == "recorded" else None
    if stored is None:
        run = runs.run_with()
        moments = run.moments.get(runs.epochs, {})
        return StartPoint(runs.epochs, run.snapshots[runs.epochs], False, False, runs, moments)
    seen = trained.provenance.checkpoints[str(runs.epochs)]["records"]
    kept = unpack_checkpoints(trained.state.get(MOMENTS, {})).get(runs.epochs, {})
    return StartPoint(runs.epochs, stored, True, seen == hash_records(task.split.retain), runs, kept)
