"""Weights from a file: what is taken, what is refused, and that the caller's model stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from expunge.core.errors import FileError, ModelError
from expunge.core.hashing import hash_tensors
from expunge.core.trained import plain_state
from expunge.data.records import Normalisation
from expunge.models import Architecture, load_tensors, load_weights
from expunge.models.normalise import Normalised
from expunge.models.weights import find_prefix, read_weights

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
    refused(write(tmp_path / "a.safetensors", without), r"1 tensor of the model is missing .*classifier\.bias")
    refused(
        write(tmp_path / "b.safetensors", {**weights, "extra": torch.zeros(1)}),
        r"1 tensor of the file is unknown to the model \(extra\)",
    )
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
    write(tmp_path / "b.safetensors", {"weight": torch.zeros(3, 5), "bias": torch.zeros(3)})  # as many classes
    with pytest.raises(ModelError, match=r"1 tensor has another shape(.|\n)*name the architecture"):
        load_weights(nn.Linear(4, 3), tmp_path / "b.safetensors")
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
    refused(tmp_path, "has no model.safetensors, only a pickle", FileError)


class Tied(nn.Module):
    """An encoder and a decoder with one weight, and a second linear layer that is a view of its first row."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2, bias=False)
        self.decoder = nn.Linear(3, 2, bias=False)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool))


def tied_file(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(4), "flags": torch.ones(2) > 0}
    return {**tensors, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.weight", "module.encoder.weight"),
        ("module.encoder.weight", "encoder.weight"),
        ("_orig_mod.encoder.weight", "module._orig_mod.encoder.weight"),
        ("encoder._orig_mod.weight", "encoder.weight"),
    ],
)
def test_two_copies_of_a_weight_are_refused(tmp_path: Path, one: str, other: str) -> None:
    """Moving averages beside the weights: the last one in the file took the place of the first."""
    tensors = {**tied_file(), one: torch.zeros(2, 3), other: torch.ones(2, 3)}
    with pytest.raises(ModelError, match=r"w\.safetensors: encoder\.weight: .* and .* are one weight"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tensors))


def test_two_copies_behind_the_normalisation_are_refused(tmp_path: Path) -> None:
    model = Normalised(nn.Identity(), nn.Linear(3, 2))
    tensors = {n: torch.zeros(t.shape) for n, t in model.state_dict().items()}
    path = write(tmp_path / "w.safetensors", {**tensors, "weight": torch.ones(2, 3)})
    with pytest.raises(ModelError, match=r"network\.weight and weight are one weight|weight and network\.weight are"):
        load_weights(model, path)


def test_tied_tensors_with_two_values_are_refused(tmp_path: Path) -> None:
    value = torch.arange(6.0).reshape(2, 3)
    same = write(tmp_path / "same.safetensors", tied_file(decoder__weight=value.clone()))
    assert load_weights(Tied(), same).decoder.weight.tolist() == value.tolist()
    path = write(tmp_path / "w.safetensors", tied_file(decoder__weight=value + 1))
    with pytest.raises(ModelError, match=r"(encoder|decoder)\.weight: .* tied"):
        load_weights(Tied(), path)


@pytest.mark.parametrize("value", [torch.tensor(2.5), torch.tensor(3.0), torch.tensor(3.0).half()])
def test_floats_for_an_integer_buffer_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=r"steps: has float\d\d values, but the model has int64"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(steps=value)))


def test_integers_keep_their_values(tmp_path: Path) -> None:
    loaded = load_weights(
        Tied(), write(tmp_path / "w.safetensors", tied_file(steps=torch.tensor(7, dtype=torch.int16)))
    )
    assert int(loaded.steps) == 7
    loaded = load_weights(Tied(), write(tmp_path / "v.safetensors", tied_file(flags=torch.tensor([1, 0]))))
    assert loaded.flags.tolist() == [True, False]
    with pytest.raises(ModelError, match="flags: has int64 values that do not fit the bool"):
        load_weights(Tied(), write(tmp_path / "u.safetensors", tied_file(flags=torch.tensor([2, 0]))))
    model = nn.Module()
    model.register_buffer("small", torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(ModelError, match="small: has int64 values that do not fit the uint8"):
        load_tensors(model, {"small": torch.tensor([300])}, "w")


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_values_that_overflow_are_refused(tmp_path: Path, value: float) -> None:
    weight = torch.ones(2, 3, dtype=torch.float64)
    weight[1, 1] = value
    with pytest.raises(ModelError, match=r"encoder\.weight: has values up to .*float32 of the model cannot represent"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(encoder__weight=weight)))


def test_weights_that_would_become_zero_are_refused(tmp_path: Path) -> None:
    """Otherwise they would be read as pruned."""
    weight = torch.ones(2, 3, dtype=torch.float64)
    weight[0] = 1e-60
    with pytest.raises(ModelError, match=r"encoder\.weight: 3 values are not 0 in the file \(float64\)"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(encoder__weight=weight)))
    norm = nn.BatchNorm1d(1)  # the variance of a constant channel may decay to nothing
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in norm.state_dict().items()}
    tensors["running_var"] = torch.tensor([1e-60], dtype=torch.float64)
    assert load_tensors(norm, tensors, "w").running_var.item() == 0


def test_rounding_is_allowed(tmp_path: Path) -> None:
    weight = torch.rand(2, 3, dtype=torch.float64)
    loaded = load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(encoder__weight=weight)))
    assert torch.equal(loaded.encoder.weight, weight.float())


def test_types_that_torch_cannot_compute_with_are_refused(tmp_path: Path) -> None:
    weight = torch.ones(2, 3).to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match=r"encoder\.weight: has float8_e4m3fn values"):
        load_tensors(Tied(), tied_file(encoder__weight=weight), "w")
    with pytest.raises(FileError, match=r"'F8_E4M3' are not read\n.*convert it to"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(encoder__weight=weight)))
    with pytest.raises(ModelError, match=r"steps: has complex64 values, but the model has int64"):
        load_tensors(Tied(), tied_file(steps=torch.tensor(1j)), "w")


def test_overflow_to_float16_is_explained(tmp_path: Path) -> None:
    weight = torch.full((2, 3), 1e5).half()
    with pytest.raises(ModelError, match=r"infinite values \(\d+ in encoder\.weight.*\n.*65,504"):
        load_weights(Tied(), write(tmp_path / "w.safetensors", tied_file(encoder__weight=weight)))


def test_a_shard_must_be_the_one_that_the_index_names(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"weight": torch.ones(2), "bias": torch.ones(1)})
    write(tmp_path / "b.safetensors", {"bias": torch.zeros(1)})
    index = {"weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"has bias, which the index has in b\.safetensors"):
        read_weights(tmp_path)


def test_a_prefix_is_one_that_all_names_have() -> None:
    known = {"weight", "bias"}.__contains__
    assert find_prefix(["model.weight", "model.bias"], known) == "model."
    assert find_prefix(["model.weight", "ema.bias"], known) == ""
