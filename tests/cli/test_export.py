"""`expunge export`: a model as one file, that comes back as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Line
from safetensors.torch import load_file

from expunge.core.mask import Mask
from expunge.models import load_trained
from expunge.sparsity import load_small_model


@pytest.fixture(scope="session")
def narrow(elsewhere: Path) -> Path:
    """A model with masked channels."""
    from expunge.cli.app import run

    sparse = ["sparsity.sparsity=0.25", "sparsity.layers=[linear]", "sparsity.granularity=filter"]
    place = elsewhere / "narrow"
    common = ["--store", str(elsewhere / "store"), "-o", str(place)]
    assert run(["prune", str(elsewhere / "config.yaml"), *sparse, "sparsity.criterion=filter-l2", *common]) == 0
    return place


@pytest.mark.parametrize("form", ["dense", "torch-prune"])
def test_weights_leave_and_come_back(line: Line, elsewhere: Path, form: str) -> None:
    model = elsewhere / "pruned"
    said = line("export", str(model), "--form", form, "-o", "out/weights.safetensors", "--json")
    assert said.code == 0, said.err
    assert said.json["form"] == form
    assert said.json["parameters_before"] == said.json["parameters_after"] == 64 * 12 + 12 + 120 + 10
    given = ["model.weights=out/weights.safetensors", f"split.file={model / 'split.json'}"]
    given += ["model.mask=zeros"] if form == "dense" else []
    told = line("check", "config.yaml", *given, "model.pruned={criterion: magnitude, layers: [linear]}")
    assert told.code == 0, told.out
    assert "50.00 % of" in told.out
    mask, tensors = Mask.load(model / "mask.safetensors"), load_file(line.place / "out/weights.safetensors")
    for name, alive in mask.kept.items():
        if form == "dense":
            assert torch.equal(tensors[name] != 0, alive)
        else:
            assert torch.equal(tensors[name + "_mask"].bool(), alive)


@pytest.mark.parametrize("backend", ["slots", "torch-pruning"])
def test_a_smaller_network_leaves(line: Line, narrow: Path, backend: str) -> None:
    if backend == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
    said = line("export", str(narrow), "--form", "small", "--backend", backend, "-o", "small.safetensors")
    assert said.code == 0, said.err
    assert "685 of 910 parameters; logits within" in said.out  # 9 of 12 channels: 9 x 65 + 10 x 10
    trained = load_trained(narrow)
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(load_small_model(line.place / "small.safetensors")(x), trained.model.eval()(x), atol=1e-5)


def test_what_cannot_leave(line: Line, elsewhere: Path, narrow: Path) -> None:
    dense, sparse = str(elsewhere / "trained"), str(elsewhere / "pruned")
    (line.place / "link").symlink_to(elsewhere / "pruned")
    for arguments, words in (
        ((dense, "--form", "small", "-o", "a"), "the model is dense"),
        ((dense, "--form", "torch-prune", "-o", "a"), "the model is dense"),
        ((sparse, "--form", "small", "-o", "a"), "no coupled channel is masked as a whole"),
        ((sparse, "--backend", "torch-pruning", "-o", "a"), "only the form `small`"),
        ((sparse, "-o", str(elsewhere / "pruned/model.safetensors")), "lies in the directory of a model"),
        ((sparse, "-o", str(elsewhere / "pruned/new")), "lies in the directory of a model"),
        ((sparse, "-o", str(elsewhere / "trained/state/rewind_checkpoint.safetensors")), "lies in the directory of"),
        ((sparse, "-o", str(line.place / "link/x.safetensors")), "lies in the directory of a model"),
        ((sparse, "-o", "config.yaml"), "is there already, and this command did not write it"),
        ((sparse, "-o", "config.yaml/w.safetensors"), "no directory may be written there"),
        ((sparse, "-o", "/proc/nowhere/w.safetensors"), "/proc/nowhere"),
        ((sparse, "--form", "small", "-o", "new/deep/w.safetensors"), "no coupled channel is masked as a whole"),
        ((sparse, "-o", str(elsewhere)), "is a directory"),
        ((str(line.place / "nowhere"), "-o", "a"), "nowhere"),
    ):
        said = line("export", *arguments)
        assert said.code == 2, (arguments, said)
        assert words in said.err
        assert not (line.place / "a").exists()
        assert not (line.place / "new").exists()
    for _ in range(2):  # an earlier export may be replaced
        assert line("export", dense, "-o", "a").code == 0
        assert (line.place / "a").exists()
    for model in ("trained", "pruned"):
        assert load_trained(elsewhere / model).model is not None


def test_a_patched_model_is_not_its_weights(line: Line, elsewhere: Path) -> None:
    given = [f"model.weights={elsewhere / 'trained/model.safetensors'}", f"split.file={elsewhere}/trained/split.json"]
    said = line("forget", "config.yaml", *given, "method.name=patch", "method.options={}", "-o", "patched")
    assert said.code == 0, said.err
    said = line("export", "patched", "-o", "a")
    assert said.code == 2
    assert "the model is patched" in said.err
