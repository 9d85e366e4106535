"""From masked channels to smaller tensors: the same outputs, checked before anything is returned.

The slots of `channels` say which index of which tensor belongs to which unit. Two engines remove by them: `slots`, one
`index_select` a tensor of the traced network (and new widths for the zeros of option-A shortcuts), and Torch-Pruning,
where it is installed (`torch_pruning`). Torch-Pruning couples whole layers, and goes wrong on option-A shortcuts: it is
held to the same tensors and the same outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from expunge.core.errors import MaskError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.seeds import torch_generator
from expunge.core.trained import clone_model, plain_state
from expunge.sparsity.channels.groups import Channels, find_channels, unit_alive
from expunge.sparsity.channels.layers import KINDS, prunable

from . import torch_pruning

TOLERANCE = 1e-5
#: What removes channels.
ENGINES: dict[str, str] = {
    "slots": "channel by channel, along the traced graph; option-A shortcuts too",
    "torch-pruning": "Torch-Pruning's dependency graph, where it is installed; the network keeps its class",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Small:
    """A physically smaller network and how it came about.

    Attributes:
        model: the network with smaller tensors, in evaluation mode: traced by the engine `slots`, of its own class by
            `torch-pruning`.
        kept: tensor name and dimension (`name:dim`) to the indices that were kept.
        mask: the mask that the network was cut by.
        difference: largest absolute difference of logits from the masked network over the checked inputs.
        scale: largest absolute logit of the masked network there.
        parameters_before, parameters_after: numbers of parameters.
    """

    model: nn.Module
    kept: Mapping[str, torch.Tensor]
    mask: Mask
    difference: float
    scale: float
    parameters_before: int
    parameters_after: int


def shrink(
    model: nn.Module,
    mask: Mask,
    input_shape: Sequence[int],
    *,
    inputs: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    engine: str = "slots",
) -> Small:
    """Remove every coupled channel that the mask kills, and check the result against the masked network.

    Args:
        model: the network; not modified.
        mask: a mask whose dead channels are whole units (granularity `filter`); single dead weights stay as zeros.
        input_shape: shape of one record.
        inputs: `N x ...` records to check on, besides 64 random ones.
        tolerance: largest difference allowed, relative to the largest logit where that exceeds 1.
        seed: seeds the random inputs.
        engine: a key of `ENGINES`.

    Raises:
        MaskError: the mask does not fit, no whole unit is dead, or the outputs differ: nothing is returned then. The
            engine is unknown, not installed, or removes other channels.
    """
    if engine not in ENGINES:
        raise MaskError(
            f"unknown engine {engine!r}", where="shrink.engine", hint=unknown_name_hint(str(engine), ENGINES)
        )
    masked = clone_model(model).cpu().eval()
    mask.apply_(masked)
    channels = find_channels(masked, input_shape)
    alive = unit_alive(channels, dict(mask.alive))
    if alive.all():
        raise MaskError(
            "no coupled channel is masked as a whole, so no tensor can be made smaller",
            where=f"granularity {mask.provenance.granularity}",
            hint="prune with granularity=filter; masks of single weights are exported dense, with zeros",
        )
    kept = kept_indices(channels, alive)
    if engine == "slots":
        small = cut(channels.graph, kept, zero_widths(channels, alive))
    else:
        small = _by_torch_pruning(masked, channels, alive, kept, input_shape)
    generator = torch_generator(seed, "physical removal")
    checks = [torch.randn(32, *input_shape, generator=generator), torch.rand(32, *input_shape, generator=generator)]
    checks += [] if inputs is None else [inputs.cpu().float()]
    difference, scale = compare(masked, small, checks)
    if not difference <= tolerance * max(1.0, scale):
        raise MaskError(
            f"the smaller network differs from the masked one by {difference:.3g} (logits up to {scale:.3g}); "
            "it is not returned",
            where=type(model).__name__,
            hint="an operation of its forward is not followed correctly; export the masked network dense, with zeros",
        )
    return Small(small, kept, mask, difference, scale, _count(masked), _count(small))


def _by_torch_pruning(
    masked: nn.Module,
    channels: Channels,
    alive: NDArray[np.bool_],
    kept: Mapping[str, torch.Tensor],
    input_shape: Sequence[int],
) -> nn.Module:
    """The network as Torch-Pruning cuts it, or MaskError where a tensor is not what the slots leave of it."""
    layers = prunable(channels.graph, tuple(KINDS))
    gone: dict[str, list[int]] = {}
    for (weight, axis), units in channels.axes.items():
        rows = np.flatnonzero((units >= 0) & ~alive[np.maximum(units, 0)])
        if axis == 0 and len(rows) and weight in layers:
            gone[weight] = rows.tolist()
    small = torch_pruning.remove(clone_model(masked), gone, input_shape)
    found, expected = plain_state(small), dict(plain_state(masked))
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        expected[name] = expected[name].index_select(int(dim), index)
    wrong = [name for name, tensor in expected.items() if name not in found or not torch.equal(found[name], tensor)]
    if wrong:
        raise MaskError(
            "Torch-Pruning leaves other values than the channels that stay",
            where=wrong[0],
            hint="remove with engine=slots",
        )
    return small


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def kept_indices(channels: Channels, alive: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Tensor name and dimension (`name:dim`) to the indices that stay, where any goes."""
    kept = {}
    for (name, dim), axis in channels.axes.items():
        stays = (axis < 0) | alive[np.maximum(axis, 0)]
        if not stays.all():
            kept[f"{name}:{dim}"] = torch.from_numpy(np.flatnonzero(stays))
    return kept


