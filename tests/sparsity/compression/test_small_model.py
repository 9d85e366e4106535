"""Files of physically smaller networks: they bring their mask back, and damaged ones are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.core.errors import ExpungeError, FileError, MaskError, ModelError
from expunge.core.files import read_tensors, write_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.models import Architecture
from expunge.sparsity import PrunedBy, Rule, load_small, make_mask, read_arrived, save_small, shrink

Tensors = dict[str, torch.Tensor]
LENET = Architecture("lenet5", {}, (1, 28, 28), 4)


def written(path: Path, mask: Mask, blueprint: Architecture = LENET) -> Path:
    """A file of `save_small`, of a network with random weights."""
    model, none = blueprint.build(0).eval(), as_ids(())
    trained = Trained(model, mask, Split(none, none, none, none, none), Provenance(blueprint.to_json()))
    save_small(shrink(model, mask, blueprint.input_shape), trained, path)
    return path


def filters(layers: tuple[str, ...] = ("conv",), blueprint: Architecture = LENET) -> Mask:
    rule = Rule("filter-l2", "filter", "layer", layers, 0.5)
    return make_mask(blueprint.build(0), rule, input_shape=blueprint.input_shape, schedule="omp")[0]


def test_the_mask_comes_back_with_its_provenance(tmp_path: Path) -> None:
    """Convolutions alone were pruned: no linear layer is named, and the sparsity is the share of their channels."""
    mask = filters()
    path = written(tmp_path / "s.safetensors", mask)
    assert not any(name.startswith("mask/") for name in read_tensors(path)[0])  # which channels went says it all
    found = read_arrived(LENET, path).mask
    assert found is not None
    assert set(found.alive) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert found.hash() == mask.hash()
    assert found.provenance == mask.provenance


def test_single_dead_weights_beside_dead_channels_come_back_too(tmp_path: Path) -> None:
    mask = filters()
    generator = torch.Generator().manual_seed(0)
    alive = {name: bits & (torch.rand(bits.shape, generator=generator) < 0.5) for name, bits in mask.alive.items()}
    alive = {name: bits if bits.dim() > 1 else mask.alive[name] for name, bits in alive.items()}
    alive["fc1.weight"] = torch.rand(120, 400, generator=generator) < 0.5
    mixed = Mask(alive, MaskProvenance("magnitude by hand", granularity="weight"))
    found = read_arrived(LENET, written(tmp_path / "s.safetensors", mixed)).mask
    assert found is not None
    assert found.hash() == mixed.hash()


def test_a_file_without_a_mask_loads_as_before(tmp_path: Path) -> None:
    """An early release wrote no mask: channels of every layer are named, and nothing is known of the criterion."""
    mask = filters()
    path = written(tmp_path / "s.safetensors", mask)
    tensors, metadata = read_tensors(path)
    del metadata["mask"]
    write_tensors(path, tensors, metadata)
    load_small(path)
    found = read_arrived(LENET, path, pruned=PrunedBy("filter-l2", "layer", ("conv",))).mask
    assert found is not None
    assert found.provenance.granularity == "filter"
    assert all(torch.equal(found.alive[name], bits) for name, bits in mask.alive.items())
    unknown = read_arrived(LENET, path).mask
    assert unknown is not None
    assert unknown.provenance.criterion == "unknown"


def change(key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, metadata: tensors.update({key: edit(tensors[key])})


def forget(key: str, value: Any = None) -> Callable[[Tensors, dict[str, Any]], None]:
    def edit(tensors: Tensors, metadata: dict[str, Any]) -> None:
        del metadata[key]
        if value is not None:
            metadata[key] = value

    return edit


def drop(key: str) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, metadata: tensors.__delitem__(key)


ROW = "kept/conv1.weight:0"
DAMAGE: dict[str, tuple[Callable[[Tensors, dict[str, Any]], None], str]] = {
    "out of range": (change(ROW, lambda t: t + 1000), "kept indices lie in 0 to 5"),
    "negative": (change(ROW, lambda t: t - 100), "kept indices lie in 0 to 5"),
    "float": (change(ROW, lambda t: t.float()), "int64 numbers, not float32"),
    "two rows": (change(ROW, lambda t: t[None]), "of shape"),
    "descending": (change(ROW, lambda t: t.flip(0)), "ascend"),
    "other channels than its bias": (change(ROW, lambda t: t[:-1]), "contradict each other"),
    "no place": (lambda t, m: t.update({"kept/abc": t.pop(ROW)}), "names a tensor that its architecture"),
    "no dimension": (
        lambda t, m: t.update({"kept/conv1.weight:x": t.pop(ROW)}),
        "names a tensor that its architecture",
    ),
    "dropped": (drop(ROW), "contradict each other"),
    "no architecture": (forget("architecture"), "does not say which architecture"),
    "architecture as text": (forget("architecture", "lenet5"), "does not say which architecture"),
    "half an architecture": (forget("architecture", {"name": "lenet5"}), "lacks input_shape, classes"),
    "unknown architecture": (
        forget("architecture", {"name": "lenet6", "input_shape": [1, 28, 28], "classes": 4}),
        "no model is called 'lenet6'",
    ),
    "a missing tensor": (drop("state/fc3.bias"), "do not fit the architecture"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    tensors, metadata = read_tensors(path)
    edit, says = DAMAGE[damage]
    edit(tensors, metadata)
    write_tensors(path, tensors, metadata)
    for read in (load_small, lambda path: read_arrived(LENET, path)):
        with pytest.raises(FileError, match=says):
            read(path)


def test_a_file_cannot_name_a_program_to_run(tmp_path: Path) -> None:
    """A factory of one's own is imported and called, so a file from elsewhere must not choose it."""
    path, trace = written(tmp_path / "s.safetensors", filters()), tmp_path / "trace"
    tensors, metadata = read_tensors(path)
    body = {"name": "os:mkdir", "options": {"path": str(trace)}, "input_shape": [1, 28, 28], "classes": 4}
    write_tensors(path, tensors, {**metadata, "architecture": body})
    with pytest.raises(ModelError, match="was cut from os:mkdir"):
        read_arrived(LENET, path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("conv", "its mask cannot be read"),
        ({}, "its mask cannot be read"),
        ({"tensors": ["conv9.weight"], "provenance": {"criterion": "magnitude"}}, "its mask cannot be read"),
        ({"tensors": ["conv1.weight"], "provenance": {"criterion": 3}}, "criterion is a name"),
        (
            {"tensors": ["conv1.weight"], "provenance": {"criterion": "magnitude"}, "hash": "0"},
            "does not have the hash",
        ),
    ],
)
def test_a_damaged_mask_in_it_is_refused(tmp_path: Path, told: Any, says: str) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "mask": told})
    load_small(path)  # the network itself is whole
    with pytest.raises(FileError, match=says):
        read_arrived(LENET, path)


