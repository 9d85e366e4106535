"""Findings of `check` about device, precision and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.experiments.config.registry_checks import find_smallest_batch
from expunge.experiments.objects.training import make_runtime

if TYPE_CHECKING:
    from torch import nn

    from expunge.data import Records
    from expunge.experiments.config.run_config import RunConfig
    from expunge.methods import Method
    from expunge.models import Finding
    from expunge.training import Recipe


def inspect_runtime(
    config: RunConfig, recipe: Recipe | None, method: Method | None, model: nn.Module | None, records: Records | None
) -> list[Finding]:
    """Say where a run computes; with several processes, whether they can share its batches.

    Args:
        config: the configuration of the run.
        recipe: of the training; None: unknown.
        method: of the run; None: unknown, or there is none.
        model: the network; None: unknown.
        records: the records; None: unknown.

    Raises:
        ConfigError: there are more processes than records in a batch, or the section is wrong.
        TrainingError: the processes cannot share a batch of the network.
    """
    from expunge.models import Finding
    from expunge.training.processes.team import check_split

    runtime = make_runtime(config.runtime.model_dump(mode="json"))
    text = f"{runtime.torch_device}, {runtime.precision}{', compiled' * runtime.compile}"
    if runtime.devices == 1:
        return [Finding("ok", "runtime", text)]
    found = [Finding("ok", "runtime", f"{text}, {runtime.devices} processes share every batch")]
    if method is not None and method.one_process:
        found.append(Finding("ok", "runtime", f"{method.name} runs on one process: {method.one_process}"))
    if model is not None and records is not None and recipe is not None:
        check_split(model, records.input_shape, find_smallest_batch(recipe, method), runtime)
    if not runtime.sync_batchnorm:
        message = "each process normalises with the BatchNorm statistics of its part of a batch: the result differs"
        found.append(Finding("warning", "runtime", message, "sync_batchnorm=true gives that of one process"))
    return found
