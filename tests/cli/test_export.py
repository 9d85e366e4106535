"""`expunge export`: the exported file can be imported again unchanged."""

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


@pytest.mark.parametrize("format", ["dense", "torch-prune"])
def test_exported_weights_can_be_imported(line: Line, elsewhere: Path, format: str) -> None:
    model = elsewhere / "pruned"
    result = line("export", str(model), "--format", format, "-o", "out/weights.safetensors", "--json")
    assert result.code == 0, result.err
    assert result.json["format"] == format
    assert result.json["parameters_before"] == result.json["parameters_after"] == 64 * 12 + 12 + 120 + 10
    given = ["model.weights=out/weights.safetensors", f"split.file={model / 'split.json'}"]
    given += ["model.mask=zeros"] if format == "dense" else []
    checked = line("check", "config.yaml", *given, "model.pruned={criterion: magnitude, layers: [linear]}")
    assert checked.code == 0, checked.out
    assert "50.00 % of" in checked.out
    mask, tensors = Mask.load(model / "mask.safetensors"), load_file(line.directory / "out/weights.safetensors")
    for name, kept in mask.kept.items():
        if format == "dense":
            assert torch.equal(tensors[name] != 0, kept)
        else:
            assert torch.equal(tensors[name + "_mask"].bool(), kept)


@pytest.mark.parametrize("backend", ["slots", "torch-pruning"])
def test_a_smaller_network_is_exported(line: Line, narrow: Path, backend: str) -> None:
    if backend == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
    result = line("export", str(narrow), "--format", "small", "--backend", backend, "-o", "small.safetensors")
    assert result.code == 0, result.err
    assert "685 of 910 parameters; logits within" in result.out  # 9 of 12 channels: 9 x 65 + 10 x 10
    trained = load_trained(narrow)
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(load_small_model(line.directory / "small.safetensors")(x), trained.model.eval()(x), atol=1e-5)


def test_what_cannot_be_exported(line: Line, elsewhere: Path, narrow: Path) -> None:
    dense, sparse = str(elsewhere / "trained"), str(elsewhere / "pruned")
    (line.directory / "link").symlink_to(elsewhere / "pruned")
    for arguments, words in (
        ((dense, "--format", "small", "-o", "a"), "the model is dense"),
        ((dense, "--format", "torch-prune", "-o", "a"), "the model is dense"),
        ((sparse, "--format", "small", "-o", "a"), "no coupled channel is masked as a whole"),
        ((sparse, "--backend", "torch-pruning", "-o", "a"), "only the format `small`"),
        ((sparse, "-o", str(elsewhere / "pruned/model.safetensors")), "is in the directory of a model"),
        ((sparse, "-o", str(elsewhere / "pruned/new")), "is in the directory of a model"),
        ((sparse, "-o", str(elsewhere / "trained/state/rewind_checkpoint.safetensors")), "is in the directory of"),
        ((sparse, "-o", str(line.directory / "link/x.safetensors")), "is in the directory of a model"),
        ((sparse, "-o", "config.yaml"), "exists, and this command did not write it"),
        ((sparse, "-o", "config.yaml/w.safetensors"), "its directory is not writable"),
        ((sparse, "-o", "/proc/nowhere/w.safetensors"), "/proc/nowhere"),
        ((sparse, "--format", "small", "-o", "new/deep/w.safetensors"), "no coupled channel is masked as a whole"),
        ((sparse, "-o", str(elsewhere)), "is a directory"),
        ((str(line.directory / "nowhere"), "-o", "a"), "nowhere"),
    ):
        result = line("export", *arguments)
        assert result.code == 2, (arguments, result)
        assert words in result.err
        assert not (line.directory / "a").exists()
        assert not (line.directory / "new").exists()
    for name in ("w.pt", "w.onnx", "w.bin"):
        result = line("export", sparse, "-o", name)
        assert (result.code, "name it w.safetensors" in result.err) == (2, True)
    for arguments, words in (
        (("evaluate", "config.yaml", "--model", sparse, "-o", "s.csv"), "written as JSON, not as .csv"),
        (("bench", "figure", "plan.yaml", "--score", "UA", "--output", "f.png"), "name it f.svg"),
        (("bench", "run", "config.yaml", "--results", "."), "."),
        (("forget", "config.yaml", "-o", "."), "cannot be replaced as a whole"),
    ):
        result = line(*arguments)
        assert (result.code, words in result.err) == (2, True), result
    for _ in range(2):  # an earlier export may be replaced
        assert line("export", dense, "-o", "a").code == 0
        assert (line.directory / "a").exists()
    for model in ("trained", "pruned"):
        assert load_trained(elsewhere / model).model is not None


def test_a_patched_model_is_not_its_weights(line: Line, elsewhere: Path) -> None:
    given = [f"model.weights={elsewhere / 'trained/model.safetensors'}", f"split.file={elsewhere}/trained/split.json"]
    result = line("forget", "config.yaml", *given, "method.name=patch", "method.options={}", "-o", "patched")
    assert result.code == 0, result.err
    result = line("export", "patched", "-o", "a")
    assert result.code == 2
    assert "the model is patched" in result.err
