"""Whether a network can be trained stacked: one stacked step of two members against the same steps one by one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.seeds import global_rng
from expunge.core.trained import plain_state
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training.checkpoint import load_state
from expunge.training.runtime import Runtime

from .member import Stacked

if TYPE_CHECKING:
    from expunge.models import Architecture

_RECORDS = 4
#: Rounding of float32 sums in another order is far below these tolerances; a wrong gradient is above.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-4


def split_state(model: nn.Module, state: Stacked) -> tuple[Stacked, Stacked]:
    """Split a state with plain names into trainable parameters, and frozen parameters with the buffers."""
    names = {name for name, parameter in plain_parameters(model).items() if parameter.requires_grad}
    return {k: v for k, v in state.items() if k in names}, {k: v for k, v in state.items() if k not in names}


def stacked_losses(
    model: nn.Module, trainable: Stacked, fixed: Stacked, x: torch.Tensor, y: torch.Tensor, *, smoothing: float = 0.0
) -> torch.Tensor:
    """Compute the `M` mean losses of all members on their batches `M x B x ...`, by `vmap`.

    Args:
        model: the network; its own tensors are not read.
        trainable: parameters, `M x ...`.
        fixed: frozen parameters and buffers, `M x ...`; buffers change in place.
        x: inputs.
        y: labels, `M x B`.
        smoothing: label smoothing of the loss.
    """
    # states and masks have plain names; the call needs the model's names, which may have prefixes (`module.`)
    names = {plain_name(name): name for name in model.state_dict()}

    def member_loss(parameters: Stacked, others: Stacked, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        state = {names[name]: tensor for name, tensor in {**parameters, **others}.items()}
        logits = torch.func.functional_call(model, state, (x,))
        return functional.cross_entropy(logits.float(), y, label_smoothing=smoothing)

    return torch.vmap(member_loss)(trainable, fixed, x, y)


@torch.no_grad()
def clip_members(gradients: Sequence[torch.Tensor], clip_norm: float) -> None:
    """Clip the gradient of each member to a 2-norm, in place, as `torch.nn.utils.clip_grad_norm_` does for one model.

    Args:
        gradients: of all parameters, `M x ...`.
        clip_norm: the norm that a member's gradient is scaled down to if it is longer.
    """
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def find_stacking_obstacle(
    records: Records, architecture: Architecture, rows: NDArray[np.int64], runtime: Runtime
) -> str | None:
    """Return why the members of an ensemble cannot be trained stacked, or None.

    Two members with different weights and batches take a step in training mode, stacked and one by one. Obstacles are
    random draws (the members would not draw the numbers that `fit` draws), operations that `vmap` does not support,
    and other losses, gradients or buffers.

    Args:
        records: the records.
        architecture: the network of all members.
        rows: some row numbers of training records.
        runtime: device and precision.
    """
    count = max(1, min(_RECORDS, len(rows) // 2))
    chosen = np.resize(np.asarray(rows), 2 * count)
    device = runtime.torch_device
    ((x, y),) = list(Batches(records, chosen, batch_size=2 * count, device=device).in_order())
    batches = (x.reshape(2, count, *x.shape[1:]), y.reshape(2, count))
    models = [architecture.build(seed).to(device) for seed in (0, 1)]
    states = [{k: v.detach().clone() for k, v in plain_state(model).items()} for model in models]
    singles = []
    for model, inputs, labels in zip(models, *batches, strict=True):
        model.train()
        if count == 1:
            model.eval()
        with global_rng(0, "stackable"):
            before = _draw_states(device)
            loss = functional.cross_entropy(model(inputs).float(), labels)
            after = _draw_states(device)
        if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return "the network draws random numbers in training (dropout)"
        loss.backward()
        grads = {name: p.grad for name, p in plain_parameters(model).items() if p.grad is not None}
        singles.append((loss.detach(), grads, {k: v.detach().clone() for k, v in plain_state(model).items()}))
    template = models[0]
    load_state(template, states[0])
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    trainable, fixed = split_state(template, stacked)
    trainable = {name: tensor.requires_grad_() for name, tensor in trainable.items()}
    try:
        with global_rng(0, "stackable"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = stacked_losses(template, trainable, fixed, *batches)
            losses.sum().backward()
    except Exception as error:  # whatever vmap does not support, in torch or in the network
        return (
            f"vmap does not support the network ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
        )
    for member, (loss, grads, state) in enumerate(singles):
        pairs = [("loss", losses[member], loss)]
        for name, tensor in trainable.items():
            own = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            pairs.append((f"gradient of {name}", own[member], grads.get(name, torch.zeros_like(own[member]))))
        pairs += [(name, tensor[member], state[name]) for name, tensor in fixed.items()]
        for name, found, expected in pairs:
            if not _are_close(found.detach(), expected.detach()):
                return f"stacked training gives other results than training one by one ({name})"
    return None


def _are_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = max(1.0, float(expected.double().abs().max())) if expected.numel() else 1.0
    return torch.allclose(found.double(), expected.double(), rtol=_RELATIVE, atol=_ABSOLUTE * scale, equal_nan=True)


def _draw_states(device: torch.device) -> list[torch.Tensor]:
    """The states of the global generators that the network may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
