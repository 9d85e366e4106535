"""Files of physically smaller networks: their masks are restored, and damaged files are refused with the reason."""

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
from expunge.sparsity import PrunedBy, Rule, import_model, load_small_model, make_mask, save_small_model, shrink

Tensors = dict[str, torch.Tensor]
LENET = Architecture("lenet5", {}, (1, 28, 28), 4)


def written(path: Path, mask: Mask, blueprint: Architecture = LENET) -> Path:
    """Write a file of `save_small_model`, of a network with random weights."""
    model, none = blueprint.build(0).eval(), as_ids(())
    trained = Trained(model, mask, Split(none, none, none, none, none), Provenance(blueprint.to_json()))
    save_small_model(shrink(model, mask, blueprint.input_shape), trained, path)
    return path


def filters(layers: tuple[str, ...] = ("conv",), blueprint: Architecture = LENET) -> Mask:
    rule = Rule("filter-l2", "filter", "layer", layers, 0.5)
    return make_mask(blueprint.build(0), rule, input_shape=blueprint.input_shape, schedule="omp")[0]


def test_the_mask_is_restored_with_its_provenance(tmp_path: Path) -> None:
    """Only convolutions were pruned: no linear layer is named, and the sparsity is the fraction of their channels."""
    mask = filters()
    path = written(tmp_path / "s.safetensors", mask)
    assert not any(name.startswith("mask/") for name in read_tensors(path)[0])  # the channels determine the mask
    found = import_model(LENET, path).mask
    assert found is not None
    assert set(found.kept) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert found.hash() == mask.hash()
    assert found.provenance == mask.provenance


def test_single_pruned_weights_beside_pruned_channels_are_restored(tmp_path: Path) -> None:
    mask = filters()
    generator = torch.Generator().manual_seed(0)
    kept = {name: bits & (torch.rand(bits.shape, generator=generator) < 0.5) for name, bits in mask.kept.items()}
    kept = {name: bits if bits.dim() > 1 else mask.kept[name] for name, bits in kept.items()}
    kept["fc1.weight"] = torch.rand(120, 400, generator=generator) < 0.5
    mixed = Mask(kept, MaskProvenance("magnitude by hand", granularity="weight"))
    found = import_model(LENET, written(tmp_path / "s.safetensors", mixed)).mask
    assert found is not None
    assert found.hash() == mixed.hash()


def test_a_file_without_a_mask_loads_as_before(tmp_path: Path) -> None:
    """An early release wrote no mask: the channels of every layer are named, and the criterion is unknown."""
    mask = filters()
    path = written(tmp_path / "s.safetensors", mask)
    tensors, metadata = read_tensors(path)
    del metadata["mask"]
    write_tensors(path, tensors, metadata)
    load_small_model(path)
    found = import_model(LENET, path, pruned=PrunedBy("filter-l2", "layer", ("conv",))).mask
    assert found is not None
    assert found.provenance.granularity == "filter"
    assert all(torch.equal(found.kept[name], bits) for name, bits in mask.kept.items())
    unknown = import_model(LENET, path).mask
    assert unknown is not None
    assert unknown.provenance.criterion == "unknown"


