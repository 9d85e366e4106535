"""Gradients of single records, layer by layer: a registry of rules, by the class of the layer.

A rule computes the gradients of a layer's parameters for every record of a batch from the layer's input `a` and from d,
the derivative of C numbers per record with respect to the layer's output. Layers without a rule are differentiated by
`torch.func` (`expunge.training.curvature.records`).

Shapes: B records, C columns. `a` is `B x ...`, d is `B x C x ...`, and the gradient of a parameter is `B x C x shape`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional

#: Largest number of gradient entries that exist at once where only their squares are summed: 8 MiB in float32.
ENTRIES = 2**21
#: Parameters below this size are summed over rows at once.
FEW = 2**10

T = TypeVar("T", bound="type[LayerRule]")


class LayerRule(abc.ABC):
    """The rule of one class of layers; `register_layer_rule` registers it."""

    def supports(self, layer: nn.Module, a: torch.Tensor) -> bool:
        """Whether the rule holds for the options of a layer and the shape of its input."""
        return True

    @abc.abstractmethod
    def gradients(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the gradient of each parameter, by attribute, as `B x C x shape`."""

    def factors(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the Kronecker factors A and G (`expunge.training.curvature.kronecker`), summed over records, or None.

        A is `groups x I x I`, with a last input of 1 if there is a bias; G is `groups x O x O`.
        """
        return None

    def count_entries(self, layer: nn.Module, d: torch.Tensor) -> int:
        """Return how many entries `gradients` makes for each record: those of the largest tensor."""
        return d.shape[1] * max((p.numel() for p in layer.parameters(recurse=False)), default=1)

    def squares(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sum over columns and records of the squared gradients, by attribute.

        The records are taken in parts, so that at most `ENTRIES` entries (or one record's) exist at once.
        """
        size = max(self.count_entries(layer, d), 1)
        step = max(1, ENTRIES // size)
        total: dict[str, torch.Tensor] = {}
        for start in range(0, len(a), step):
            part = slice(start, start + step)
            for name, gradient in self.gradients(layer, a[part], d[part]).items():
                if name not in total:
                    total[name] = torch.zeros_like(gradient[0, 0])
                add_squares(total[name], gradient)
        return total


def add_squares(total: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add the squares of `B x C x shape` gradients, summed over B and C, to a total in place."""
    rows = gradient.flatten(0, 1)
    if total.numel() < FEW:
        total += rows.square().sum(0)
    else:
        for row in rows:  # six times as fast as a sum over rows, which are far apart in memory
            total.addcmul_(row, row)


#: The rules by class of layer; subclasses do not count, because their forward pass can differ.
_RULES: dict[type[nn.Module], LayerRule] = {}


def register_layer_rule(*layers: type[nn.Module]) -> Callable[[T], T]:
    """Return a class decorator that registers a rule for classes of layers.

    Args:
        layers: the classes. Only a layer of exactly this class follows the rule.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import LayerRule, find_rule, register_layer_rule
    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = nn.Parameter(torch.ones(()))
    ...
    ...     def forward(self, x):
    ...         return self.factor * x
    >>> @register_layer_rule(Scale)
    ... class ScaleRule(LayerRule):
    ...     def gradients(self, layer, a, d):
    ...         return {"factor": (d * a[:, None]).flatten(2).sum(2)}
    >>> type(find_rule(Scale(), torch.ones(2, 3))).__name__
    'ScaleRule'
    """

    def add(rule: T) -> T:
        for layer in layers:
            _RULES[layer] = rule()
        return rule

    return add


def find_rule(layer: nn.Module, a: torch.Tensor | None = None) -> LayerRule | None:
    """Return the rule of a layer, or None.

    Args:
        layer: the layer.
        a: its input; None: only the class of the layer is looked at.

    >>> from torch import nn
    >>> from expunge.training.curvature import find_rule
    >>> find_rule(nn.Linear(2, 3)) is not None, find_rule(nn.Bilinear(2, 2, 3)) is None
    (True, True)
    """
    rule = _RULES.get(type(layer))
    return rule if rule is None or a is None or rule.supports(layer, a) else None


def second_moments(patches: torch.Tensor, d: torch.Tensor, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sum_bl a a^T and sum_bcl g g^T / L, for patches `B x groups x I x L` and d `B x C x groups x O x L`."""
    if bias:
        patches = torch.cat([patches, torch.ones_like(patches[:, :, :1])], 2)
    a = torch.einsum("bgil,bgjl->gij", patches, patches)
    return a, torch.einsum("bcgol,bcgpl->gop", d, d) / patches.shape[-1]


def has_bias(layer: nn.Module) -> bool:
    """Whether a layer has a bias."""
    return getattr(layer, "bias", None) is not None


@register_layer_rule(nn.Linear)
class LinearRule(LayerRule):
    """W a + b, also on inputs `B x T x I`, where a record's gradient is the sum over T."""

    def supports(self, layer: nn.Module, a: torch.Tensor) -> bool:
        """See `LayerRule.supports`."""
        return a.dim() >= 2

    def gradients(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `LayerRule.gradients`."""
        a, d = a.flatten(1, -2) if a.dim() > 2 else a[:, None], d.flatten(2, -2) if d.dim() > 3 else d[:, :, None]
        found = {"weight": torch.einsum("bcto,bti->bcoi", d, a)}
        return {**found, "bias": d.sum(2)} if has_bias(layer) else found

    def factors(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `LayerRule.factors`."""
        a, d = a.flatten(1, -2) if a.dim() > 2 else a[:, None], d.flatten(2, -2) if d.dim() > 3 else d[:, :, None]
        return second_moments(a.mT[:, None], d.mT[:, :, None], bias=has_bias(layer))

    def squares(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `LayerRule.squares`: the gradient of a record is an outer product, so only its factors are squared."""
        if a.dim() > 2:
            return super().squares(layer, a, d)
        squared = d.square().sum(1)
        found = {"weight": squared.T @ a.square()}
        return {**found, "bias": squared.sum(0)} if has_bias(layer) else found


class ConvolutionRule(LayerRule):
    """Convolutions over one or two dimensions, with groups, strides, dilation and padding.

    The gradient of a record is the product of d with the patches of its input, extracted once for all columns.
    """

    dims: int

    def count_entries(self, layer: nn.Module, d: torch.Tensor) -> int:
        """See `LayerRule.count_entries`; the patches count too."""
        weight = cast(torch.Tensor, layer.weight)
        patches = cast(Any, layer).groups * weight[0].numel() * d[0, 0, 0].numel()
        return max(super().count_entries(layer, d), patches)

    def supports(self, layer: nn.Module, a: torch.Tensor) -> bool:
        """See `LayerRule.supports`."""
        return a.dim() == self.dims + 2

    def gradients(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `LayerRule.gradients`."""
        weight, groups = cast(torch.Tensor, layer.weight), cast(Any, layer).groups
        records, columns, outputs = d.shape[:3]
        patches = extract_patches(layer, a)  # B x groups x (I / groups) k k x L
        d = d.flatten(3)
        by_group = d.view(records, columns, groups, outputs // groups, -1).transpose(1, 2)
        rows = by_group.reshape(records * groups, columns * (outputs // groups), -1)
        product = torch.bmm(rows, patches.flatten(0, 1).transpose(1, 2))
        shaped = product.view(records, groups, columns, outputs // groups, -1).transpose(1, 2)
        found = {"weight": shaped.reshape(records, columns, *weight.shape)}
        return {**found, "bias": d.sum(3)} if has_bias(layer) else found

    def factors(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `LayerRule.factors`."""
        groups = cast(Any, layer).groups
        by_group = d.flatten(3).view(*d.shape[:2], groups, d.shape[2] // groups, -1)
        return second_moments(extract_patches(layer, a), by_group, bias=has_bias(layer))


@register_layer_rule(nn.Conv2d)
class Convolution2dRule(ConvolutionRule):
    """`nn.Conv2d`."""

    dims = 2


@register_layer_rule(nn.Conv1d)
class Convolution1dRule(ConvolutionRule):
    """`nn.Conv1d`, as a convolution over a height of 1."""

    dims = 1


def extract_patches(layer: nn.Module, a: torch.Tensor) -> torch.Tensor:
    """Return the patches of the input that each output pixel of a convolution sees.

    Args:
        layer: an `nn.Conv1d` or `nn.Conv2d`.
        a: its input, `B x I x L` or `B x I x H x W`.

    Returns:
        `B x groups x (I / groups * kernel size) x output pixels`.
    """
    convolution = cast(Any, layer)
    kernel, stride, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
    if convolution.padding == "same":
        totals = [spread * (size - 1) for spread, size in zip(dilation, kernel, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    elif convolution.padding == "valid":
        pads = [(0, 0)] * len(kernel)
    else:
        pads = [(size, size) for size in convolution.padding]
    mode = {"zeros": "constant"}.get(convolution.padding_mode, convolution.padding_mode)
    if any(size for pair in pads for size in pair):
        a = functional.pad(a, [size for pair in reversed(pads) for size in pair], mode=mode)
    places = [
        (length - spread * (size - 1) - 1) // step + 1
        for length, size, step, spread in zip(a.shape[2:], kernel, stride, dilation, strict=True)
    ]
    # one view, one copy: ten times as fast as `functional.unfold` on a CPU
    inner, outer = a.stride()[:2], a.stride()[2:]
    strides = [
        *inner,
        *map(math.prod, zip(dilation, outer, strict=True)),
        *map(math.prod, zip(stride, outer, strict=True)),
    ]
    view = a.as_strided([*a.shape[:2], *kernel, *places], strides, a.storage_offset())
    return view.reshape(len(a), convolution.groups, -1, math.prod(places))


@register_layer_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormRule(LayerRule):
    """gamma * (a - running mean) / sqrt(running variance + eps) + beta, in evaluation mode."""

    def supports(self, layer: nn.Module, a: torch.Tensor) -> bool:
        """See `LayerRule.supports`."""
        return not layer.training and getattr(layer, "running_mean", None) is not None and a.dim() >= 2

    def gradients(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `LayerRule.gradients`."""
        norm = cast(Any, layer)
        a = a.reshape(*a.shape[:2], -1)
        scale = (norm.running_var + norm.eps).rsqrt()
        normalised = (a - norm.running_mean[:, None]) * scale[:, None]
        d = d.reshape(*d.shape[:3], -1)
        weight = [(column * normalised).sum(2) for column in d.unbind(1)]  # one column at a time stays in the cache
        return {"weight": torch.stack(weight, 1), "bias": d.sum(3)}


@register_layer_rule(nn.Embedding)
class EmbeddingRule(LayerRule):
    """Rows of a table, looked up by integers; the gradient of a record is the sum of d over the places of each row."""

    def supports(self, layer: nn.Module, a: torch.Tensor) -> bool:
        """See `LayerRule.supports`."""
        return cast(Any, layer).max_norm is None and not cast(Any, layer).scale_grad_by_freq

    def gradients(self, layer: nn.Module, a: torch.Tensor, d: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `LayerRule.gradients`."""
        table = cast(Any, layer)
        records, columns = d.shape[:2]
        index = a.reshape(records, -1)
        d = d.reshape(records, columns, index.shape[1], -1)
        if table.padding_idx is not None:
            d = d.masked_fill((index == table.padding_idx)[:, None, :, None], 0.0)
        found = d.new_zeros(records, columns, table.num_embeddings, d.shape[-1])
        found.scatter_add_(2, index[:, None, :, None].expand_as(d), d)
        return {"weight": found}
