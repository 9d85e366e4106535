"""Device and precision of training and predictions. The only file that imports Lightning Fabric.

Fabric takes seconds to import, and in float32 it would add nothing: its precision is a null context and its backward
pass is `Tensor.backward`. So it is imported only for the other precisions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.core.errors import ConfigError, TrainingError
from expunge.core.reading.limits import WORKERS

#: Runtimes that have taken their first step in this process.
_WARM: set[Runtime] = set()
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A device and a precision.

    Attributes:
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:1`.
        precision: `float32`, or `bf16` (mixed: weights stay float32, matrix products and convolutions run in bfloat16).
        channels_last: store 4-D tensors in N x H x W x C order, which makes convolutions faster on some hardware.
        workers: number of processes that read streamed records; with 0, this process reads them. It changes no result.

    Raises:
        ConfigError: the device or the precision is unknown, the device does not exist, or `workers` is no such number.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if type(self.workers) is not int or not 0 <= self.workers <= WORKERS:
            raise ConfigError(f"workers is {self.workers!r}, not an integer of 0 to {WORKERS}", where="runtime.workers")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", hint=f"known: {', '.join(PRECISIONS)}")
        device_type, colon, number = self.device.partition(":")
        if device_type not in ("auto", "cpu", "cuda") or (colon and not (device_type == "cuda" and number.isdecimal())):
            raise ConfigError(f"unknown device {self.device!r}", hint="use auto, cpu, cuda or cuda:<number>")
        if device_type == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {self.device!r} does not exist", hint="use device=cpu or device=auto")

    @functools.cached_property
    def _fabric(self) -> Any:
        """Fabric, or None for float32."""
        if self.precision == "float32":
            return None
        from lightning_fabric import Fabric

        device = self.torch_device
        devices: int | list[int] = 1 if device.index is None else [device.index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Fabric(accelerator=device.type, devices=devices, precision=PRECISIONS[self.precision])

    @property
    def torch_device(self) -> torch.device:
        """The torch device; CUDA without a number is its first device."""
        device_type, _, number = self.device.partition(":")
        if device_type == "auto":
            device_type = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(device_type) if device_type == "cpu" else torch.device(device_type, int(number or 0))

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and memory format, in place (pass a copy of a caller's model)."""
        model = model.to(self.torch_device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def release(self, model: nn.Module) -> nn.Module:
        """Move a model to the CPU and the contiguous memory format."""
        return model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context manager of the precision, for forward passes."""
        return contextlib.nullcontext() if self._fabric is None else self._fabric.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass in the runtime's precision."""
        if self._fabric is None:
            loss.backward()
        else:
            self._fabric.backward(loss)

    def warm_up(self) -> None:
        """Take one tiny training step, once in a process: what torch loads and sets up at first use is not timed.

        Draws from no generator, and touches no model and no data.
        """
        if self in _WARM:
            return
        _WARM.add(self)
        device = self.torch_device
        filters, matrix = (torch.zeros(shape, device=device, requires_grad=True) for shape in ((2, 1, 3, 3), (2, 2)))
        step = torch.optim.SGD([filters, matrix], lr=0.0, momentum=0.9)
        with self.autocast():
            hidden = functional.conv2d(torch.zeros((2, 1, 4, 4), device=device), filters)
            normed = functional.batch_norm(hidden, None, None, training=True).relu().mean((2, 3))
            loss = functional.cross_entropy((normed @ matrix).float(), torch.zeros(2, dtype=torch.long, device=device))
        self.backward(loss)
        step.step()
        self.synchronise()

    def synchronise(self) -> None:
        """Wait until the device has finished, for correct timings."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)

    @contextlib.contextmanager
    def inference_mode(self, model: nn.Module) -> Iterator[nn.Module]:
        """Evaluation mode without gradients inside the block; the train/eval flags are restored afterwards."""
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                yield model
        finally:
            for module, training in flags:
                module.training = training

    def describe(self) -> dict[str, Any]:
        """Return device, precision, memory format and number of threads, as JSON values."""
        return {
            "device": str(self.torch_device),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
        }


@contextlib.contextmanager
def second_derivatives(model: nn.Module) -> Iterator[None]:
    """Use kernels that have second derivatives inside the block; run the forward pass inside it too.

    `scaled_dot_product_attention`, and with it `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`, computes with
    plain products, and recurrent layers without cuDNN. Other operations are computed as usual.

    Raises:
        TrainingError: an operation has no second derivative.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
    try:
        with sdpa_kernel(SDPBackend.MATH), cudnn:
            yield
    except RuntimeError as error:  # NotImplementedError is one
        first = (str(error).splitlines() or [""])[0]
        if "derivative" not in first.lower() and "double backward" not in first.lower():
            raise
        raise TrainingError(
            f"an operation of the network has no second derivative ({first[:160]})",
            where=type(model).__name__,
            hint="GraSP, the influence rule and the curvature need it: choose another criterion or rule, or build the "
            "operation from products and sums",
        ) from error
