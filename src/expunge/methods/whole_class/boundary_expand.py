"""Boundary Expand: the forget set is moved to an extra class, whose output is dropped afterwards."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import ClassVar

import torch
from torch import nn

from expunge.core.errors import MethodError, RequestError
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.seeds import torch_generator
from expunge.data.corrections.values import replace_labels
from expunge.data.records import Records
from expunge.methods.finetuning import FineTuning
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.training.transfer.features import find_output_layer

from .request import require_class

_NAME = "Boundary Expand"
_HINT = "use Boundary Shrink, which does not change the network"


@register_method(
    "Boundary Expand",
    guarantee="empirical",
    citation="[Chen2023], Boundary Expanding",
    space={"epochs": [2, 5, 10, 20], "learning_rate": (1e-5, 0.01, "log")},
)
@dataclasses.dataclass(frozen=True)
class BoundaryExpand(FineTuning):
    """Add an output for an extra class K + 1, fine-tune on D_f with that class as the label, then drop the output.

    The row of the new output is drawn from U(-1/sqrt(d), 1/sqrt(d)) for d inputs; mean_{D_f} CE(f_theta(x), K + 1) is
    minimised, and the other rows are kept. It is for whole classes: the extra class stands for the forgotten one. D_r
    is not read, unless BatchNorm buffers are re-estimated. It needs D_f, and a network whose logits are the output of a
    linear layer. Cost: a pass over D_f in each epoch.

    A port in the code of SalUn does not drop the output: its models have one class too many. The learning rate is ours.
    """

    learning_rate: float = 1e-4
    trains_on: ClassVar[str | None] = "forget"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop != "never":
            raise MethodError(
                "it does not ascend, and the forget error of the widened network is not that of the result",
                where=f"{_NAME}.stop",
                hint="leave it out",
            )

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            RequestError: the request is not for a whole class, or the logits are not the output of a linear layer.
        """
        require_class(request, _NAME, "an extra class takes the place of the forgotten one")
        if find_output_layer(model, records) is None:
            raise RequestError(
                "the logits are not the output of a linear layer, so no output can be added", where=_NAME, hint=_HINT
            )

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        records, mask = task.context.records, task.mask
        path = find_output_layer(task.model, records)
        assert path is not None
        layer = task.model.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        labels = records.labels.copy()
        labels[task.forget_rows] = records.classes
        wider = replace_labels(records, labels, class_names=(*records.class_names, _new_name(records)))
        wide = widen(layer, torch_generator(task.seed, "row"))
        _replace(task.model, path, wide)
        task.mask = None if mask is None else _widen_mask(mask, plain_name(path))
        self.fine_tune(task, on="forget", records=wider)
        with torch.no_grad():
            layer.weight.copy_(wide.weight[:-1])
            if layer.bias is not None:
                layer.bias.copy_(wide.bias[:-1])
        _replace(task.model, path, layer)
        task.mask = mask


def widen(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """A linear layer with one more output, whose weights and bias are drawn from U(-1/sqrt(d), 1/sqrt(d)).

    Args:
        layer: `d -> K`; it is copied.
        generator: of the new row.
    """
    bound = 1 / math.sqrt(layer.in_features)
    wide = copy.deepcopy(layer)
    wide.out_features = layer.out_features + 1
    rows = {"weight": layer.weight[:1]} | ({} if layer.bias is None else {"bias": layer.bias[:1]})
    for name, first in rows.items():
        drawn = torch.empty(first.shape).uniform_(-bound, bound, generator=generator).to(first)
        old = getattr(layer, name)
        setattr(wide, name, nn.Parameter(torch.cat([old.detach(), drawn]), requires_grad=old.requires_grad))
    return wide


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _widen_mask(mask: Mask, path: str) -> Mask:
    """The mask with a row of kept weights for the new output."""
    kept = dict(mask.kept)
    for name in (f"{path}.weight", f"{path}.bias"):
        if name in kept:
            kept[name] = torch.cat([kept[name], torch.ones_like(kept[name][:1])])
    return Mask(kept, mask.provenance)


def _new_name(records: Records) -> str:
    name = "forgotten"
    while name in records.class_names:
        name += "'"
    return name
