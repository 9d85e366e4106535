"""Common code of methods that change the weights once, without training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.seeds import derive, epoch_order
from expunge.core.trained import Trained
from expunge.data.batches import Batch
from expunge.data.records import Records
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.task import Task
from expunge.models.trainable import check_trainable
from expunge.training import batchnorm
from expunge.training.curvature import Vector, check_finite, parameters_of

#: What a method without training steps can do with the BatchNorm buffers.
BATCH_NORM = ("frozen", "re-estimate")


@dataclasses.dataclass(frozen=True)
class WeightEdit(Method):
    """Base class of methods that change the weights once.

    All derivatives are taken in evaluation mode, in float32, with the BatchNorm buffers of the original: the loss is
    then a sum over records.

    Attributes:
        batch_size: records in a batch; it affects speed and memory only.
        batch_norm: treatment of the BatchNorm buffers after the change: `frozen` or `re-estimate` (on D_r).
    """

    batch_size: int = 256
    batch_norm: str = "frozen"

    def __post_init__(self) -> None:
        where = getattr(type(self), "name", type(self).__name__)
        require_range(where, batch_size=(self.batch_size, self.batch_size >= 1))
        if self.batch_norm not in BATCH_NORM:
            hint = unknown_name_hint(self.batch_norm, BATCH_NORM)
            if self.batch_norm in batchnorm.MODES:
                hint = f"the method takes no training step, so the buffers cannot follow its batches: {BATCH_NORM}"
            raise MethodError(
                f"batch_norm = {self.batch_norm!r} is not possible", where=f"{where}.batch_norm", hint=hint
            )
        unused = self.unused_options({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        for field in dataclasses.fields(self):
            if field.name in unused and getattr(self, field.name) != field.default:
                raise MethodError(
                    f"{field.name} has no effect with {unused[field.name]}",
                    where=f"{where}.{field.name}",
                    hint="leave it out",
                )

    @classmethod
    def unused_options(cls, options: Mapping[str, Any]) -> dict[str, str]:
        """Return the options that others leave without effect, with the reason."""
        return {}

    @classmethod
    def drop_unused(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Method.drop_unused`."""
        unused = cls.unused_options(options)
        dropped = {name: value for name, value in options.items() if name in unused}
        return {name: value for name, value in options.items() if name not in unused}, dropped

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`."""
        for name, layer in model.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
                return (
                    f"{self.name} needs a loss that is a sum over records, but {name} normalises with the "
                    "statistics of the batch, also in evaluation mode",
                    "use track_running_stats=True, or another method",
                )
        return None

    # ---- helpers of `estimate_reads` and `unlearn`

    def re_estimation_reads(self, trained: Trained, sizes: Sizes) -> Reads:
        """The records that re-estimating the BatchNorm buffers reads."""
        re_estimates = self.batch_norm == "re-estimate" and batchnorm.find_layers(trained.model)
        return Reads(retain_forward=sizes.retain) if re_estimates else Reads()

    def check_task(self, task: Task) -> None:
        """Raise ModelError if the network cannot be trained, or MethodError if it is not supported."""
        records = task.context.records
        check_trainable(task.model, records.input_shape, records.classes)
        reason = self.unsupported_reason(task.model, records)
        if reason is not None:
            raise MethodError(reason[0], where=f"method {self.name}", hint=reason[1])

    def sample(self, task: Task, limit: int) -> NDArray[np.int64]:
        """Return the rows of at most `limit` records of D_r, drawn by hash and sorted; 0: all."""
        rows = task.retain_rows
        if limit == 0 or limit >= len(rows):
            return rows
        order = epoch_order(task.context.records.keys[rows], derive(task.seed, "curvature records"), 0)
        return np.sort(rows[order[:limit]])

    def read_counted(self, task: Task, rows: NDArray[np.int64], passes: int) -> Iterator[Batch]:
        """Yield batches, each of whose records counts `passes` times."""
        for x, y in task.read(rows, self.batch_size):
            task.trained_records += (passes - 1) * len(x)
            yield x, y

    def finish(self, task: Task, change: Vector) -> None:
        """Add the change to the weights, and treat the BatchNorm buffers.

        Raises:
            TrainingError: the change, or a weight after it, is not finite.
        """
        check_finite(change, f"the change of {self.name}")
        parameters = parameters_of(task.model)
        with torch.no_grad():
            for name, tensor in change.items():
                parameters[name].add_(tensor)
        check_finite(parameters, f"the weight after {self.name}")
        if self.batch_norm == "re-estimate":
            task.re_estimate(task.retain_rows, max(self.batch_size, batchnorm.ESTIMATION_BATCH))
