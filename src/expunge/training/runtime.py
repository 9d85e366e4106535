"""Device, precision and processes of training and predictions. The only file that imports Lightning Fabric.

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

from expunge.core.errors import ConfigError, TrainingError, check_type, name_fields, unknown_name_hint
from expunge.core.reading.limits import WORKERS
from expunge.core.show import repr_fields

#: Runtimes that have taken their first step in this process.
_WARM: set[Runtime] = set()
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}
STRATEGIES: dict[str, str] = {
    "auto": "one process, or `ddp` if there are several devices",
    "ddp": "data parallel: each process computes the gradients of its part of every batch",
}


@name_fields("a runtime")
@dataclasses.dataclass(frozen=True)
class Runtime:
    """A device, a precision, and a number of processes.

    Attributes:
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:1`.
        precision: `float32`, or `bf16` (mixed: weights stay float32, matrix products and convolutions run in bfloat16).
        channels_last: store 4-D tensors in N x H x W x C order, which makes convolutions faster on some hardware.
        workers: number of processes that read streamed records; with 0, this process reads them. It changes no result.
        devices: number of GPUs, or of processes on the CPU, that share every batch of a training run
            (docs/scaling.md). The result is that of one process, up to rounding.
        strategy: a key of `STRATEGIES`.
        sync_batchnorm: with several devices, BatchNorm normalises with the statistics of the whole batch, as one
            process does; False: with those of each part, which is faster and another result.
        compile: train with `torch.compile`; the result is that without it, up to rounding.

    Raises:
        ConfigError: a value is unknown or out of range, a device does not exist, or two options do not work together.

    >>> import expunge
    >>> expunge.Runtime("cpu", devices=2, strategy="ddp").describe()["devices"]
    2
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False
    workers: int = 0
    devices: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = True
    compile: bool = False

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if type(self.workers) is not int or not 0 <= self.workers <= WORKERS:
            raise ConfigError(f"workers is {self.workers!r}, not an integer of 0 to {WORKERS}", where="runtime.workers")
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        for name, known in (("device", "auto, cpu, cuda or cuda:<number>"), ("precision", " or ".join(PRECISIONS)),
                            ("strategy", ", ".join(STRATEGIES))):  # fmt: skip
            check_type(getattr(self, name), str, f"runtime.{name}", f"use {known}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", hint=f"known: {', '.join(PRECISIONS)}")
        device_type, colon, number = self.device.partition(":")
        if device_type not in ("auto", "cpu", "cuda") or (colon and not (device_type == "cuda" and number.isdecimal())):
            raise ConfigError(f"unknown device {self.device!r}", hint="use auto, cpu, cuda or cuda:<number>")
        if device_type == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {self.device!r} does not exist", hint="use device=cpu or device=auto")
        self._check_processes(colon)

    def _check_processes(self, colon: str) -> None:
        if type(self.devices) is not int or not 1 <= self.devices <= WORKERS:
            what = f"devices is {self.devices!r}, not an integer of 1 to {WORKERS}"
            raise ConfigError(what, where="runtime.devices")
        for name in ("sync_batchnorm", "compile"):
            if type(getattr(self, name)) is not bool:
                what = f"{name} is {getattr(self, name)!r}, neither True nor False"
                raise ConfigError(what, where=f"runtime.{name}")
        if self.strategy not in STRATEGIES:
            hint = unknown_name_hint(self.strategy, STRATEGIES)
            raise ConfigError(f"unknown strategy {self.strategy!r}", where="runtime.strategy", hint=hint)
        if self.devices == 1:
            return
        if colon:
            what = f"device {self.device!r} is one GPU, for devices={self.devices}"
            raise ConfigError(what, where="runtime.devices", hint="use device=cuda: the first ones are used")
        if self.torch_device.type == "cuda" and self.devices > torch.cuda.device_count():
            what = f"there are {torch.cuda.device_count()} GPUs, not {self.devices}"
            raise ConfigError(what, where="runtime.devices", hint="use fewer devices, or device=cpu")
        if self.compile:
            raise ConfigError(
                f"compile works on one process, not on {self.devices}", where="runtime.compile", hint="compile=False"
            )

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

    def for_process(self, number: int) -> Runtime:
        """The runtime of process `number` of those that share the batches: on a GPU, each has its own."""
        device = f"cuda:{number}" if self.torch_device.type == "cuda" else self.device
        return dataclasses.replace(self, device=device, devices=1, strategy="auto")

    def alone(self) -> Runtime:
        """The same with one process."""
        return self if self.devices == 1 else dataclasses.replace(self, devices=1, strategy="auto")

    def compiled(self, model: nn.Module) -> nn.Module:
        """What to call for a forward pass in training: the model, or its compiled form (`compile`), with the same
        parameters.

        Raises:
            ConfigError: there is no compiler.
        """
        if not self.compile:
            return model
        if self.torch_device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            try:
                get_cpp_compiler()
            except Exception as error:
                hint = "install g++ or clang, or use compile=False"
                raise ConfigError("torch.compile finds no C++ compiler", where="runtime.compile", hint=hint) from error
        # otherwise, dropout would draw other numbers than without it
        found: Any = torch.compile(model, options={"fallback_random": True})
        compiled: nn.Module = found
        return compiled

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
        """Return device, precision, memory format and number of threads, as JSON values; the rest if it is not default.

        >>> import expunge
        >>> sorted(expunge.Runtime("cpu", compile=True).describe())
        ['channels_last', 'compile', 'device', 'precision', 'threads']
        """
        later = ("devices", "strategy", "sync_batchnorm", "compile")
        defaults = {field.name: field.default for field in dataclasses.fields(Runtime)}
        return {
            "device": str(self.torch_device),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
            **{name: getattr(self, name) for name in later if getattr(self, name) != defaults[name]},
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
