"""Physical removal of pruned channels: smaller tensors with the same outputs, checked before anything is returned.

The slots of `expunge.sparsity.channels` give the unit of every index of every tensor. Two backends remove units:
`slots` applies one `index_select` per tensor of the traced network (and sets new widths for the zeros of option-A
shortcuts); `torch-pruning` uses Torch-Pruning, if it is installed. Torch-Pruning couples whole layers and is wrong on
option-A shortcuts, so its result must have the same tensors and the same outputs.
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

from expunge.core.errors import MaskError, unknown_name_hint, with_article
from expunge.core.mask import Mask
from expunge.core.probe import make_probe
from expunge.core.seeds import torch_generator
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model, plain_state
from expunge.sparsity.channels.groups import Channels, find_channels, find_kept_units
from expunge.sparsity.channels.layers import LAYER_TYPES, prunable_weights

from . import torch_pruning

TOLERANCE = 1e-5
#: What removes channels.
BACKENDS: dict[str, str] = {
    "slots": "channel by channel, along the traced graph; supports option-A shortcuts",
    "torch-pruning": "Torch-Pruning's dependency graph, if it is installed; the network keeps its class",
}


@dataclasses.dataclass(frozen=True, eq=False)
class SmallModel:
    """A physically smaller network and the measurements of its check.

    Attributes:
        model: the network with smaller tensors, in evaluation mode: an `fx.GraphModule` from the backend `slots`, of
            its own class from `torch-pruning`.
        kept: tensor name and dimension (`name:dim`) to the indices that were kept.
        mask: the mask by which the network was cut.
        difference: largest absolute difference of logits from the masked network over the checked inputs.
        scale: largest absolute logit of the masked network on the same inputs.
        parameters_before, parameters_after: numbers of parameters.
    """

    model: nn.Module
    kept: Mapping[str, torch.Tensor]
    mask: Mask
    difference: float
    scale: float
    parameters_before: int
    parameters_after: int

    __repr__ = repr_fields


def shrink(
    model: nn.Module,
    mask: Mask,
    input_shape: Sequence[int],
    *,
    inputs: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    backend: str = "slots",
) -> SmallModel:
    """Remove every coupled channel that the mask prunes, and check the result against the masked network.

    Args:
        model: the network; not modified.
        mask: a mask whose pruned channels are whole units (granularity `filter`); single pruned weights stay as zeros.
        input_shape: shape of one record.
        inputs: `N x ...` records to check on, besides 64 random ones.
        tolerance: largest difference allowed, relative to the largest logit where that exceeds 1.
        seed: seeds the random inputs.
        backend: a key of `BACKENDS`.

    Raises:
        MaskError: the mask does not fit, no whole unit is pruned, or the outputs differ (nothing is returned then). The
            backend is unknown, not installed, or removes other channels.

    Example:
        >>> from torch import nn
        >>> from expunge.sparsity import Rule, make_mask
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> mask, _ = make_mask(model, Rule("filter-l2", "filter", sparsity=0.75), input_shape=(1, 8, 8))
        >>> small = shrink(model, mask, (1, 8, 8))
        >>> small.parameters_before, small.parameters_after, small.difference < 1e-5
        (2970, 750, True)
    """
    if backend not in BACKENDS:
        raise MaskError(
            f"unknown backend {backend!r}", where="shrink.backend", hint=unknown_name_hint(str(backend), BACKENDS)
        )
    masked = clone_model(model).cpu().eval()
    mask.apply_(masked)
    channels = find_channels(masked, input_shape)
    kept_units = find_kept_units(channels, dict(mask.kept))
    if kept_units.all():
        raise MaskError(
            "no coupled channel is masked as a whole, so no tensor can be made smaller",
            where=f"granularity {mask.provenance.granularity}",
            hint="prune with granularity=filter; masks of single weights are exported dense, with zeros",
        )
    kept = find_kept_indices(channels, kept_units)
    if backend == "slots":
        small = cut_tensors(channels.graph, kept, find_padding_widths(channels, kept_units))
    else:
        small = _shrink_with_torch_pruning(masked, channels, kept_units, kept, input_shape)
    generator = torch_generator(seed, "physical removal")
    checks = [make_probe(masked, input_shape, 32, generator, normal=normal) for normal in (True, False)]
    checks += [] if inputs is None else [inputs.cpu().float()]
    difference, scale = compare_outputs(masked, small, checks)
    if not difference <= tolerance * max(1.0, scale):
        raise MaskError(
            f"the smaller network differs from the masked one by {difference:.3g} (logits up to {scale:.3g}); "
            "it is not returned",
            where=type(model).__name__,
            hint="an operation of its forward is not followed correctly; export the masked network dense, with zeros",
        )
    return SmallModel(small, kept, mask, difference, scale, _count_parameters(masked), _count_parameters(small))


def _shrink_with_torch_pruning(
    masked: nn.Module,
    channels: Channels,
    kept_units: NDArray[np.bool_],
    kept: Mapping[str, torch.Tensor],
    input_shape: Sequence[int],
) -> nn.Module:
    """Cut the network with Torch-Pruning; raise MaskError if a tensor differs from what the kept indices select."""
    layers = prunable_weights(channels.graph, tuple(LAYER_TYPES))
    removed: dict[str, list[int]] = {}
    for (weight, axis), units in channels.axes.items():
        rows = np.flatnonzero((units >= 0) & ~kept_units[np.maximum(units, 0)])
        if axis == 0 and len(rows) and weight in layers:
            removed[weight] = rows.tolist()
    small = torch_pruning.remove_channels(clone_model(masked), removed, input_shape)
    found, expected = plain_state(small), dict(plain_state(masked))
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        expected[name] = expected[name].index_select(int(dim), index)
    wrong = [name for name, tensor in expected.items() if name not in found or not torch.equal(found[name], tensor)]
    if wrong:
        raise MaskError(
            "Torch-Pruning leaves other values than those of the kept channels",
            where=wrong[0],
            hint="use backend=slots",
        )
    return small


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def find_kept_indices(channels: Channels, kept_units: NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """Return the kept indices by tensor name and dimension (`name:dim`), for each axis that loses any."""
    kept = {}
    for (name, dim), axis in channels.axes.items():
        keeps = (axis < 0) | kept_units[np.maximum(axis, 0)]
        if not keeps.all():
            kept[f"{name}:{dim}"] = torch.from_numpy(np.flatnonzero(keeps))
    return kept


def find_padding_widths(channels: Channels, kept_units: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    """Return, by graph node of a channel padding, the numbers of its left and right zeros that are kept."""

    def count(units: NDArray[np.int64]) -> int:
        return int(((units < 0) | kept_units[np.maximum(units, 0)]).sum())

    return {name: (count(left), count(right)) for name, (left, right) in channels.padding.items()}


def cut_tensors(graph: nn.Module, kept: Mapping[str, torch.Tensor], widths: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Cut the tensors of a traced network in place, and update the widths that modules and paddings record.

    Args:
        graph: a traced network, or an adapted model, that the caller's code does not use; it is changed and returned.
        kept: result of `find_kept_indices`.
        widths: result of `find_padding_widths`.
    """
    modules = dict(graph.named_modules())
    cut: dict[str, Any] = {}
    for key, index in kept.items():
        name, _, dim = key.rpartition(":")
        owner, _, part = name.rpartition(".")
        module: Any = modules[owner]
        cut[owner] = module
        old = getattr(module, part)
        new = old.detach().index_select(int(dim), index).contiguous()
        if isinstance(old, nn.Parameter):
            setattr(module, part, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(module, part, new)
    for module in cut.values():  # other layers keep their sizes: a grouped convolution may look like a depthwise one
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.out_channels = module.weight.shape[0]
            if module.groups > 1:  # only depthwise convolutions are cut (`propagation`)
                module.groups = module.weight.shape[0]
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.num_features = module.weight.shape[0]
    if isinstance(graph, fx.GraphModule):
        for node in graph.graph.nodes:
            if node.name in widths:
                sizes = list(cast("Sequence[int]", node.args[1]))
                sizes[-2:] = widths[node.name]
                node.args = (node.args[0], tuple(sizes), *node.args[2:])
        graph.recompile()
    return graph.eval()


@torch.no_grad()
def compare_outputs(masked: nn.Module, small: nn.Module, checks: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Compare the logits of two networks.

    Args:
        masked: the masked network.
        small: the smaller network.
        checks: batches of inputs.

    Returns:
        The largest absolute difference over all inputs, and the largest absolute logit of the masked network.

    Raises:
        MaskError: the masked network returns something other than a tensor of finite numbers, or the smaller one cannot
            be run.
    """
    difference, scale = 0.0, 0.0
    for x in checks:
        expected = masked(x)
        if not isinstance(expected, torch.Tensor):
            raise MaskError(
                f"the network returns {with_article(type(expected).__name__)}, but outputs are compared as one tensor "
                "of logits",
                where=type(masked).__name__,
                hint="wrap it in a module that returns its logits; or export the masked network dense, with zeros",
            )
        try:
            got = small(x)
        except RuntimeError as error:
            raise MaskError(
                f"the smaller network cannot be run ({error}); it is not returned",
                where=type(masked).__name__,
                hint="its forward may reshape to a fixed size; export the masked network dense, with zeros",
            ) from error
        if not bool(expected.isfinite().all()):
            raise MaskError(
                "the masked network returns numbers that are not finite, so its outputs cannot be compared",
                where=type(masked).__name__,
                hint="its weights hold infinities or NaN; export it dense, with zeros",
            )
        largest = float((expected - got).abs().max())
        difference = math.inf if math.isnan(largest) else max(difference, largest)
        scale = max(scale, float(expected.abs().max()))
    return difference, scale
