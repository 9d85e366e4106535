"""A forward pass on a part of a batch that computes what it would compute for these records in the whole batch.

What couples the records of a batch are the statistics of BatchNorm and the positions of random draws. Inside
`SplitBatch`, BatchNorm normalises with the statistics of the whole batch, and dropout draws for the whole batch and
takes the rows of the part. `inspect_splitting` finds out whether that is all that couples the records of a network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from expunge.core.probe import make_probe
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model

#: Adds a tensor of all processes, in place.
Add = Callable[[torch.Tensor], None]
_DRAWING = {
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout, functional.scaled_dot_product_attention,
}  # fmt: skip


class SplitBatch(TorchFunctionMode):
    """Context in which a model is run on the records `start` to `stop` of a batch of `size` records.

    Args:
        add: sums a tensor over the processes, in place; None: BatchNorm normalises with its running statistics, so that
            the records of a batch do not meet (`inspect_splitting`).
        synchronise: whether BatchNorm uses the statistics of the whole batch, or those of the part.
    """

    def __init__(self, add: Add | None, *, synchronise: bool = True) -> None:
        super().__init__()
        self.add, self.synchronise = add, synchronise
        self.size, self.start, self.stop = 1, 0, 1

    def choose(self, size: int, start: int, stop: int) -> None:
        """Set the part for the next passes. An empty one is run on one record, which counts nowhere."""
        self.size, self.start, self.stop = size, start, stop

    @property
    def count(self) -> int:
        """Number of records of the part."""
        return self.stop - self.start

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is functional.batch_norm:
            return self._batch_norm(*args, **keywords)
        if func in _DRAWING:
            return self._draw(func, args, keywords)
        return func(*args, **keywords)

    def _batch_norm(
        self,
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if training and self.add is None:
            zeros = torch.zeros_like(input[0].flatten(1).mean(1) if input.dim() > 2 else input[0])
            running_mean = zeros if running_mean is None else running_mean
            running_var = torch.ones_like(zeros) if running_var is None else running_var
            training = False
        if not (training and self.synchronise):
            return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return normalise_batch(
            input, running_mean, running_var, weight, bias, momentum, eps, add=self.add, present=self.count > 0
        )

    def _draw(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """Call a function that draws for each entry, on the rows of the part within a batch of zeros."""
        rows = len(args[0]) if args and isinstance(args[0], torch.Tensor) and args[0].dim() else 0
        if not self.count or not rows or rows % self.count:
            found: torch.Tensor = func(*args, **keywords)
            return found
        each = rows // self.count  # rows of a record, if they are consecutive
        before, after = each * self.start, each * (self.size - self.stop)

        def widen(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.dim() or len(value) != rows:
                return value
            shape = value.shape[1:]
            return torch.cat([value.new_zeros(before, *shape), value, value.new_zeros(after, *shape)])

        if keywords.get("inplace"):
            keywords = {**keywords, "inplace": False}
        whole = func(*map(widen, args), **{name: widen(value) for name, value in keywords.items()})
        part: torch.Tensor = whole[before : before + rows]
        return part


def normalise_batch(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    momentum: float,
    eps: float,
    *,
    add: Add | None,
    present: bool = True,
) -> torch.Tensor:
    """BatchNorm in training mode with the statistics of the parts of a batch in all processes.

    As `torch.nn.functional.batch_norm` with `training=True` of the whole batch, for the rows of this part; torch's own
    synchronised layer runs on GPUs only. The gradients of `weight` and `bias` are those of the part: their sum over the
    processes is that of the whole batch.

    Args:
        x: `B x C x ...`, the part of this process.
        running_mean: `C` numbers that are updated in place, or None.
        running_var: `C` numbers that are updated in place, or None.
        weight: `C` numbers, or None.
        bias: `C` numbers, or None.
        momentum: of the running statistics.
        eps: added to the variance.
        add: sums a tensor over the processes, in place; None: there is one process.
        present: False: `x` is a stand-in for an empty part, and does not count.

    Raises:
        ValueError: the whole batch has one value for a channel.

    >>> x = torch.arange(6.0).view(3, 2)
    >>> found = normalise_batch(x, None, None, None, None, 0.1, 1e-5, add=None)
    >>> bool(torch.allclose(found, functional.batch_norm(x, None, None, training=True), atol=1e-6))
    True
    """
    result, mean, variance, count = _NormaliseBatch.apply(x, weight, bias, eps, add, present)
    if count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    normed: torch.Tensor = result
    return normed


class _NormaliseBatch(torch.autograd.Function):
    """y = weight * (x - m) / sqrt(v + eps) + bias, with the mean m and the variance v over all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        add: Add | None,
        present: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = _widen(x)
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        count = wide.new_full((1,), float(x.numel() // x.shape[1]))
        sums = _sum_over([wide.sum(dims), count], add, present)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        centred = wide - mean.view(shape)
        variance = _sum_over([centred.square().sum(dims)], add, present) / count
        scale = torch.rsqrt(variance + eps)
        factor = scale if weight is None else scale * weight
        result = centred.mul_(factor.view(shape))
        if bias is not None:
            result = result.add_(bias.view(shape))
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.add, ctx.present, ctx.has_bias = add, present, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        return result.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        wide, gradient = _widen(x), _widen(gradients[0])
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        centred = wide - mean.view(shape)
        total, product = gradient.sum(dims), (gradient * centred).sum(dims)
        for_weight = product * scale if weight is not None else None
        for_bias = total.clone() if ctx.has_bias else None
        sums = _sum_over([total, product], ctx.add, ctx.present) / count
        total, product = sums.chunk(2)
        factor = scale if weight is None else scale * weight
        # dx = factor * (dy - mean(dy) - (x - m) / (v + eps) * mean(dy (x - m)))
        found = centred.mul_((-scale.square() * product).view(shape)).add_(gradient).sub_(total.view(shape))
        found = found.mul_(factor.view(shape))
        if not ctx.present:
            found.zero_()  # the sums are those of the other processes
        return found.to(x.dtype), for_weight, for_bias, None, None, None


def _widen(x: torch.Tensor) -> torch.Tensor:
    """The values in float32, or as they are if they are wider."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _sum_over(parts: Sequence[torch.Tensor], add: Add | None, present: bool) -> torch.Tensor:
    """Join vectors and sum them over the processes; those of an empty part are zeros."""
    joined = torch.cat(list(parts))
    if not present:
        joined = torch.zeros_like(joined)
    if add is not None:
        add(joined)
    return joined


@dataclasses.dataclass(frozen=True)
class Splitting:
    """What is known about running a network on parts of batches.

    Attributes:
        obstacle: why the parts would not compute what the whole batch does, or empty.
        draws: whether a forward pass in training mode draws random numbers.
    """

    obstacle: str
    draws: bool

    __repr__ = repr_fields


@torch.no_grad()
def inspect_splitting(model: nn.Module, input_shape: Sequence[int]) -> Splitting:
    """Run a copy of a network in training mode on four random records, at once and two by two, with the same draws.

    A network that fails on them has no obstacle here: training reports what is wrong with it.

    Args:
        model: the network; it is not modified.
        input_shape: shape of one record.

    >>> inspect_splitting(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)), (2,))
    Splitting(obstacle='', draws=True)
    >>> class Centred(nn.Module):
    ...     def forward(self, x):
    ...         return x - x.mean(0)
    >>> inspect_splitting(Centred(), (2,)).obstacle
    'its output for a record depends on the other records of the batch'
    """
    try:
        copied = clone_model(model).to("cpu").train()
        x = make_probe(model, input_shape, 4, torch_generator(0, "split batch"), normal=True)

        def run(start: int, stop: int) -> tuple[torch.Tensor, bool]:
            state = clone_model(copied)
            mode = SplitBatch(None)
            mode.choose(len(x), start, stop)
            with global_rng(0, "split batch"), mode:
                before = torch.get_rng_state()
                logits = state(x[start:stop])
                return logits.double(), not torch.equal(before, torch.get_rng_state())

        whole, draws = run(0, 4)
        parts = torch.cat([run(0, 2)[0], run(2, 4)[0]])
    except Exception:
        return Splitting("", True)
    if parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())):
        return Splitting("", draws)
    found = "its output for a record depends on the other records of the batch"
    return Splitting(found + (", or on random draws that cannot be split" if draws else ""), draws)
