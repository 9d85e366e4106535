"""Predictions do not change the caller's model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError
from expunge.core.hashing import hash_tensors
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.training import Runtime, accuracy, predict_logits


def test_logits_are_those_of_the_model(dense: Trained, digits: Records, cpu: Runtime) -> None:
    rows = np.array([5, 3, 3, 100, 0])
    x = torch.from_numpy(np.array(digits.features))[rows].float() / 255
    with torch.no_grad():
        expected = dense.model.eval()(x)
    found = predict_logits(dense.model, digits, rows, runtime=cpu)
    assert torch.equal(found, expected)
    assert not found.is_inference()
    assert not found.requires_grad
    torch.testing.assert_close(predict_logits(dense.model, digits, rows, runtime=cpu, batch_size=2), expected)
    right = (expected.argmax(1).numpy() == digits.labels[rows]).mean()
    assert accuracy(dense.model, digits, rows, runtime=cpu) == pytest.approx(100 * right)


def test_the_model_is_not_changed(dense: Trained, digits: Records) -> None:
    model = dense.model
    before = dense.hash
    model.train()
    model.blocks[0][1].eval()
    flags = [m.training for m in model.modules()]
    for runtime in (Runtime(device="cpu"), Runtime(device="cpu", precision="bf16", channels_last=True)):
        predict_logits(model, digits, np.arange(50), runtime=runtime)
    assert [m.training for m in model.modules()] == flags
    assert dense.hash == before
    assert all(p.device.type == "cpu" and p.grad is None and not p.is_inference() for p in model.parameters())
    assert all(p.is_contiguous() for p in model.parameters())
    model.eval()


def test_flags_are_restored_after_an_error(digits: Records, cpu: Runtime) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError

    model = nn.Sequential(nn.Dropout(), Broken()).train()
    with pytest.raises(RuntimeError):
        predict_logits(model, digits, np.arange(3), runtime=cpu)
    assert all(m.training for m in model.modules())


def test_models_that_draw_in_evaluation_mode(digits: Records, cpu: Runtime) -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(x), 10)

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = predict_logits(Noisy(), digits, np.arange(3), runtime=cpu)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, predict_logits(Noisy(), digits, np.arange(3), runtime=cpu))


def test_no_records(dense: Trained, digits: Records, cpu: Runtime) -> None:
    assert predict_logits(dense.model, digits, np.array([], dtype=np.int64), runtime=cpu).shape == (0, 10)
    assert np.isnan(accuracy(dense.model, digits, np.array([], dtype=np.int64), runtime=cpu))


@pytest.mark.parametrize(("width", "value", "message"), [(7, 0.0, "for 10 classes"), (10, float("nan"), "NaN")])
def test_outputs_that_cannot_be_used(digits: Records, cpu: Runtime, width: int, value: float, message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    nn.init.constant_(model[1].weight, value)
    with pytest.raises(ModelError, match=message):
        predict_logits(model, digits, np.arange(3), runtime=cpu)


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", "cuda:99", "auto:0", ""])
def test_devices_that_do_not_exist(device: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown device|does not exist"):
        Runtime(device=device)


def test_precisions() -> None:
    with pytest.raises(ConfigError, match="float32, bf16"):
        Runtime(precision="fp8")
    found = Runtime(device="cpu").describe()
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "float32", torch.get_num_threads())


def test_placing_and_releasing_keep_every_bit(dense: Trained) -> None:
    import copy

    runtime = Runtime(device="cpu", channels_last=True)
    model = runtime.release(runtime.place(copy.deepcopy(dense.model)))
    assert hash_tensors(model.state_dict()) == dense.hash
