"""The operations of a list in numpy, in float32, float64 or fractions.

An affine operation has the maps `forward` (W x + b) and `backward` (W^T c); with `absolute`, `forward` is |W| x + |b|.
Arrays may contain `fractions.Fraction` objects, so only sums, products, comparisons and rearrangements are used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import BadCertificate

Array = NDArray[Any]

ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("weight",), ("bias",)),
    "conv": (("weight",), ("bias",)),
    "batch_norm": (("mean", "variance"), ("weight", "bias")),
    "add_constant": (("value",), ()),
    "multiply_constant": (("value",), ()),
    "divide_constant": (("value",), ()),
}
#: Roundings allowed for one BatchNorm result, in any order of evaluation.
BATCH_NORM_ROUNDINGS = 10


class Step:
    """One operation with its tensors, in one number type.

    Args:
        entry: the operation of network.json.
        shapes: shapes of the inputs, without the batch axis.
        tensors: all tensors of the list, in that number type.
        absolute: take absolute values of every coefficient and constant.
        constants: keep constants.
    """

    def __init__(
        self,
        entry: Mapping[str, Any],
        shapes: list[tuple[int, ...]],
        tensors: Mapping[str, Array],
        *,
        absolute: bool = False,
        constants: bool = True,
    ) -> None:
        self.op = str(entry["op"])
        self.shape = tuple(int(n) for n in entry["shape"])
        self.attributes: Mapping[str, Any] = entry["attributes"]
        self.shapes, self.absolute, self.constants = shapes, absolute, constants
        needed, optional = ROLES.get(self.op, ((), ()))
        names = entry["tensors"]
        if set(names) - set(needed) - set(optional) or set(needed) - set(names):
            raise BadCertificate(f"operation {self.op} names the wrong tensors")
        self.tensors = {role: abs(tensors[name]) if absolute else tensors[name] for role, name in names.items()}
        if self.op == "divide_constant" and not (self.tensors["value"] != 0).all():
            raise BadCertificate("a constant to divide by is zero")
        if self.op == "batch_norm":
            self.tensors = self._batch_norm({role: tensors[name] for role, name in names.items()})

    def _batch_norm(self, raw: dict[str, Array]) -> dict[str, Array]:
        channel = (1, -1, *(1,) * (len(self.shape) - 1))
        spread = raw["variance"].astype(np.float64) + float(self.attributes["epsilon"])
        if not (spread > 0).all():
            raise BadCertificate("BatchNorm has a variance that is not positive")
        scale = 1 / np.sqrt(spread)
        if "weight" in raw:
            scale = scale * raw["weight"].astype(np.float64)
        dtype = raw["mean"].dtype
        if dtype.kind == "O":
            from .rational import to_fractions

            scale = to_fractions(scale)
        terms = {"scale": scale.astype(dtype), "mean": raw["mean"]}
        if self.absolute:
            terms |= {
                "inverse": 1 / np.sqrt(spread),
                "weight": raw.get("weight", np.ones_like(scale)),
                "spread": spread,
            }
        if "bias" in raw:
            terms["bias"] = raw["bias"]
        return {k: (abs(v) if self.absolute else v).reshape(channel) for k, v in terms.items()}

    def count_roundings(self) -> int:
        """Return the number of roundings from the inputs to one result."""
        if self.op in ("linear", "conv"):
            return math.prod(self.tensors["weight"].shape[1:]) + 2
        if self.op == "batch_norm":
            return BATCH_NORM_ROUNDINGS
        if self.op == "average_pool":
            return math.prod(self.attributes["kernel"]) + 2
        if self.op == "mean":
            return math.prod(self.shapes[0][axis] for axis in self.attributes["axes"]) + 2
        return 2 if self.op in ("add_constant", "multiply_constant", "divide_constant", "add") else 0

    # forward -----------------------------------------------------------------------------------------------------

    def forward(self, inputs: list[Array]) -> Array:
        """Return the result for a batch, `B x shape`."""
        result = self._forward(inputs)
        if result.shape[1:] != self.shape:
            raise BadCertificate(f"operation {self.op} yields {result.shape[1:]}, not the recorded {self.shape}")
        if len(result) != len(inputs[0]):
            raise BadCertificate(f"operation {self.op} mixes the records of a batch")
        return result

    def _forward(self, inputs: list[Array]) -> Array:
        x, op = inputs[0], self.op
        if op == "linear":
            y = x @ self.tensors["weight"].T
            return y + self.tensors["bias"] if self.constants and "bias" in self.tensors else y
        if op == "conv":
            return self._conv(x)
        if op == "batch_norm":
            shift = self.tensors["mean"]
            y = x if not self.constants else (x + shift if self.absolute else x - shift)
            y = y * self.tensors["scale"]
            return y + self.tensors["bias"] if self.constants and "bias" in self.tensors else y
        if op == "add_constant":
            if not self.constants:
                return x
            return x - self.tensors["value"] if self._sign() < 0 else x + self.tensors["value"]
        if op == "multiply_constant":
            return x * self.tensors["value"]
        if op == "divide_constant":
            return x / self.tensors["value"]
        if op == "add":
            return x - inputs[1] if self._sign() < 0 else x + inputs[1]
        if op == "concat":
            return np.concatenate(inputs, axis=int(self.attributes["axis"]) + 1)
        return self._arrange(x)

    def _sign(self) -> int:
        if self.attributes["sign"] not in (1, -1):
            raise BadCertificate("a sum has a sign other than 1 or -1")
        return 1 if self.absolute else int(self.attributes["sign"])

    def _arrange(self, x: Array) -> Array:
        op = self.op
        if op == "reshape":
            return x.reshape(x.shape[0], *self.shape)
        if op == "permute":
            return x.transpose(0, *(int(a) + 1 for a in self.attributes["axes"]))
        if op == "slice":
            return x[self._slice()]
        if op == "pad":
            value = float(self.attributes["value"]) if self.constants else 0.0
            y = _zeros((x.shape[0], *self.shape), x.dtype)
            value = abs(value) if self.absolute else value
            y[...] = Fraction(value) if x.dtype == object else value
            y[self._result_index(x.shape)] = x[self._input_index(x.shape)]
            return y
        if op == "mean":
            axes = tuple(int(a) + 1 for a in self.attributes["axes"])
            total = x.sum(axis=axes, keepdims=bool(self.attributes["keep"]))
            return total * _reciprocal(math.prod(x.shape[a] for a in axes), x.dtype)
        if op == "average_pool":
            y = _zeros((x.shape[0], *self.shape), x.dtype)
            padded = self._add_padding(x, 0)
            for _, window in self._windows(padded):
                y = y + padded[window]
            return y * self._inverse_counts(x.dtype)
        raise BadCertificate(f"unknown operation {op!r}")

    # backward ----------------------------------------------------------------------------------------------------

    def backward(self, c: Array) -> list[Array]:
        """Return W^T c for each input, `B x shape of the input`."""
        op = self.op
        if op == "linear":
            return [c @ self.tensors["weight"]]
        if op == "conv":
            return [self._conv_back(c)]
        if op == "batch_norm":
            return [c * self.tensors["scale"]]
        if op == "add_constant":
            return [c]
        if op == "multiply_constant":
            return [c * self.tensors["value"]]
        if op == "divide_constant":
            return [c / self.tensors["value"]]
        if op == "add":
            return [c, -c if self._sign() < 0 else c]
        if op == "concat":
            axis = int(self.attributes["axis"]) + 1
            ends = list(itertools.accumulate(shape[axis - 1] for shape in self.shapes))
            return list(np.split(c, ends[:-1], axis=axis))
        return [self._arrange_back(c)]

    def _arrange_back(self, c: Array) -> Array:
        shape = (c.shape[0], *self.shapes[0])
        op = self.op
        if op == "reshape":
            return c.reshape(shape)
        if op == "permute":
            axes = [0, *(int(a) + 1 for a in self.attributes["axes"])]
            return c.transpose(np.argsort(axes))
        if op in ("slice", "pad"):
            y = _zeros(shape, c.dtype)
            if op == "slice":
                y[self._slice()] = c
            else:
                y[self._input_index(shape)] = c[self._result_index(shape)]
            return y
        if op == "mean":
            axes = [int(a) + 1 for a in self.attributes["axes"]]
            wide = tuple(1 if i in axes else n for i, n in enumerate(shape))
            return np.broadcast_to(c.reshape(wide) * _reciprocal(math.prod(shape[a] for a in axes), c.dtype), shape)
        if op == "average_pool":
            c = c * self._inverse_counts(c.dtype)
            y = self._add_padding(_zeros(shape, c.dtype), 0)
            for _, window in self._windows(y):
                y[window] = y[window] + c
            return self._remove_padding(y)
        raise BadCertificate(f"unknown operation {op!r}")

    # windows -----------------------------------------------------------------------------------------------------

    def _get_axes(self, name: str, default: int) -> list[int]:
        return [int(v) for v in self.attributes.get(name, [default] * (len(self.shape) - 1))]

    def _get_kernel(self) -> list[int]:
        return (
            list(self.tensors["weight"].shape[2:]) if self.op == "conv" else [int(v) for v in self.attributes["kernel"]]
        )

    def _add_padding(self, x: Array, value: Any) -> Array:
        """Return the padded plane, enlarged where the last windows reach beyond it (ceil mode)."""
        pads = [(0, 0), (0, 0)]
        for i, kernel in enumerate(self._get_kernel()):
            low = self._get_axes("padding", 0)[i]
            reach = (
                (self.shape[1 + i] - 1) * self._get_axes("stride", 1)[i]
                + self._get_axes("dilation", 1)[i] * (kernel - 1)
                + 1
            )
            pads.append((low, max(0, reach - low - x.shape[2 + i])))
        return np.pad(x, pads, constant_values=value)

    def _remove_padding(self, y: Array) -> Array:
        low = self._get_axes("padding", 0)
        plane = tuple(slice(low[i], low[i] + n) for i, n in enumerate(self.shapes[0][1:]))
        whole: Any = (slice(None), slice(None), *plane)
        return y[whole]

    def _windows(self, padded: Array) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield kernel positions in row-major order, with the slices of the padded plane that they read."""
        stride, dilation = self._get_axes("stride", 1), self._get_axes("dilation", 1)
        if min(*stride, *dilation, *self._get_kernel()) < 1:
            raise BadCertificate(f"operation {self.op} has a stride, dilation or kernel below 1")
        for place in itertools.product(*(range(k) for k in self._get_kernel())):
            plane = []
            for i, offset in enumerate(place):
                start = offset * dilation[i]
                plane.append(slice(start, start + (self.shape[1 + i] - 1) * stride[i] + 1, stride[i]))
            yield place, (slice(None), slice(None), *plane)

    def _conv(self, x: Array) -> Array:
        weight, groups = self.tensors["weight"], int(self.attributes["groups"])
        padded = self._add_padding(x, 0)
        if any(padded.shape[2 + i] > x.shape[2 + i] + 2 * self._get_axes("padding", 0)[i] for i in range(x.ndim - 2)):
            raise BadCertificate("a convolution reaches beyond its padding")
        parts = []
        inner, outer = weight.shape[1], weight.shape[0] // groups
        for g in range(groups):
            y = _zeros((x.shape[0], outer, *self.shape[1:]), x.dtype)
            for place, window in self._windows(padded):
                part = padded[window][:, g * inner : (g + 1) * inner]
                at: Any = (slice(g * outer, (g + 1) * outer), slice(None), *place)
                kernel = weight[at]
                y = y + np.moveaxis(np.tensordot(kernel, part, axes=(1, 1)), 0, 1)
            parts.append(y)
        y = np.concatenate(parts, axis=1)
        if self.constants and "bias" in self.tensors:
            y = y + self.tensors["bias"].reshape(1, -1, *(1,) * (y.ndim - 2))
        return y

    def _conv_back(self, c: Array) -> Array:
        weight, groups = self.tensors["weight"], int(self.attributes["groups"])
        inner, outer = weight.shape[1], weight.shape[0] // groups
        y = self._add_padding(_zeros((c.shape[0], *self.shapes[0]), c.dtype), 0)
        for g in range(groups):
            part = c[:, g * outer : (g + 1) * outer]
            for place, window in self._windows(y):
                at: Any = (slice(g * outer, (g + 1) * outer), slice(None), *place)
                kernel = weight[at]
                add = np.moveaxis(np.tensordot(kernel, part, axes=(0, 1)), 0, 1)
                where: Any = (window[0], slice(g * inner, (g + 1) * inner), *window[2:])
                y[where] = y[where] + add
        return self._remove_padding(y)

    def _inverse_counts(self, dtype: Any) -> Array:
        """Return 1 / (number of averaged positions) for each output position of an average pool."""
        ones = np.ones((1, 1, *self.shapes[0][1:]))
        padded = self._add_padding(ones, 1.0 if self.attributes["count_padding"] else 0.0)
        count = np.zeros((1, 1, *self.shape[1:]))
        for _, window in self._windows(padded):
            count = count + padded[window]
        out = _zeros(count.shape, dtype)
        for place in np.ndindex(count.shape):
            out[place] = _reciprocal(int(count[place]), dtype)
        return out

    def gather_windows(self, x: Array) -> Array:
        """Return the values in the windows of a max pool, `B x C x outputs x k`; -inf on padding."""
        padded = self._add_padding(x, -np.inf)
        parts = [padded[window] for _, window in self._windows(padded)]
        stacked = np.stack(parts, axis=-1)
        return stacked.reshape(x.shape[0], x.shape[1], -1, len(parts))

    def scatter_windows(self, c: Array) -> Array:
        """Return the sums of window cotangents `B x C x outputs x k` at their positions in the plane."""
        y = self._add_padding(_zeros((c.shape[0], *self.shapes[0]), c.dtype), 0)
        c = c.reshape(c.shape[0], *self.shape, -1)
        for number, (_, window) in enumerate(self._windows(y)):
            y[window] = y[window] + c[..., number]
        return self._remove_padding(y)

    def _slice(self) -> tuple[slice, ...]:
        index = [slice(None)] * (len(self.shapes[0]) + 1)
        if int(self.attributes["step"]) < 1:
            raise BadCertificate("a slice runs backwards")
        index[int(self.attributes["axis"]) + 1] = slice(
            int(self.attributes["start"]), int(self.attributes["stop"]), int(self.attributes["step"])
        )
        return tuple(index)

    def _pairs(self, dims: int) -> list[tuple[int, int]]:
        pairs = [(0, 0)] * dims
        flat = [int(v) for v in self.attributes["pairs"]]
        for i in range(len(flat) // 2):
            pairs[dims - 1 - i] = (flat[2 * i], flat[2 * i + 1])
        return pairs

    def _result_index(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the index of the input in the padded result (negative padding crops the input)."""
        index = [slice(None)]
        for (low, high), size in zip(self._pairs(len(shape) - 1), shape[1:], strict=True):
            index.append(slice(max(0, low), max(0, low) + size + min(0, low) + min(0, high)))
        return tuple(index)

    def _input_index(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        index = [slice(None)]
        for (low, high), size in zip(self._pairs(len(shape) - 1), shape[1:], strict=True):
            index.append(slice(max(0, -low), size - max(0, -high)))
        return tuple(index)


def _reciprocal(n: int, dtype: Any) -> Any:
    return Fraction(1, int(n)) if np.dtype(dtype).kind == "O" else np.dtype(dtype).type(1.0 / int(n))


def _zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    zeros = np.zeros(shape, dtype=dtype)
    if np.dtype(dtype).kind == "O":
        zeros[...] = 0
    return zeros
