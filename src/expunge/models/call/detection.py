"""Which output of a model holds the logits, found by running it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from expunge.core.errors import DataError, ModelError
from expunge.core.seeds import global_rng
from expunge.core.trained import clone_model
from expunge.data.fields import InputFields

from .adapter import unadapt
from .model_call import ModelCall, describe_outputs, name_outputs

#: The output that is meant if several have the shape of logits.
_LOGITS = "logits"


def detect_call(
    model: nn.Module, probe: torch.Tensor, classes: int, fields: InputFields | None = None, *, where: str = ""
) -> ModelCall:
    """Find how a model is called, by running a copy of it in evaluation mode.

    The model may return the logits themselves, an object with an attribute `logits` (`ModelOutput`), a mapping, or a
    tuple. The logits are the output `logits`, else the only one of shape `B x classes`.

    Args:
        model: the user's model; not modified.
        probe: a batch `B x ...` of packed records, of 2 or more: `expunge.models.call.make_probe`.
        classes: number of classes K.
        fields: the keyword arguments of the model; None: the batch is its positional argument.
        where: name of the model, for messages.

    Raises:
        ModelError: the model does not accept the batch, or no output, or several, have the shape of logits: the
            message names the outputs found.

    Example:
        >>> class Two(nn.Linear):
        ...     def forward(self, x):
        ...         return {"hidden": x, "scores": super().forward(x)}
        >>> detect_call(Two(4, 3), torch.zeros(2, 4), 3).output
        'scores'
    """
    where = where or type(model).__name__
    copied = clone_model(unadapt(model)).to(device="cpu", dtype=torch.float32).eval()
    output = run_call(copied, ModelCall(fields), probe, where)
    return ModelCall(fields, find_logits(output, len(probe), classes, where))


def run_call(model: nn.Module, call: ModelCall, probe: torch.Tensor, where: str) -> Any:
    """Call the user's own model with a batch, and return all that it returns.

    Raises:
        ModelError: it does not accept the batch.
    """
    try:
        positional, named = call.arguments(probe)
    except DataError as error:
        raise ModelError(error.what, where=where, hint=error.hint) from error
    check_arguments(model, named, where)
    try:
        with torch.no_grad(), global_rng(0, "detect call"):
            return model(*positional, **named)
    except (Exception, SystemExit, GeneratorExit) as error:
        shown = [f"shape {tuple(x.shape[1:])}{' int64' * (x.dtype == torch.int64)}" for x in positional]
        shown += [f"{n} {tuple(x.shape[1:])} {str(x.dtype).removeprefix('torch.')}" for n, x in named.items()]
        raise ModelError(
            f"the model does not accept records of {', '.join(shown)} ({type(error).__name__}: {error})",
            where=where,
            hint="integers stay integers: give float32 records to a model that takes floats"
            if probe.dtype == torch.int64
            else "give the records as the training gave them to the model: the same columns, size and order of axes",
        ) from error


def find_logits(output: Any, count: int, classes: int, where: str) -> str:
    """The name of the output that holds the logits (`ModelCall.output`).

    Raises:
        ModelError: no output, or several, are `count x classes`.
    """
    named = name_outputs(output)
    fitting = [name for name, value in named.items() if _has_shape(value, (count, classes))]
    if _LOGITS in fitting:
        return _LOGITS
    if len(fitting) == 1:
        return fitting[0]
    found = describe_outputs(output)
    if fitting:
        raise ModelError(
            f"several outputs have the shape of logits, {count} x {classes}: {', '.join(fitting)}",
            where=where,
            hint=f"name the one: call={{'output': {fitting[0]!r}}}",
        )
    logits = named.get(_LOGITS, named.get(""))
    if isinstance(logits, torch.Tensor) and logits.dim() == 2 and len(logits) == count:
        raise ModelError(
            f"wrong number of classes: the model has {logits.shape[1]} outputs, the data {classes} classes",
            where=where,
            hint=f"build it with {classes} outputs, or use the data that it was trained on; labels are counted from 0, "
            "and classes without records have to be named, in the order of the logits: classes=[...]",
        )
    raise ModelError(
        f"no output has the shape of logits: for {count} records of {classes} classes the model returns {found}",
        where=where,
        hint="return one row of logits for each record: the tensor, or an output of that shape",
    )


def _has_shape(value: Any, shape: tuple[int, int]) -> bool:
    return isinstance(value, torch.Tensor) and tuple(value.shape) == shape


def check_arguments(model: nn.Module, named: dict[str, torch.Tensor], where: str) -> None:
    """Raise ModelError unless the forward of the model names every keyword argument, or its class takes any."""
    try:
        parameters = inspect.signature(type(model).forward).parameters
    except (TypeError, ValueError):
        return
    taken = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][1:]
    unknown = [name for name in named if name not in taken]
    if unknown:
        raise ModelError(
            f"the model takes no input {unknown[0]!r}; it takes {', '.join(taken[:12]) or 'none by name'}",
            where=where,
            hint="name the fields of the records as the arguments of the model, and leave out what it does not take",
        )
