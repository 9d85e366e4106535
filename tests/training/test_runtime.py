"""Device and precision: what Fabric would do, without Fabric in float32."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from expunge.core.errors import ConfigError
from expunge.training import Runtime


def gradients(backward: Callable[[torch.Tensor], None], autocast: Callable[[], Any]) -> list[torch.Tensor]:
    """Gradients of a small network, with the backward pass and the context of a runtime or of Fabric."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    with autocast():
        loss = nn.functional.cross_entropy(model(x), y)
    backward(loss)
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("precision", "named"), [("float32", "32-true"), ("bf16", "bf16-mixed")])
def test_the_gradients_are_those_of_fabric(precision: str, named: str) -> None:
    runtime, fabric = Runtime("cpu", precision), Fabric(accelerator="cpu", devices=1, precision=named)
    ours, theirs = gradients(runtime.backward, runtime.autocast), gradients(fabric.backward, fabric.autocast)
    assert len(ours) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert runtime.torch_device == fabric.device


def test_the_two_precisions_differ() -> None:
    runtimes = [Runtime("cpu", precision) for precision in ("float32", "bf16")]
    one, other = (gradients(runtime.backward, runtime.autocast) for runtime in runtimes)
    assert not torch.equal(one[0], other[0])


def test_the_device() -> None:
    with mock.patch("torch.cuda.device_count", return_value=2), mock.patch("torch.cuda.is_available") as available:
        assert Runtime("cuda").torch_device == torch.device("cuda", 0)
        assert Runtime("cuda:1").torch_device == torch.device("cuda", 1)
        available.return_value = True
        assert Runtime("auto").torch_device == torch.device("cuda", 0)
        available.return_value = False
        assert Runtime("auto").torch_device == torch.device("cpu")
        with pytest.raises(ConfigError, match="does not exist"):
            Runtime("cuda:2")


def test_float32_needs_no_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)  # importing it is an error
    runtime = Runtime("cpu")
    assert len(gradients(runtime.backward, runtime.autocast)) == 4
    assert runtime.describe()["device"] == "cpu"
    with pytest.raises(ImportError), Runtime("cpu", "bf16").autocast():
        pass
