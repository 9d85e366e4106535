"""Trained models on disk: the same bits back, and every kind of damage refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from expunge.core.errors import DataError, FileError, MaskError, ModelError
from expunge.core.files import write_tensors
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.data.records import Normalisation, Records
from expunge.models import Architecture, adopt_plain_weights, load_trained, save_trained, write_trained

SPLIT = Split(*[[f"{part}{i}" for i in range(3)] for part in "rfvtu"], origin={"seed": 3})  # type: ignore[arg-type]
ARCH = Architecture("small-cnn", {"widths": [4, 6]}, (1, 8, 8), 3, Normalisation((0.5,), (0.25,)))


def half_pruned(model: nn.Module) -> Mask:
    """A random mask of the convolutions that keeps about half of the weights."""
    generator = torch.Generator().manual_seed(0)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.dim() == 4}
    return Mask(kept, MaskProvenance("random", layers=("conv",)))


@pytest.fixture
def trained() -> Trained:
    model = ARCH.build(7)
    for _ in range(3):
        model(torch.rand(9, 1, 8, 8))
    mask = half_pruned(model)
    mask.apply_(model)
    provenance = Provenance(
        architecture=ARCH.to_json(),
        data={"name": "made", "hash": "d" * 64},
        recipe={"epochs": 2},
        seeds={"initial": 7},
        history=("trained", "pruned"),
    )
    state = {"rewind_checkpoint": plain_state(ARCH.build(1)), "a-methods-own": {"x": torch.arange(3)}}
    return Trained(model, mask, SPLIT, provenance, state)


def same(a: Trained, b: Trained) -> None:
    assert a.hash == b.hash
    first, second = plain_state(a.model), plain_state(b.model)
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name
    assert (a.mask is None) == (b.mask is None)
    if a.mask is not None and b.mask is not None:
        assert a.mask.hash() == b.mask.hash()
        assert a.mask.provenance == b.mask.provenance
        assert not b.mask.count_violations(b.model)
        pruned = torch.cat([plain_state(b.model)[n][~t] for n, t in b.mask.kept.items()])
        assert len(pruned)
        assert not pruned.any()
        assert not torch.signbit(pruned).any()
    assert a.split.hash == b.split.hash
    assert a.split.origin == b.split.origin
    assert a.provenance.to_json() == b.provenance.to_json()
    assert {k: hash_tensors(v) for k, v in a.state.items()} == {k: hash_tensors(v) for k, v in b.state.items()}


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_bits_come_back(tmp_path: Path, trained: Trained, dense: bool) -> None:
    if dense:
        trained = dataclasses.replace(trained, mask=None)
    save_trained(trained, tmp_path / "deep" / "model")
    back = load_trained(tmp_path / "deep" / "model")
    same(trained, back)
    assert int(plain_state(back.model)["blocks.0.1.num_batches_tracked"]) == 3
    assert not back.model.training
    assert (tmp_path / "deep" / "model" / "mask.safetensors").exists() is not dense
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"], "nothing temporary stays"


def test_again_and_again(tmp_path: Path, trained: Trained) -> None:
    save_trained(trained, tmp_path / "a")
    save_trained(load_trained(tmp_path / "a"), tmp_path / "b")
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_deepcopy_of_a_loaded_model(tmp_path: Path, trained: Trained) -> None:
    save_trained(trained, tmp_path / "a")
    back = load_trained(tmp_path / "a")
    copied = copy.deepcopy(back)
    same(back, copied)
    with torch.no_grad():
        next(copied.model.parameters()).add_(1.0)
    same(trained, back)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet20", "alexnet", "cnn1d"])
def test_every_kind_of_network_comes_back(tmp_path: Path, name: str) -> None:
    shape = (2, 16) if name == "cnn1d" else (1, 28, 28)
    arch = Architecture(name, {"hidden": 8} if name == "alexnet" else {}, shape, 3)
    trained = Trained(arch.build(2), None, SPLIT, Provenance(arch.to_json()))
    save_trained(trained, tmp_path / "a")
    back = load_trained(tmp_path / "a")
    same(trained, back)
    x = torch.rand(2, *shape)
    assert torch.equal(trained.model.eval()(x), back.model(x))


def test_a_channels_last_model_comes_back(tmp_path: Path, trained: Trained) -> None:
    turned = dataclasses.replace(trained, model=copy.deepcopy(trained.model).to(memory_format=torch.channels_last))
    save_trained(turned, tmp_path / "a")
    same(trained, load_trained(tmp_path / "a"))


def test_a_users_network_is_made_by_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from torch import nn\n"
        "def make(classes, width=4): return nn.Sequential(nn.Linear(5, width), nn.Linear(width, classes))\n"
    )
    (tmp_path / "own_stored_network.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    arch = Architecture("own_stored_network:make", {"width": 6}, (5,), 3)
    trained = Trained(arch.build(3), None, SPLIT, Provenance(arch.to_json()))
    save_trained(trained, tmp_path / "a")
    back = load_trained(tmp_path / "a")
    same(trained, back)
    same(back, copy.deepcopy(back))


def test_influence_bearing_state_is_recorded(tmp_path: Path, trained: Trained) -> None:
    measured = dataclasses.replace(ARCH, normalisation=Normalisation((0.5,), (0.25,), "training records"))
    provenance = dataclasses.replace(trained.provenance, architecture=measured.to_json())
    save_trained(dataclasses.replace(trained, provenance=provenance), tmp_path / "a")
    body = json.loads((tmp_path / "a" / "trained.json").read_text())
    wanted = ["weights", "batch_norm", "mask", "rewind_checkpoint", "normalisation", "a-methods-own"]
    assert (body["kind"], body["schema_version"], body["influence_state"]) == ("expunge.trained", 2, wanted)
    assert list(load_trained(tmp_path / "a").list_influence_state()) == wanted


# --- refused when it is written ---------------------------------------------------------------------------------------


def test_pruned_weights_that_are_not_zero_are_not_saved(tmp_path: Path, trained: Trained) -> None:
    assert trained.mask is not None
    name = next(iter(trained.mask.kept))
    with torch.no_grad():
        weight = dict(trained.model.named_parameters())[name]
        weight[~trained.mask.kept[name]] = -0.0
    count = int((~trained.mask.kept[name]).sum())
    with pytest.raises(ModelError, match=f"masked weights in 1 tensor are not .0.0: {count:,} weights"):
        save_trained(trained, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_model_that_its_provenance_does_not_describe_is_not_saved(tmp_path: Path, trained: Trained) -> None:
    other = Architecture("small-cnn", {"widths": [4, 7]}, (1, 8, 8), 3, ARCH.normalisation)
    for body, says in [
        (other.to_json(), "does not match its provenance"),
        (dataclasses.replace(ARCH, normalisation=None).to_json(), "normalise.mean is unknown"),
        ({}, "has no name"),
    ]:
        wrong = dataclasses.replace(trained, provenance=Provenance(body))
        with pytest.raises(ModelError, match=says):
            save_trained(wrong, tmp_path / "a")
    half = dataclasses.replace(trained, model=copy.deepcopy(trained.model).bfloat16())
    with pytest.raises(ModelError, match="bfloat16"):
        save_trained(half, tmp_path / "a")
    bad_kind = dataclasses.replace(trained, state={"../out": {"x": torch.zeros(1)}})
    with pytest.raises(ModelError, match="cannot be named"):
        save_trained(bad_kind, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_directory_with_other_contents_is_not_replaced(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(FileError, match="is not a trained model"):
            save_trained(trained, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_trained(trained, tmp_path / "empty")
    save_trained(dataclasses.replace(trained, mask=None, state={}), tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["model.safetensors", "split.json", "trained.json"]


@pytest.mark.parametrize(("code", "says"), [(28, "the disk is full"), (27, "cannot be written")])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    """The error is the one that safetensors raises on a full tmpfs (28) or past a file size limit (27)."""
    save_trained(trained, tmp_path / "a")

    def fails(*_: object, **__: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: no luck (os error {code})")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(FileError, match=says):
        save_trained(dataclasses.replace(trained, mask=None), tmp_path / "a")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    same(trained, load_trained(tmp_path / "a"))


def test_files_can_be_written_beside_others(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "scores.json").write_text("{}")
    write_trained(trained, tmp_path)
    same(trained, load_trained(tmp_path))
    assert (tmp_path / "scores.json").exists()


# --- refused when it is read ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, trained: Trained) -> Path:
    save_trained(trained, tmp_path / "a")
    return tmp_path / "a"


def rewrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(path, tensors)


def edit(path: Path, *keys: str, value: object) -> None:
    body = json.loads(path.read_text())
    inner = body
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(body))


def test_changed_weights_are_noticed(saved: Path) -> None:
    tensors = load_file(str(saved / "model.safetensors"))
    tensors["classifier.bias"][0] += 1e-6
    rewrite(saved / "model.safetensors", tensors)
    with pytest.raises(FileError, match=r"model.safetensors: does not have the hash"):
        load_trained(saved)


def test_masked_weights_that_are_not_zero_are_counted(saved: Path, trained: Trained) -> None:
    """Weights edited together with their recorded hash: the mask itself still tells."""
    assert trained.mask is not None
    tensors = load_file(str(saved / "model.safetensors"))
    name = "blocks.1.0.weight"
    pruned = (~trained.mask.kept[name]).nonzero()[:5]
    for index in pruned:
        tensors[name][tuple(index)] = 1e-30
    rewrite(saved / "model.safetensors", tensors)
    edit(saved / "trained.json", "hashes", "weights", value=hash_tensors(tensors))
    with pytest.raises(ModelError, match=rf"masked weights in 1 tensor are not \+0.0: 5 weights \(most: {name}, 5\)"):
        load_trained(saved)


def test_another_mask_state_or_split(saved: Path, trained: Trained) -> None:
    assert trained.mask is not None
    shutil.copytree(saved, saved.with_name("b"))
    other = dict(trained.mask.kept)
    name = next(iter(other))
    other[name] = ~other[name]
    Mask(other, trained.mask.provenance).save(saved / "mask.safetensors")
    with pytest.raises(FileError, match=r"mask.safetensors: does not have the hash"):
        load_trained(saved)
    saved = saved.with_name("b")
    shutil.copytree(saved, saved.with_name("c"))
    rewrite(saved / "state" / "a-methods-own.safetensors", {"x": torch.arange(4)})
    with pytest.raises(FileError, match=r"a-methods-own.safetensors: does not have the hash"):
        load_trained(saved)
    saved = saved.with_name("c")
    SPLIT.move_to_forget(["r0"]).save(saved / "split.json")
    with pytest.raises(FileError, match=r"split.json: does not have the hash"):
        load_trained(saved)
    edit(saved / "split.json", "retain", value=["r0"])
    with pytest.raises(DataError, match=r"split\.json"):
        load_trained(saved)


def test_a_mask_of_another_shape(saved: Path, trained: Trained) -> None:
    mask = Mask({"blocks.0.0.weight": torch.ones(2, 2, dtype=torch.bool)}, MaskProvenance("random"))
    mask.save(saved / "mask.safetensors")
    edit(saved / "trained.json", "hashes", "mask", value=mask.hash())
    with pytest.raises(MaskError, match=r"the mask has shape \(2, 2\), the weight \(4, 1, 3, 3\)"):
        load_trained(saved)


def test_a_mask_that_is_not_recorded(saved: Path) -> None:
    edit(saved / "trained.json", "hashes", "mask", value=None)
    with pytest.raises(FileError, match="records no mask"):
        load_trained(saved)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "mask.safetensors", "split.json", "trained.json", "state/rewind_checkpoint.safetensors"],
)
def test_files_that_are_missing_or_cut(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=name.rsplit("/", 1)[-1]):
        load_trained(saved)
    (saved / name).unlink()
    with pytest.raises(FileError, match="no such file"):
        load_trained(saved)


def test_a_pickle_in_place_of_the_weights(saved: Path) -> None:
    torch.save({"x": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(FileError, match="is a pickle"):
        load_trained(saved)


@pytest.mark.parametrize("text", ["{", "[]", '{"aliases": {"x": "no such tensor"}}', '{"aliases": 3}'])
def test_damaged_metadata(saved: Path, text: str) -> None:
    tensors = load_file(str(saved / "model.safetensors"))
    save_file(tensors, str(saved / "model.safetensors"), metadata={"expunge": text})
    with pytest.raises(FileError, match="metadata"):
        load_trained(saved)


def test_trained_json_with_missing_or_unknown_keys(saved: Path) -> None:
    text = (saved / "trained.json").read_text()
    for keys, value, error, says in [
        (("hashes",), {}, FileError, "hashes: the key 'weights' is missing"),
        (("provenance",), {}, FileError, "provenance: the key 'architecture' is missing"),
        (("hashes",), None, FileError, "hashes: is None, not a mapping"),
        (("hashes", "state"), {"../split": "x"}, FileError, "cannot be named"),
        (("schema_version",), 99, FileError, "schema_version 99"),
        (("kind",), "expunge.split", FileError, "expunge.split"),
        (("provenance", "architecture", "name"), "small-cn", ModelError, "did you mean 'small-cnn'"),
        (("provenance", "architecture", "options", "widths"), [4, 7], ModelError, "do not fit the architecture"),
    ]:
        edit(saved / "trained.json", *keys, value=value)
        with pytest.raises(error, match=says):
            load_trained(saved)
        (saved / "trained.json").write_text(text)
    load_trained(saved)


# --- weights from elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture
def records() -> Records:
    ids = [f"{part}{i}" for part in "rfvtu" for i in range(3)]
    features = np.random.default_rng(0).integers(0, 255, (15, 1, 8, 8), dtype=np.uint8)
    return Records("made", ids, np.arange(15) % 3, ("a", "b", "c"), features=features)  # type: ignore[arg-type]


def test_adopted_weights_know_where_they_came_from(tmp_path: Path, trained: Trained, records: Records) -> None:
    assert trained.mask is not None
    save_file(plain_state(trained.model), str(tmp_path / "w.safetensors"))
    trained.mask.save(tmp_path / "m.safetensors")
    back = adopt_plain_weights(ARCH, tmp_path / "w.safetensors", records, SPLIT, mask=tmp_path / "m.safetensors")
    assert back.hash == trained.hash == back.provenance.weights_from
    assert back.mask is not None
    assert back.mask.hash() == trained.mask.hash()
    assert back.provenance.data == {"name": "made", "hash": records.hash}
    assert "normalisation" not in back.list_influence_state()
    save_trained(back, tmp_path / "a")
    same(back, load_trained(tmp_path / "a"))


def test_a_mask_that_the_imported_weights_violate(tmp_path: Path, trained: Trained, records: Records) -> None:
    assert trained.mask is not None
    save_file(plain_state(ARCH.build()), str(tmp_path / "w.safetensors"))
    trained.mask.save(tmp_path / "m.safetensors")
    pruned = trained.mask.total - trained.mask.kept_count
    with pytest.raises(ModelError, match=f"masked weights in . tensors are not .0.0: {pruned} weights"):
        adopt_plain_weights(ARCH, tmp_path / "w.safetensors", records, SPLIT, mask=tmp_path / "m.safetensors")


def test_constants_of_unknown_origin_count_as_memory(tmp_path: Path, trained: Trained, records: Records) -> None:
    tensors = {**plain_state(trained.model), "normalise.mean": torch.tensor([0.75])}
    save_file(tensors, str(tmp_path / "w.safetensors"))
    back = adopt_plain_weights(ARCH, tmp_path / "w.safetensors", records, SPLIT)
    assert "normalisation" in back.list_influence_state()
    assert back.provenance.architecture["normalisation"]["mean"] == [0.75]
