"""Weights from a file: what is taken, what is refused, and that the caller's model stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.core.errors import FileError, ModelError
from expunge.core.hashing import hash_tensors
from expunge.core.trained import plain_state
from expunge.data.records import Normalisation
from expunge.models import Architecture, load_weights
from expunge.models.normalise import Normalised

CONSTANTS = Normalisation((0.5,), (0.25,))
ARCH = Architecture("small-cnn", {"widths": [4, 4]}, (1, 8, 8), 3, CONSTANTS)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    model = ARCH.build(7)
    model(torch.rand(9, 1, 8, 8))  # moves the BatchNorm buffers
    return {name: tensor.clone() for name, tensor in plain_state(model).items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: t.contiguous() for name, t in tensors.items()}, str(path))
    return path


def test_weights_are_loaded_bit_for_bit_into_a_copy(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    mine = ARCH.build(1)
    before = hash_tensors(plain_state(mine))
    loaded = load_weights(mine, write(tmp_path / "w.safetensors", weights))
    assert hash_tensors(plain_state(loaded)) == hash_tensors(weights)
    assert hash_tensors(plain_state(mine)) == before
    assert int(plain_state(loaded)["blocks.0.1.num_batches_tracked"]) == 1
    shared = {t.data_ptr() for t in plain_state(mine).values()} & {t.data_ptr() for t in plain_state(loaded).values()}
    assert not shared


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_forward_module.", "module._orig_mod."])
def test_wrapper_prefixes_do_not_matter(tmp_path: Path, weights: dict[str, torch.Tensor], prefix: str) -> None:
    path = write(tmp_path / "w.safetensors", {prefix + name: t for name, t in weights.items()})
    assert hash_tensors(plain_state(load_weights(ARCH.build(), path))) == hash_tensors(weights)


def test_a_wrapped_model_is_loaded_under_plain_names(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    wrapped = nn.DataParallel(ARCH.build())
    loaded = load_weights(wrapped, write(tmp_path / "w.safetensors", weights))
    assert hash_tensors(plain_state(loaded)) == hash_tensors(weights)


def test_constants_and_counters_may_be_left_out(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    bare = {n: t for n, t in weights.items() if not n.startswith("normalise.") and "num_batches" not in n}
    loaded = plain_state(load_weights(ARCH.build(), write(tmp_path / "w.safetensors", bare)))
    assert loaded["normalise.mean"].tolist() == [0.5]
    assert torch.equal(loaded["blocks.0.1.running_mean"], weights["blocks.0.1.running_mean"])


def test_half_precision_is_widened(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights.items()}
    loaded = plain_state(load_weights(ARCH.build(), write(tmp_path / "w.safetensors", half)))
    assert loaded["classifier.weight"].dtype == torch.float32
    assert torch.equal(loaded["classifier.weight"], half["classifier.weight"].float())


def test_a_users_network_behind_constants_takes_its_own_names(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Linear(4, 3))
    model = Normalised(nn.Identity(), nn.Sequential(nn.Linear(4, 3)))
    loaded = load_weights(model, write(tmp_path / "w.safetensors", inner.state_dict()))
    assert torch.equal(plain_state(loaded)["network.0.weight"], inner[0].weight)


def test_tied_weights_need_one_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    wanted = torch.rand(3, 3)
    loaded = load_weights(Tied(), write(tmp_path / "w.safetensors", {"b.weight": wanted}))
    assert torch.equal(loaded.a.weight, wanted)
    assert loaded.a.weight is loaded.b.weight


def refused(path: Path, says: str, error: type[Exception] = ModelError, arch: Architecture = ARCH) -> None:
    mine = arch.build(1)
    before = hash_tensors(plain_state(mine))
    with pytest.raises(error, match=says):
        load_weights(mine, path)
    assert hash_tensors(plain_state(mine)) == before


def test_missing_and_unexpected_names(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    without = {n: t for n, t in weights.items() if n != "classifier.bias"}
    refused(write(tmp_path / "a.safetensors", without), r"1 tensors .* missing .*classifier\.bias")
    refused(write(tmp_path / "b.safetensors", {**weights, "extra": torch.zeros(1)}), r"unknown to the model \(extra\)")
    other = plain_state(Architecture("resnet20", {}, (1, 8, 8), 3).build())
    refused(write(tmp_path / "c.safetensors", dict(other)), "and [0-9]+ more")


def test_unexpected_constants_say_which_option(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    without = Architecture("small-cnn", {"widths": [4, 4]}, (1, 8, 8), 3)
    refused(write(tmp_path / "w.safetensors", weights), "normalise='auto'", arch=without)


def test_pruning_hooks_in_the_file_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weight = weights.pop("classifier.weight")
    tensors = {**weights, "classifier.weight_orig": weight, "classifier.weight_mask": torch.ones_like(weight)}
    refused(write(tmp_path / "w.safetensors", tensors), "adopt_weights and model.weights read their masks")


def test_another_shape(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    wider = plain_state(Architecture("small-cnn", {"widths": [4, 4]}, (1, 8, 8), 5, CONSTANTS).build())
    refused(
        write(tmp_path / "a.safetensors", dict(wider)),
        r"classifier.weight is \(5, 4\), the model has \(3, 4\)(.|\n)*wrong number of classes",
    )
    weights["blocks.0.0.weight"] = torch.zeros(4, 2, 3, 3)
    refused(
        write(tmp_path / "b.safetensors", weights), r"blocks.0.0.weight is \(4, 2, 3, 3\)(.|\n)*name the architecture"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["classifier.weight", "blocks.0.1.running_var"])
def test_values_that_are_not_finite(tmp_path: Path, weights: dict[str, torch.Tensor], value: float, name: str) -> None:
    weights[name].view(-1)[1] = value
    refused(write(tmp_path / "w.safetensors", weights), rf"NaN or infinite values \(1 in {name}\)")


def test_integers_for_floats(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["classifier.bias"] = torch.zeros(3, dtype=torch.int8)
    refused(write(tmp_path / "w.safetensors", weights), "has int8 values")


def test_files_that_are_not_weights(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    whole = write(tmp_path / "w.safetensors", weights).read_bytes()
    for cut in (0, 4, 100, len(whole) - 5):
        (tmp_path / "cut.safetensors").write_bytes(whole[:cut])
        refused(tmp_path / "cut.safetensors", "is not a complete safetensors file", FileError)
    torch.save(weights, tmp_path / "zip.safetensors")
    refused(tmp_path / "zip.safetensors", "is a pickle", FileError)
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "is a pickle", FileError)
    refused(tmp_path / "absent.safetensors", "no such file", FileError)
    refused(tmp_path, "cannot be read", FileError)
