"""Several executions of one network, for `patch_limits.py`: do they give the same activation bits?

The reference is eager float32 in batches of 256 on one thread. Every execution gives the bits `B x L` of the same
inputs in the same order.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.patches.network.execute import Region, cast, execute_pattern
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import compute_patterns
from expunge.patches.network.rounding import bound_execution_error

BATCH = 256
DOUBLE, NNPACK = "eager, float64", "eager, NNPACK"
#: Executions that certificates do not cover: not float32, or convolutions by transforms (Winograd, FFT).
OUTSIDE = (DOUBLE, NNPACK)
Execution = Callable[[Tensor], Tensor]


class Observed(nn.Module):
    """Logits and activation bits of a network's operation list, as one module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.names = {name: f"held_{i}" for i, name in enumerate(network.tensors)}
        for name, tensor in network.tensors.items():
            self.register_buffer(self.names[name], tensor.detach().clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return execute_pattern(self.network, x, {name: getattr(self, held) for name, held in self.names.items()})


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference(network: Network, x: Tensor) -> Tensor:
    """Bits of the eager network, batches of 256, one thread."""
    with _threads(1):
        return compute_patterns(network, x, BATCH)[1]


def _eager(network: Network, batch: int, threads: int) -> Execution:
    def execute(x: Tensor) -> Tensor:
        with _threads(threads):
            return compute_patterns(network, x, batch)[1]

    return execute


def _channels_last(network: Network) -> Execution:
    def execute(x: Tensor) -> Tensor:
        with _threads(1):
            return compute_patterns(network, x.contiguous(memory_format=torch.channels_last), BATCH)[1]

    return execute


def _without_onednn(network: Network, *, nnpack: bool) -> Execution:
    """Without oneDNN: convolutions by NNPACK (by transforms, in batches of 16 or more), or as matrix products."""
    if nnpack and not torch.backends.nnpack.is_available():
        raise RuntimeError("this torch has no NNPACK, or the processor does not suit it")

    def execute(x: Tensor) -> Tensor:
        with (
            _threads(1), torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=nnpack)
        ):  # fmt: skip
            return compute_patterns(network, x, BATCH)[1]

    return execute


def _double(network: Network) -> Execution:
    tensors = cast(network.tensors, torch.float64)

    def execute(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([execute_pattern(network, part.double(), tensors)[1] for part in x.split(BATCH)])

    return execute


def _compiled(network: Network) -> Execution:
    torch._dynamo.reset()
    model: Any = torch.compile(Observed(network), dynamic=True)

    def execute(x: Tensor) -> Tensor:
        with _threads(1), torch.no_grad():
            return torch.cat([model(part)[1] for part in x.split(BATCH)])

    execute(torch.zeros(2, *network.input_shape))
    return execute


def _onnx(network: Network) -> Execution:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, _threads(1):
        path = Path(folder) / "network.onnx"
        x = torch.zeros(2, *network.input_shape)
        torch.onnx.export(
            Observed(network).eval(), (x,), path, dynamo=True, dynamic_shapes={"x": {0: "batch"}}, verbose=False
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def execute(x: Tensor) -> Tensor:
        parts = [session.run(None, {name: part.numpy()})[1] for part in x.split(BATCH)]
        return torch.cat([torch.from_numpy(part) for part in parts])

    return execute


def executions(network: Network) -> tuple[dict[str, Execution], dict[str, str]]:
    """The other executions by name, and why some are missing.

    An execution that cannot be set up here (no compiler, no onnxruntime) is skipped with its reason.
    """
    convolutional = any(operation.op == "conv" for operation in network.operations) and len(network.input_shape) == 3
    images: dict[str, Callable[[], Execution]] = {
        "eager, channels-last": lambda: _channels_last(network),
        NNPACK: lambda: _without_onednn(network, nnpack=True),
    }
    makers: dict[str, Callable[[], Execution]] = {
        "eager, one by one": lambda: _eager(network, 1, 1),
        "eager, batches of 32": lambda: _eager(network, 32, 1),
        "eager, two threads": lambda: _eager(network, BATCH, 2),
        "eager, without oneDNN": lambda: _without_onednn(network, nnpack=False),
        **(images if convolutional else {}),
        DOUBLE: lambda: _double(network),
        "torch.compile": lambda: _compiled(network),
        "onnxruntime": lambda: _onnx(network),
    }
    found: dict[str, Execution] = {}
    missing = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # a missing compiler or package shows itself in many types of exception
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            print(f"  skipped: {name}: {missing[name]}", flush=True)
    return found, missing


def within_rounding(network: Network, x: Tensor, bits: Tensor) -> Tensor:
    """Return which inputs lie within the float32 error bound of a face of their own region, `B` bool.

    The bound is `bound_execution_error` at the point itself: a margin below it may be executed with either sign. The
    winner of a max-pool window has no margin against itself and is left out.
    """
    tensors, found = cast(network.tensors, torch.float64), []
    pools = torch.zeros(network.atoms, dtype=torch.bool)
    for number, place in network.atom_slices.items():
        pools[place] = network.operations[number].op == "max_pool"
    with torch.no_grad():
        for one, own in zip(x, bits, strict=True):
            margins = Region(network, own[None], tensors)(one[None].double())[1][0]
            bound = bound_execution_error(network, own[None], one.double(), one.double()).margins[0]
            found.append(bool(((margins < bound) & ~(pools & own)).any()))
    return torch.tensor(found)


def to_faces(network: Network, points: Tensor, others: Tensor, rounds: int = 60) -> tuple[Tensor, Tensor]:
    """The last float32 inputs on the way from points to others that still have the points' bits, found by halving.

    Returns:
        The inputs, and whether there is a face on the way (the other input has other bits).
    """
    bits = reference(network, points)
    leaves = (reference(network, others) != bits).any(1)
    low, high = torch.zeros(len(points), dtype=torch.float64), torch.ones(len(points), dtype=torch.float64)
    wide = (-1, *(1,) * (points.dim() - 1))
    for _ in range(rounds):
        middle = (low + high) / 2
        at = (points.double() + middle.view(wide) * (others.double() - points.double())).float()
        inside = (reference(network, at) == bits).all(1)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return (points.double() + low.view(wide) * (others.double() - points.double())).float(), leaves
