"""Translates ATen calls into operations of the list, or reports why a call is not supported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .builder import Builder, Value
from .operations import Operation

#: Names of frequent operations that are not piecewise linear, for error messages.
_NONLINEAR = {
    "sigmoid": "sigmoid", "tanh": "tanh", "gelu": "GELU", "silu": "SiLU", "elu": "ELU", "softplus": "softplus",
    "mish": "Mish", "softmax": "softmax", "_softmax": "softmax", "log_softmax": "log-softmax", "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid", "layer_norm": "LayerNorm", "group_norm": "GroupNorm", "instance_norm": "InstanceNorm",
    "scaled_dot_product_attention": "attention", "exp": "exp", "sqrt": "sqrt", "pow": "a power", "erf": "erf",
    "hardtanh": "hardtanh / ReLU6", "hardtanh_": "hardtanh / ReLU6", "selu": "SELU", "celu": "CELU", "prelu": "PReLU",
}  # fmt: skip
_IDENTITIES = {
    "clone",
    "contiguous",
    "detach",
    "alias",
    "dropout",
    "feature_dropout",
    "to",
    "_to_copy",
    "lift_fresh_copy",
}
_RESHAPES = {"view", "reshape", "flatten", "_unsafe_view", "unsqueeze", "squeeze", "unflatten"}


Lowering = Callable[[Builder, list[Any], dict[str, Any]], Value]


def lower(builder: Builder, target: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Append the operations of one ATen call. A call on constants alone is computed.

    Raises:
        ModelError: the call is not piecewise linear, or not supported.
    """
    if not any(isinstance(a, Value) for a in _flatten([*arguments, *keywords.values()])):
        return target(*arguments, **keywords)
    name = str(getattr(target, "_opname", getattr(target, "__name__", target)))
    arguments = _complete_arguments(target, arguments, keywords)
    plain = name.rstrip("_") if name.rstrip("_") in _CALLS else name
    if plain in _IDENTITIES or plain == "dropout_":
        if plain.startswith(("dropout", "feature_dropout")) and arguments[2]:
            raise builder.error("dropout is active in evaluation mode")
        return arguments[0]
    if plain in _RESHAPES or plain in ("unsqueeze", "squeeze"):
        return _reshape(builder, target, arguments)
    if plain in _CALLS:
        return _CALLS[plain](builder, arguments, {})
    if plain in _NONLINEAR:
        raise builder.error(
            f"{_NONLINEAR[plain]} is not piecewise linear, so its regions have no affine form",
            "supported: Linear, Conv, BatchNorm, ReLU, LeakyReLU, max and average pooling, sums, reshapes"
            + ("; return logits, not probabilities" if "softmax" in plain else ""),
        )
    raise builder.error(f"the operation {name} is not supported by certified patches")