def zero_widths(channels: Channels, alive: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    """Graph node of a channel padding to the widths of its left and right zeros that stay."""

    def left(units: NDArray[np.int64]) -> int:
        return int(((units < 0) | alive[np.maximum(units, 0)]).sum())

    return {name: (left(before), left(after)) for name, (before, after) in channels.zeros.items()}


def cut(graph: fx.GraphModule, kept: Mapping[str, torch.Tensor], widths: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Cut the tensors of a traced network (which it owns) and mend the widths that modules and paddings record."""
    modules = dict(graph.named_modules())
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        owner, _, part = name.rpartition(".")
        module: Any = modules[owner]
        old = getattr(module, part)
        new = old.detach().index_select(int(dim), index).contiguous()
        if isinstance(old, nn.Parameter):
            setattr(module, part, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, part, new)
    for module in modules.values():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.out_channels = module.weight.shape[0]
            if module.groups > 1 and module.weight.shape[1] == 1:
                module.groups = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.num_features = module.weight.shape[0]
    for node in graph.graph.nodes:
        if node.name in widths:
            sizes = list(cast("Sequence[int]", node.args[1]))
            sizes[-2:] = widths[node.name]
            node.args = (node.args[0], tuple(sizes), *node.args[2:])
    graph.recompile()
    return graph.eval()


@torch.no_grad()
def compare(masked: nn.Module, small: nn.Module, checks: Sequence[torch.Tensor]) -> tuple[float, float]:
    """The largest absolute difference of two networks' logits over the inputs, and the first's largest absolute logit.

    Raises:
        MaskError: the first returns something else than a tensor of finite numbers, or the second cannot be run.
    """
    difference, scale = 0.0, 0.0
    for x in checks:
        expected = masked(x)
        if not isinstance(expected, torch.Tensor):
            raise MaskError(
                f"the network returns a {type(expected).__name__}, and outputs are compared as one tensor of logits",
                where=type(masked).__name__,
                hint="wrap it in a module that returns its logits; or export the masked network dense, with zeros",
            )
        try:
            got = small(x)
        except RuntimeError as error:
            raise MaskError(
                f"the smaller network cannot be run ({error}); it is not returned",
                where=type(masked).__name__,
                hint="its forward reshapes to a fixed size, perhaps; export the masked network dense, with zeros",
            ) from error
        if not bool(expected.isfinite().all()):
            raise MaskError(
                "the masked network returns numbers that are not finite, so nothing can be compared with it",
                where=type(masked).__name__,
                hint="its weights hold infinities or NaN; export it dense, with zeros",
            )
        apart = float((expected - got).abs().max())
        difference = math.inf if math.isnan(apart) else max(difference, apart)
        scale = max(scale, float(expected.abs().max()))
    return difference, scale