def test_a_network_that_returns_a_dictionary_is_refused_with_the_reason() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))}

    model = Named()
    mask, _ = make_mask(model, Rule("magnitude", "filter", sparsity=0.5), input_shape=(1, 8, 8))
    with pytest.raises(MaskError, match="returns a dict"):
        shrink(model, mask, (1, 8, 8))


def test_what_the_owner_says_must_agree_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    read_arrived(LENET, path, pruned=PrunedBy("filter-l2", "layer", ("conv",)))
    for told, key in (
        (PrunedBy("FPGM", "layer"), "criterion filter-l2, model.pruned says FPGM"),
        (PrunedBy("filter-l2", "global"), "scope layer, model.pruned says global"),
        (PrunedBy("filter-l2", "layer", ("linear",)), "layers"),
    ):
        with pytest.raises(ExpungeError, match=key):
            read_arrived(LENET, path, pruned=told)


def test_a_masked_network_that_gives_other_outputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.sparsity.compression import small_model as small_files

    path = written(tmp_path / "small.safetensors", filters())
    rebuilt = small_files._rebuilt

    def off(*arguments: Any) -> torch.nn.Module:
        small = rebuilt(*arguments)
        last = [module for module in small.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias.data += 1e-3
        return small

    assert small_files.masked_from_small(path)
    monkeypatch.setattr(small_files, "_rebuilt", off)
    with pytest.raises(MaskError, match="the masked network differs from the smaller one"):
        small_files.masked_from_small(path)
