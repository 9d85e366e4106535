"""What bf16, channels-last order and `torch.compile` change of a training run, and what they leave."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import network, random_mask, recipe
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.data.records import Records
from expunge.training import Context, Fit, Runtime, fit

PLAIN = Runtime("cpu")


def train(digits: Records, runtime: Runtime, *, dropout: float = 0.2, **more: Any) -> tuple[nn.Module, Mask, Fit]:
    """Three epochs of 100 records: batches of 32, 32, 32 and 4; with a mask, dropout and augmentation."""
    model = network(dropout=dropout)
    mask = random_mask(model)
    model = runtime.place(model)
    found = fit(
        model, np.arange(100), recipe(augment="crop-flip", **more), Context(digits, runtime, 4), mask=mask
    )  # fmt: skip
    return runtime.release(model), mask, found


def losses(found: Fit) -> list[float]:
    return [float(entry["loss"]) for entry in found.history]


def apart(one: nn.Module, other: nn.Module) -> float:
    a, b = one.state_dict(), other.state_dict()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def check_mask(model: nn.Module, mask: Mask) -> None:
    named = dict(model.named_parameters())
    for name, kept in mask.kept.items():
        pruned = named[name].detach()[~kept]
        assert not pruned.any()
        assert not pruned.signbit().any()


def test_bf16(digits: Records) -> None:
    """The loss differs, a little; weights stay float32; masks hold; a seed gives the same bits again."""
    half = Runtime("cpu", precision="bf16")
    (one, mask, found), (plain, _, expected) = train(digits, half), train(digits, PLAIN)
    assert losses(found) != losses(expected)
    assert losses(found) == pytest.approx(losses(expected), rel=0.02)
    assert all(p.dtype == torch.float32 for p in one.parameters())
    assert 1e-5 < apart(one, plain) < 0.1
    check_mask(one, mask)
    again, _, _ = train(digits, half)
    assert hash_tensors(again.state_dict()) == hash_tensors(one.state_dict())


def test_channels_last(digits: Records) -> None:
    """The order in memory: the same up to rounding, and the result is contiguous."""
    (one, mask, found), (plain, _, expected) = train(digits, Runtime("cpu", channels_last=True)), train(digits, PLAIN)
    assert apart(one, plain) < 1e-5
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    assert all(p.is_contiguous() for p in one.parameters())
    check_mask(one, mask)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(digits: Records, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The same up to rounding, dropout's draws and the last, smaller batch included; masks hold."""
    if backend == "inductor":
        if not os.environ.get("EXPUNGE_COMPILE"):
            pytest.skip("the C++ compiler takes minutes: EXPUNGE_COMPILE=1 runs it, and `make test-gpu` does")
    else:  # traced and differentiated as with the compiler; the kernels are torch's
        trace = functools.partial(torch.compile, backend=backend)
        monkeypatch.setattr(torch, "compile", lambda model, options: trace(model))
        monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "c++")
    (one, mask, found), (plain, _, expected) = train(digits, Runtime("cpu", compile=True)), train(digits, PLAIN)
    assert apart(one, plain) < 1e-5
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    check_mask(one, mask)
    assert sorted(one.state_dict()) == sorted(plain.state_dict()), "the wrapper of the compiler is not in the result"


def test_compile_calls_what_was_compiled(digits: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above, without a compiler: the loop calls what `torch.compile` returns."""
    calls: list[int] = []

    def compiled(model: nn.Module, **options: Any) -> Any:
        assert options == {"options": {"fallback_random": True}}
        return lambda x: calls.append(len(x)) or model(x)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "c++")
    model, _, _ = train(digits, Runtime("cpu", compile=True))
    assert calls == [32, 32, 32, 4] * 3
    assert hash_tensors(model.state_dict()) == hash_tensors(train(digits, PLAIN)[0].state_dict())


def test_without_a_compiler(digits: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> str:
        raise RuntimeError("none")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", find)
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        train(digits, Runtime("cpu", compile=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 0}, "devices is 0, not an integer of 1 to 256"),
        ({"devices": True}, "devices is True"),
        ({"devices": 257}, "devices is 257"),
        ({"devices": 2, "strategy": "fsdp"}, "unknown strategy 'fsdp'"),
        ({"compile": "yes"}, "compile is 'yes', neither True nor False"),
        ({"sync_batchnorm": 1}, "sync_batchnorm is 1"),
        ({"devices": 2, "compile": True}, "compile works on one process, not on 2"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Runtime("cpu", **values)
    assert message in str(caught.value)


def test_gpus_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match="there are 2 GPUs, not 3"):
        Runtime("cuda", devices=3)
    with pytest.raises(ConfigError, match="'cuda:1' is one GPU, for devices=2"):
        Runtime("cuda:1", devices=2)
    two = Runtime("cuda", devices=2)
    assert str(two.torch_device) == "cuda:0"
    assert [str(two.for_process(number).torch_device) for number in range(2)] == ["cuda:0", "cuda:1"]
    assert two.alone() == dataclasses.replace(two, devices=1)


def test_options_of_one_process_are_not_named() -> None:
    assert set(PLAIN.describe()) == {"device", "precision", "channels_last", "threads"}
    assert Runtime("cpu", devices=2, strategy="ddp").describe()["devices"] == 2