def _flatten(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found.extend(_flatten(list(item)) if isinstance(item, (list, tuple)) else [item])
    return found


def _complete_arguments(target: Any, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
    """Return all arguments in the order of the schema, with keywords and defaults filled in."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return [*arguments, *keywords.values()]
    rest = schema.arguments[len(arguments) :]
    return [*arguments, *(keywords.get(parameter.name, parameter.default_value) for parameter in rest)]


def _make_meta(builder: Builder, value: Value) -> Tensor:
    """Return a meta tensor (no memory) of the shape of the value for three records."""
    return torch.empty(3, *builder.shape(value.number), device="meta")


def _reshape(builder: Builder, target: Any, arguments: list[Any]) -> Value:
    x = arguments[0]
    result = target(_make_meta(builder, x), *arguments[1:])
    if result.dim() == 0 or result.shape[0] != 3:
        raise builder.error("a reshape mixes the batch axis with others")
    return Value(builder.add("reshape", (x.number,), tuple(result.shape[1:])))


def _to_record_axis(builder: Builder, x: Value, axis: int) -> int:
    """Convert an axis of the batch tensor to an axis of one record."""
    dims = len(builder.shape(x.number)) + 1
    axis = axis % dims
    if axis == 0:
        raise builder.error("an operation works across the records of a batch")
    return axis - 1


def _to_tuple(value: Any, dims: int, default: Any = None) -> tuple[int, ...]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    listed = list(default) if not listed and default is not None else listed
    return tuple(int(v) for v in (listed * dims if len(listed) == 1 else listed))


def _to_float32(number: float) -> float:
    """Round a number to float32. The model is executed in float32, so the list holds the executed number."""
    return float(torch.tensor(number, dtype=torch.float32)) + 0.0  # 0.0 for -0.0


def _linear(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, weight = a[0], a[1]
    bias = a[2] if len(a) > 2 else None
    if not isinstance(x, Value) or isinstance(weight, Value):
        raise builder.error("a product of two results that both depend on the input is not piecewise linear")
    names = {"weight": builder.name_tensor(weight)}
    if bias is not None:
        if bias.numel() != weight.shape[0]:
            raise builder.error("a bias differs between the records of a batch, or is shared by several outputs")
        names["bias"] = builder.name_tensor(bias.reshape(-1))
    shape = (*builder.shape(x.number)[:-1], weight.shape[0])
    return Value(builder.append(Operation("linear", (x.number,), shape, {}, names)))


def _addmm(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    if a[3] != 1 or a[4] != 1 or isinstance(a[0], Value) or isinstance(a[2], Value):
        raise builder.error(
            "addmm with factors (alpha, beta), or with an input-dependent matrix, is not a linear layer"
        )
    return _linear(builder, [a[1], a[2].t().contiguous(), a[0]], {})


def _matmul(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    if isinstance(a[1], Value) or a[1].dim() != 2:
        raise builder.error("a product of two results that both depend on the input is not piecewise linear")
    return _linear(builder, [a[0], a[1].t().contiguous()], {})


def _conv(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, weight, bias, stride, padding, dilation, groups = a[:7]
    if isinstance(weight, Value) or isinstance(bias, Value):
        raise builder.error("a convolution whose kernel depends on the input is not piecewise linear")
    if isinstance(padding, str):
        raise builder.error("convolution padding given as a string is not supported", "give the padding as numbers")
    dims = weight.dim() - 2
    stride, padding, dilation = (_to_tuple(v, dims) for v in (stride, padding, dilation))
    plane = [
        (size + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate(builder.shape(x.number)[1:])
    ]
    names = {"weight": builder.name_tensor(weight)}
    if bias is not None:
        names["bias"] = builder.name_tensor(bias)
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(groups)}
    return Value(builder.append(Operation("conv", (x.number,), (weight.shape[0], *plane), attributes, names)))


def _batch_norm(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, weight, bias, mean, variance, training, _momentum, epsilon = a[:8]
    if training or mean is None:
        raise builder.error("BatchNorm without running statistics normalises by the batch, so it is not affine")
    if not bool((variance >= 0).all()) or 0 < epsilon < torch.finfo(torch.float32).tiny or epsilon < 0:
        raise builder.error("BatchNorm has a negative variance, or an epsilon that is negative or too small")
    roles = {"mean": mean, "variance": variance, "weight": weight, "bias": bias}
    names = {role: builder.name_tensor(t) for role, t in roles.items() if t is not None}
    shape = builder.shape(x.number)
    return Value(builder.append(Operation("batch_norm", (x.number,), shape, {"epsilon": float(epsilon)}, names)))


def _constant(builder: Builder, op: str, x: Value, value: Any, **attributes: Any) -> Value:
    tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
    shape = torch.broadcast_shapes((3, *builder.shape(x.number)), tensor.shape)
    if shape != (3, *builder.shape(x.number)):
        raise builder.error("a constant broadcasts the result to a larger shape")
    if tensor.dim() == len(shape) and tensor.shape[0] != 1:
        raise builder.error("a constant differs between the records of a batch")
    names = {"value": builder.name_tensor(tensor)}
    return Value(builder.append(Operation(op, (x.number,), tuple(shape[1:]), attributes, names)))


def _sum(sign: int) -> Lowering:
    def add(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
        x, y = a[0], a[1]
        if len(a) > 2 and a[2] != 1:
            raise builder.error("a sum with a factor (alpha) is not supported")
        if isinstance(x, Value) and isinstance(y, Value):
            if builder.shape(x.number) != builder.shape(y.number):
                raise builder.error("a sum of results of different shapes is not supported")
            numbers = (x.number, y.number)
            return Value(builder.add("add", numbers, builder.shape(x.number), sign=sign))
        if isinstance(x, Value):
            return _constant(builder, "add_constant", x, y, sign=sign)
        if sign > 0:
            return _constant(builder, "add_constant", y, x, sign=sign)
        raise builder.error("a constant minus a result is not supported")

    return add


def _multiply(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, y = a[0], a[1]
    if isinstance(x, Value) and isinstance(y, Value):
        raise builder.error("a product of two results that both depend on the input is not piecewise linear")
    return _constant(builder, "multiply_constant", *((x, y) if isinstance(x, Value) else (y, x)))


def _divide(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    if isinstance(a[1], Value):
        raise builder.error("division by a result that depends on the input is not piecewise linear")
    return _constant(builder, "divide_constant", a[0], a[1])


def _relu(builder: Builder, a: list[Any], _: dict[str, Any], slope: float = 0.0) -> Value:
    shape = builder.shape(a[0].number)
    if not shape:
        raise builder.error("a ReLU of one number per record without an axis is not supported", "keep the axis")
    return Value(builder.add("relu", (a[0].number,), shape, slope=slope))


def _leaky(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    slope = _to_float32(float(a[1]))
    if not 0 <= slope < 1:
        raise builder.error(f"LeakyReLU with slope {slope:g} outside [0, 1) is not supported")
    return _relu(builder, a, {}, slope)


def _clamp(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    high = a[2] if len(a) > 2 else None
    if isinstance(a[1], (int, float)) and a[1] == 0 and high is None:
        return _relu(builder, a, {})
    raise builder.error("clamp other than max(x, 0) is not supported")


def _max_pool(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, kernel, stride, padding, dilation, ceil = a[:6]
    shape = builder.shape(x.number)
    dims = len(shape) - 1
    attributes = {
        "kernel": _to_tuple(kernel, dims), "stride": _to_tuple(stride, dims, _to_tuple(kernel, dims)),
        "padding": _to_tuple(padding, dims), "dilation": _to_tuple(dilation, dims),
    }  # fmt: skip
    function: Any = (torch.max_pool1d, torch.max_pool2d)[dims - 1]
    places = [list(attributes[n]) for n in ("kernel", "stride", "padding", "dilation")]
    result = function(torch.empty(3, *shape), *places, bool(ceil))
    return Value(builder.add("max_pool", (x.number,), tuple(result.shape[1:]), **attributes))


def _avg_pool(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, kernel, stride, padding, ceil, count = a[:6]
    divisor = a[6] if len(a) > 6 else None
    shape = builder.shape(x.number)
    dims = len(shape) - 1
    if ceil or divisor is not None:
        raise builder.error("average pooling with ceil_mode or a divisor is not supported")
    kernel = _to_tuple(kernel, dims)
    attributes = {"kernel": kernel, "stride": _to_tuple(stride, dims, kernel), "padding": _to_tuple(padding, dims)}
    plane = [
        (size + 2 * attributes["padding"][i] - kernel[i]) // attributes["stride"][i] + 1
        for i, size in enumerate(shape[1:])
    ]
    after = (shape[0], *plane)
    padded = bool(count)
    return Value(builder.add("average_pool", (x.number,), after, **attributes, count_padding=padded, adaptive=False))


def _adaptive(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    shape = builder.shape(a[0].number)
    dims = len(shape) - 1
    wanted = _to_tuple(a[1], dims)
    if any(size % out for size, out in zip(shape[1:], wanted, strict=True)):
        raise builder.error("adaptive average pooling to a size that does not divide the input's is not supported")
    if all(
        out == 1 for out in wanted
    ):  # here torch executes a mean, whose order of summation differs from that of a pool
        return Value(
            builder.add("mean", (a[0].number,), (shape[0], *wanted), axes=tuple(range(1, dims + 1)), keep=True)
        )
    kernel = tuple(size // out for size, out in zip(shape[1:], wanted, strict=True))
    attributes = {"kernel": kernel, "stride": kernel, "padding": (0,) * len(kernel)}
    after = (shape[0], *wanted)
    return Value(builder.add("average_pool", (a[0].number,), after, **attributes, count_padding=True, adaptive=True))


def _mean(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, axes, keep = a[0], a[1], bool(a[2])
    shape = builder.shape(x.number)
    listed = [axes] if isinstance(axes, int) else list(axes or range(1, len(shape) + 1))
    places = sorted(_to_record_axis(builder, x, axis) for axis in listed)
    after = [1 if i in places else n for i, n in enumerate(shape) if keep or i not in places]
    return Value(builder.add("mean", (x.number,), tuple(after), axes=tuple(places), keep=keep))


def _permute(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, order = a[0], [axis % (len(builder.shape(a[0].number)) + 1) for axis in a[1]]
    if order[0] != 0:
        raise builder.error("a permutation moves the batch axis")
    shape = builder.shape(x.number)
    axes = tuple(axis - 1 for axis in order[1:])
    return Value(builder.add("permute", (x.number,), tuple(shape[i] for i in axes), axes=axes))


def _transpose(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    order = list(range(len(builder.shape(a[0].number)) + 1))
    first, second = a[1] % len(order), a[2] % len(order)
    order[first], order[second] = order[second], order[first]
    return _permute(builder, [a[0], order], {})


def _slice(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, axis, start, stop, step = a[:5]
    shape = builder.shape(x.number)
    if axis % (len(shape) + 1) == 0:
        if start in (None, 0) and (stop is None or stop >= 3) and step in (None, 1):
            return x
        raise builder.error("an operation works across the records of a batch")
    place = _to_record_axis(builder, x, axis)
    begin, end, stride = slice(start, stop, step).indices(shape[place])
    size = len(range(begin, end, stride))
    after = (*shape[:place], size, *shape[place + 1 :])
    return Value(builder.add("slice", (x.number,), after, axis=place, start=begin, stop=end, step=stride))


def _select(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, axis, index = a[:3]
    shape = builder.shape(x.number)
    place = _to_record_axis(builder, x, axis)
    index = index % shape[place]
    part = _slice(builder, [x, place + 1, index, index + 1, 1], {})
    return Value(builder.add("reshape", (part.number,), (*shape[:place], *shape[place + 1 :])))


def _pad(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    x, pairs = a[0], [int(v) for v in a[1]]
    named_mode = isinstance(a[2], str) if len(a) > 2 else False
    mode = a[2] if named_mode else "constant"
    value = (a[3] if len(a) > 3 else 0.0) if named_mode else (a[2] if len(a) > 2 else 0.0)
    if mode != "constant":
        raise builder.error(f"padding by {mode} is not supported")
    shape = list(builder.shape(x.number))
    if len(pairs) // 2 > len(shape):
        raise builder.error("padding of the batch axis")
    for i in range(len(pairs) // 2):
        shape[-1 - i] += pairs[2 * i] + pairs[2 * i + 1]
    number = _to_float32(float(value or 0.0))
    if not math.isfinite(number):
        raise builder.error("padding with an infinite value is not supported")
    return Value(builder.add("pad", (x.number,), tuple(shape), pairs=tuple(pairs), value=number))


def _concat(builder: Builder, a: list[Any], _: dict[str, Any]) -> Value:
    if not all(isinstance(item, Value) for item in a[0]):
        raise builder.error("concatenation with a constant is not supported")
    axis = _to_record_axis(builder, a[0][0], a[1] if len(a) > 1 else 0)
    shapes = [builder.shape(item.number) for item in a[0]]
    after = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    return Value(builder.add("concat", tuple(item.number for item in a[0]), after, axis=axis))


_CALLS: dict[str, Lowering] = {
    "linear": _linear, "addmm": _addmm, "mm": _matmul, "matmul": _matmul, "conv1d": _conv, "conv2d": _conv,
    "batch_norm": _batch_norm, "add": _sum(1), "sub": _sum(-1), "mul": _multiply, "div": _divide,
    "relu": _relu, "leaky_relu": _leaky, "clamp_min": _clamp, "clamp": _clamp, "max_pool1d": _max_pool,
    "max_pool2d": _max_pool, "avg_pool1d": _avg_pool, "avg_pool2d": _avg_pool, "adaptive_avg_pool1d": _adaptive,
    "adaptive_avg_pool2d": _adaptive, "mean": _mean, "permute": _permute, "transpose": _transpose, "slice": _slice,
    "select": _select, "pad": _pad, "constant_pad_nd": _pad, "cat": _concat, "concat": _concat,
}  # fmt: skip
