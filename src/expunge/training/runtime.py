"""Where and in which precision things run. The only file that knows Lightning Fabric."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError

PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A device and a precision.

    Attributes:
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`.
        precision: `float32`, or `bf16` (mixed: weights stay float32, matrix products and convolutions run in bfloat16).
        channels_last: keep 4-D tensors in N x H x W x C order, which convolutions like better.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", hint=f"known: {', '.join(PRECISIONS)}")
        kind, colon, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
            raise ConfigError(f"unknown device {self.device!r}", hint="use auto, cpu, cuda or cuda:<number>")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {self.device!r} is not there", hint="use device=cpu or device=auto")

    @functools.cached_property
    def _fabric(self) -> Any:
        from lightning_fabric import Fabric

        kind, _, number = self.device.partition(":")
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        devices: int | list[int] = [int(number)] if number and kind == "cuda" else 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Fabric(accelerator=kind, devices=devices, precision=PRECISIONS[self.precision])

    @property
    def torch_device(self) -> torch.device:
        """The device tensors go to."""
        return torch.device(self._fabric.device)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model that expunge owns to the device and memory format."""
        model = model.to(self.torch_device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def release(self, model: nn.Module) -> nn.Module:
        """Move a model back to the CPU and the usual memory format."""
        return model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision's context for forward passes."""
        return self._fabric.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass in the runtime's precision."""
        self._fabric.backward(loss)

    def synchronise(self) -> None:
        """Wait for the device, so that a clock read next is true."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)

    @contextlib.contextmanager
    def inference(self, model: nn.Module) -> Iterator[nn.Module]:
        """Evaluation mode without gradients; the model's train/eval flags are put back afterwards."""
        flags = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                yield model
        finally:
            for module, training in flags:
                module.training = training

    def describe(self) -> dict[str, Any]:
        """Device, precision and memory format, for the record of a run."""
        return {
            "device": str(self.torch_device),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "threads": torch.get_num_threads(),
        }