def change(key: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, metadata: tensors.update({key: edit(tensors[key])})


def replace(key: str, value: Any = None) -> Callable[[Tensors, dict[str, Any]], None]:
    def edit(tensors: Tensors, metadata: dict[str, Any]) -> None:
        del metadata[key]
        if value is not None:
            metadata[key] = value

    return edit


def drop(key: str) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, metadata: tensors.__delitem__(key)


ROW = "kept/conv1.weight:0"
DAMAGE: dict[str, tuple[Callable[[Tensors, dict[str, Any]], None], str]] = {
    "out of range": (change(ROW, lambda t: t + 1000), "kept indices must lie in 0 to 5"),
    "negative": (change(ROW, lambda t: t - 100), "kept indices must lie in 0 to 5"),
    "float": (change(ROW, lambda t: t.float()), "int64 numbers, not float32"),
    "two rows": (change(ROW, lambda t: t[None]), "of shape"),
    "descending": (change(ROW, lambda t: t.flip(0)), "must ascend"),
    "other channels than its bias": (change(ROW, lambda t: t[:-1]), "contradict each other"),
    "no place": (lambda t, m: t.update({"kept/abc": t.pop(ROW)}), "names a tensor that its architecture"),
    "no dimension": (
        lambda t, m: t.update({"kept/conv1.weight:x": t.pop(ROW)}),
        "names a tensor that its architecture",
    ),
    "dropped": (drop(ROW), "contradict each other"),
    "no architecture": (replace("architecture"), "does not record the architecture"),
    "architecture as a string": (replace("architecture", "lenet5"), "does not record the architecture"),
    "half an architecture": (replace("architecture", {"name": "lenet5"}), "has no input_shape, classes"),
    "unknown architecture": (
        replace("architecture", {"name": "lenet6", "input_shape": [1, 28, 28], "classes": 4}),
        "unknown model 'lenet6'",
    ),
    "a missing tensor": (drop("state/fc3.bias"), "do not fit the architecture"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    tensors, metadata = read_tensors(path)
    edit, message = DAMAGE[damage]
    edit(tensors, metadata)
    write_tensors(path, tensors, metadata)
    for read in (load_small_model, lambda path: import_model(LENET, path)):
        with pytest.raises(FileError, match=message):
            read(path)


def test_a_file_cannot_name_a_program_to_run(tmp_path: Path) -> None:
    """A custom factory is imported and called, so an imported file must not choose it."""
    path, trace = written(tmp_path / "s.safetensors", filters()), tmp_path / "trace"
    tensors, metadata = read_tensors(path)
    body = {"name": "os:mkdir", "options": {"path": str(trace)}, "input_shape": [1, 28, 28], "classes": 4}
    write_tensors(path, tensors, {**metadata, "architecture": body})
    with pytest.raises(ModelError, match="was cut from os:mkdir"):
        import_model(LENET, path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("recorded", "message"),
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
def test_a_damaged_mask_in_the_file_is_refused(tmp_path: Path, recorded: Any, message: str) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "mask": recorded})
    load_small_model(path)  # the network itself is not damaged
    with pytest.raises(FileError, match=message):
        import_model(LENET, path)


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


def test_the_declaration_must_agree_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "s.safetensors", filters())
    import_model(LENET, path, pruned=PrunedBy("filter-l2", "layer", ("conv",)))
    for declared, key in (
        (PrunedBy("FPGM", "layer"), "criterion filter-l2 for its mask, but model.pruned declares FPGM"),
        (PrunedBy("filter-l2", "global"), "scope layer for its mask, but model.pruned declares global"),
        (PrunedBy("filter-l2", "layer", ("linear",)), "layers"),
    ):
        with pytest.raises(ExpungeError, match=key):
            import_model(LENET, path, pruned=declared)


def test_a_masked_network_that_gives_other_outputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.sparsity.compression import small_model as small_model_files

    path = written(tmp_path / "small.safetensors", filters())
    rebuilt = small_model_files._rebuild

    def off(*arguments: Any) -> torch.nn.Module:
        small = rebuilt(*arguments)
        last = [module for module in small.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias.data += 1e-3
        return small

    assert small_model_files.restore_masked_model(path)
    monkeypatch.setattr(small_model_files, "_rebuild", off)
    with pytest.raises(MaskError, match="the masked network differs from the smaller one"):
        small_model_files.restore_masked_model(path)


def test_reading_a_file_draws_no_random_numbers(tmp_path: Path) -> None:
    """The records on which both networks are compared come from their own generator."""
    path = written(tmp_path / "s.safetensors", filters())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    import_model(LENET, path)
    assert torch.equal(torch.get_rng_state(), before)
