"""Whether a network can be trained here: one step on a copy, in training mode, before anything is trained."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import ModelError, with_article
from expunge.core.probe import make_probe
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.trained import clone_model, plain_state

_RECORDS = 4


def check_trainable(model: nn.Module, input_shape: Sequence[int], classes: int) -> None:
    """Raise ModelError unless a copy of the network can be trained, copied again, and restored from its state.

    A copy is run in training mode on 4 random records, forward and backward. The forward must return one row of
    `classes` logits for each record, with a gradient for some parameter. After it, the copy must still be copyable, its
    state must have the tensors that it had before, and another copy with this state must have the same outputs.

    Args:
        model: the network; not modified. On the CPU; if it only runs on a CUDA device, that is tried too.
        input_shape: shape of one record.
        classes: number of classes.

    Raises:
        ModelError: see above; the message says which step failed.

    Example:
        >>> check_trainable(nn.Linear(4, 3), (4,), 3)
        >>> check_trainable(nn.Linear(4, 3).requires_grad_(False), (4,), 3)
        Traceback (most recent call last):
            ...
        expunge.core.errors.ModelError: Linear: no parameter is trainable (requires_grad is off)
          hint: ...
    """
    where = type(model).__name__
    copied = clone_model(model).to(device="cpu", dtype=torch.float32)
    if not any(p.requires_grad for p in copied.parameters()):
        raise ModelError(
            "no parameter is trainable (requires_grad is off)",
            where=where,
            hint="turn requires_grad on for the parameters that may change",
        )
    generator = torch_generator(0, "trainable")
    x = make_probe(model, input_shape, _RECORDS, generator)
    y = torch.arange(_RECORDS) % classes
    try:
        _take_step(copied, x, y, where)
    except ModelError:
        if not torch.cuda.is_available():
            raise
        copied = clone_model(model).to(device="cuda", dtype=torch.float32)
        _take_step(copied, x.cuda(), y.cuda(), where)
        copied = copied.cpu()
    _check_state(model, copied, x, where)


def _take_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, where: str) -> None:
    """Run forward and backward in training mode, and raise ModelError with the step that fails."""
    model.train()
    with global_rng(0, "trainable"), torch.enable_grad():
        try:
            output = model(x)
        except (Exception, SystemExit, GeneratorExit) as error:
            raise ModelError(
                f"the network cannot be run in training mode ({_first_line(error)})",
                where=where,
                hint="it runs in evaluation mode; SyncBatchNorm, for example, needs a CUDA device: use BatchNorm",
            ) from error
        if not isinstance(output, torch.Tensor) or output.dim() != 2 or len(output) != len(x):
            is_tensor = isinstance(output, torch.Tensor)
            found = (
                f"a tensor of shape {tuple(output.shape)}" if is_tensor else f"{with_article(type(output).__name__)}"
            )
            raise ModelError(
                f"in training mode the network returns {found} for {len(x)} records, not one row of logits for each",
                where=where,
                hint="return the logits only; auxiliary outputs are not used",
            )
        if not output.requires_grad:
            raise ModelError(
                "the output has no gradient with respect to any trainable parameter",
                where=where,
                hint="its forward may detach, round or take an argmax, or run within torch.no_grad",
            )
        try:
            functional.cross_entropy(output.float(), y).backward()
        except Exception as error:
            raise ModelError(f"the network cannot be differentiated ({_first_line(error)})", where=where) from error


def _check_state(model: nn.Module, after: nn.Module, x: torch.Tensor, where: str) -> None:
    """Raise ModelError unless the trained copy can be copied, and restored from its state alone."""
    again = clone_model(after).eval()
    before, state = plain_state(model), plain_state(again)
    differing = sorted(
        {*before, *state} - {name for name in before if name in state and _same_kind(before, state, name)}
    )
    if differing:
        raise ModelError(
            "a forward pass in training mode adds, removes or reshapes this tensor",
            where=differing[0],
            hint="create all parameters and buffers with their shapes in __init__",
        )
    restored = clone_model(model).to(device="cpu", dtype=torch.float32).eval()
    target = plain_state(restored)
    with torch.no_grad():
        for name, tensor in state.items():
            target[name].copy_(tensor)
        outputs = []
        for network in (again, restored):
            with global_rng(0, "trainable"):
                try:
                    outputs.append(network(x))
                except Exception:  # evaluation mode is tested elsewhere, with the shape of the records
                    return
    first, second = outputs
    if isinstance(first, torch.Tensor) and not torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ModelError(
            "the outputs depend on tensors that are not in the state of the network, so no file can store them",
            where=where,
            hint="make running statistics and other tensors buffers (register_buffer with persistent=True)",
        )


def _same_kind(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str) -> bool:
    return one[name].shape == other[name].shape


def _first_line(error: BaseException) -> str:
    """Type and first line of an error, with the line of custom code that raised it."""
    text = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:300]
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    return f"{text}, {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else text
