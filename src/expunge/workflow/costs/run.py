"""The table of methods for a configuration: the checks are those of the run itself."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from expunge.core.show import repr_fields
from expunge.experiments.config.registry_checks import make_checked_method
from expunge.experiments.config.run_config import MethodConfig, RunConfig
from expunge.experiments.objects.training import make_recipe, make_runtime
from expunge.workflow.inputs import check_method, expect_original, get_network, read_declared_stand_in

from .probe import Probe, measure_speed
from .table import MethodCost, estimate_methods

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.methods import Method
    from expunge.sparsity import Pruning


@dataclasses.dataclass(frozen=True)
class RunParts:
    """The objects of a configuration.

    Attributes:
        records, split, request: the data.
        model: the network that would be trained, or the imported model.
        pruning: the section `sparsity`, or None.
    """

    records: Records
    split: Split
    request: ForgetRequest
    model: nn.Module | Trained
    pruning: Pruning | None

    __repr__ = repr_fields


def estimate_run(
    config: RunConfig, parts: RunParts, *, probe: bool = True
) -> tuple[tuple[MethodCost, ...], Probe | None]:
    """Decide for every registered method whether a run with it would begin, and estimate its cost.

    The configured method has its configured options, the others their defaults.

    Args:
        config: the configuration.
        parts: its objects.
        probe: time a few batches.
    """
    from expunge.methods import method_names
    from expunge.methods.reads import Sizes

    after = parts.request.apply(parts.split)
    stand_in = read_declared_stand_in(config, parts.records, parts.split, parts.request)
    retain = len(after.retain) if stand_in is None else len(stand_in.record_ids)
    sizes = Sizes(retain, len(parts.request.record_ids), len(after.validation), parts.records.classes)
    trained = expect_original(config, parts.pruning, parts.model, parts.records, parts.split)
    timed = measure_run(config, parts) if probe else None

    def check(method: Method) -> None:
        check_method(
            _with_method(config, method.name), method, parts.pruning, parts.model, parts.records, parts.split,
            parts.request,
        )  # fmt: skip

    makers = [(name, functools.partial(_make, config, name)) for name in method_names()]
    return estimate_methods(makers, check, trained, sizes, timed, stand_in=stand_in is not None), timed


def _with_method(config: RunConfig, name: str) -> RunConfig:
    if config.method is not None and config.method.name.casefold() == name.casefold():
        return config
    return config.model_copy(update={"method": MethodConfig(name=name)})


def _make(config: RunConfig, name: str) -> Method:
    return make_checked_method(_with_method(config, name))


def measure_run(config: RunConfig, parts: RunParts) -> Probe:
    """Time batches of records that are there: those of D_f, of validation and of test."""
    ids = np.concatenate([parts.request.record_ids, parts.split.validation, parts.split.test])
    size = make_recipe(config.training.model_dump(mode="json")).batch_size
    runtime = make_runtime(config.runtime.model_dump(mode="json"))
    rows = parts.records.rows(ids[: max(2, size)])
    return measure_speed(get_network(parts.model), parts.records, rows, runtime=runtime, batch_size=size)
