"""Bad input: a clear message, a non-zero exit, no partial results, nothing trained first."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Line
from safetensors.torch import load_file, save_file

from expunge.core import files
from expunge.core.mask import Mask, MaskProvenance

FORGET = ("forget", "config.yaml")


def refused(line: Line, *arguments: str, says: str, code: int = 2) -> str:
    """Run a command that must fail: message, exit code, no output, no stage of training in the store."""
    before = {path for path in line.directory.rglob("*") if ".expunge" not in path.parts}
    result = line(*arguments, "--json")
    assert says in result.err, result.err
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "bug of expunge" not in result.err
    assert {path for path in line.directory.rglob("*") if ".expunge" not in path.parts} == before
    assert not [p for p in (line.directory / ".expunge").rglob("*") if p.parent.name in ("train", "forget", "score")]
    assert not list((line.directory / ".expunge").glob("entries/*/.*"))
    return result.err


def adopt(model: Path, **files: Path) -> list[str]:
    """Overrides that import a model."""
    named = {"weights": model / "model.safetensors", "mask": model / "mask.safetensors", **files}
    given = [f"model.{key}={path}" for key, path in named.items() if path.exists()]
    return [*given, f"split.file={model / 'split.json'}"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["forget={by: ids, ids: [nobody]}"], "nobody: no such record in digits"),
        (["forget={by: ids, file: ids.txt}"], "no such file"),
        (["forget={by: class, name: eleven}"], "digits has no class 'eleven'"),
        (["forget={by: random, count: 0}"], "the forget set is empty"),
        (["forget={by: ids, ids: []}"], "the forget set is empty"),
        (["forget={by: random, fraction: 1.0}"], "the retain set would be empty"),
        (["forget={by: subjects, subjects: [a]}"], "records have no subject ids"),
        (["forget={by: randon, count: 3}"], "did you mean 'random'"),
        (["forget.fractoin=0.2"], "did you mean 'fraction'"),
        (["method.name=FTT"], "did you mean 'FT'"),
        (["method.options.epoch=3"], "did you mean 'epochs'"),
        (["method.options.epochs=-1"], "FT.epochs: epochs = -1 is out of range"),
        (["method.options.epochs=many"], "option epochs of FT must be int, not str"),
        (["model.name=mpl"], "did you mean 'mlp'"),
        (["model.options.width=3"], "did you mean 'widths'"),
        (["model.name=nowhere:factory"], "no module named 'nowhere' can be imported"),
        (["training.recipe=onecycle"], "did you mean 'one-cycle'"),
        (["training.epoch=3"], "did you mean 'epochs'"),
        (["training.epochs=0"], "training.epochs: 0 epochs: nothing would be learned"),
        (["trainning.epochs=3"], "did you mean 'training'"),
        (["data.source=digit"], "did you mean 'digits'"),
        (["sparsity.layers=[convolution]"], "did you mean 'conv'"),
        (["sparsity.layers=[conv]"], "the model has no conv layer to prune"),
        (["sparsity.sparsity=1.5"], "input should be less than 1"),
        (["runtime.device=tpu"], "unknown device 'tpu'"),
        (["split.file=nowhere.json"], "split.file: nowhere.json: no such file"),
        (["model.weights=nowhere.safetensors"], "model.weights: nowhere.safetensors: no such file"),
        (["model.mask=mask.safetensors"], "a mask file needs a weights file"),
        (["method=null"], "there is no section `method`"),
        (["forget=null"], "there is no section `forget`"),
        (["seed"], "an override has the form dotted.key=value"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_configurations(line: Line, overrides: list[str], says: str) -> None:
    refused(line, *FORGET, *overrides, says=says)


def test_an_id_that_must_not_be_forgotten(line: Line, elsewhere: Path) -> None:
    split = json.loads((elsewhere / "trained/split.json").read_text())
    some = split["retain"][:3]
    (line.directory / "ids.txt").write_text("\n".join(some) + "\n")
    says = f"{some[1]}: the record is both in the forget set and on hold"
    refused(line, *FORGET, "forget={by: ids, file: ids.txt}", f"forget.hold=[{some[1]}]", says=says)


def test_an_id_that_was_never_trained_on(line: Line, elsewhere: Path) -> None:
    split = json.loads((elsewhere / "trained/split.json").read_text())
    refused(line, *FORGET, f"forget={{by: ids, ids: [{split['test'][0]}]}}", says=split["test"][0])


def test_weights_of_another_number_of_classes(line: Line, elsewhere: Path) -> None:
    tensors = load_file(elsewhere / "trained/model.safetensors")
    last = [name for name in tensors if tensors[name].dim() and tensors[name].shape[0] == 10]
    save_file(
        {k: v[:7].contiguous() if k in last else v for k, v in tensors.items()}, line.directory / "seven.safetensors"
    )
    weights = line.directory / "seven.safetensors"
    refused(line, *FORGET, *adopt(elsewhere / "trained", weights=weights), says="wrong number of classes")


def test_a_factory_with_the_wrong_number_of_classes(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    (line.directory / "threefold.py").write_text(text)
    refused(line, *FORGET, "model={name: 'threefold:make'}", says="the model has 3 outputs, the data 10 classes")


def test_nan_in_the_data(line: Line) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)).astype(np.float32)
    features[17, 2] = np.nan
    np.savez(line.directory / "own.npz", features=features, labels=np.arange(60) % 3)
    own = "data={source: npz, options: {path: own.npz}}"
    refused(line, *FORGET, own, says="row-000017: NaN or infinite values in 1 record")


def test_nan_in_the_weights(line: Line, elsewhere: Path) -> None:
    tensors = load_file(elsewhere / "trained/model.safetensors")
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name][0, 0] = torch.nan
    save_file(tensors, line.directory / "nan.safetensors")
    weights = line.directory / "nan.safetensors"
    refused(line, *FORGET, *adopt(elsewhere / "trained", weights=weights), says="the weights have NaN")


def test_a_mask_of_the_wrong_shape(line: Line, elsewhere: Path) -> None:
    mask = Mask.load(elsewhere / "pruned/mask.safetensors")
    wrong = Mask({name: tensor[:-1] for name, tensor in mask.kept.items()}, MaskProvenance(criterion="magnitude"))
    wrong.save(line.directory / "wrong.safetensors")
    given = adopt(elsewhere / "pruned", mask=line.directory / "wrong.safetensors")
    refused(line, *FORGET, *given, says="the mask has shape")


def test_a_mask_that_the_weights_do_not_keep(line: Line, elsewhere: Path) -> None:
    given = adopt(elsewhere / "pruned", weights=elsewhere / "trained/model.safetensors")
    refused(line, *FORGET, *given, says="masked weights in")


@pytest.mark.parametrize("kind", ["weights", "mask"])
def test_a_truncated_file(line: Line, elsewhere: Path, kind: str) -> None:
    name = {"weights": "model", "mask": "mask"}[kind]
    whole = (elsewhere / f"pruned/{name}.safetensors").read_bytes()
    (line.directory / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    half = {kind: line.directory / "half.safetensors"}
    refused(line, *FORGET, *adopt(elsewhere / "pruned", **half), says="half.safetensors")


def test_a_pickle_is_not_opened(line: Line, elsewhere: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(line.directory / "sprung"),)

    torch.save({"weight": Trap()}, line.directory / "model.pt")
    says = refused(line, *FORGET, *adopt(elsewhere / "trained", weights=line.directory / "model.pt"), says="pickle")
    assert "safetensors" in says
    assert not (line.directory / "sprung").exists()


def test_a_split_that_was_edited(line: Line, elsewhere: Path) -> None:
    body = json.loads((elsewhere / "trained/split.json").read_text())
    body["test"], body["non_members"] = body["non_members"], body["test"]
    (line.directory / "split.json").write_text(json.dumps(body))
    refused(line, *FORGET, "split.file=split.json", says="the file was edited")


def test_a_split_of_other_records(line: Line, elsewhere: Path) -> None:
    given = f"split.file={elsewhere / 'trained/split.json'}"
    refused(line, *FORGET, "data={source: breast-cancer}", given, says="no such record")


def test_an_imported_model_cannot_be_rewound(line: Line, elsewhere: Path) -> None:
    given = [*adopt(elsewhere / "trained"), "sparsity.layers=[linear]"]
    refused(line, *FORGET, *given, says="no rewind checkpoint")


def test_a_directory_with_other_files_is_not_replaced(line: Line, elsewhere: Path) -> None:
    (line.directory / "mine").mkdir()
    (line.directory / "mine/notes.txt").write_text("precious")
    shutil.copytree(elsewhere / "trained", line.directory / "both")
    (line.directory / "both/notes.txt").write_text("precious")
    for place in ("mine", "both"):
        refused(line, *FORGET, "-o", place, says="is not the result of an earlier run (it contains notes.txt)")
    refused(line, *FORGET, "-o", "config.yaml", says="it is a file")
    refused(line, *FORGET, "-o", "config.yaml/out", says="cannot be created")
    shutil.copytree(elsewhere / "pruned", line.directory / "theirs")
    given = adopt(Path("theirs"))
    refused(line, *FORGET, *given, "-o", "theirs", says="which this run reads")


def test_files_that_are_not_configurations(line: Line) -> None:
    refused(line, "forget", "nowhere.yaml", says="nowhere.yaml: no such file")
    (line.directory / "list.yaml").write_text("- a\n- b\n")
    refused(line, "forget", "list.yaml", says="a configuration is a mapping")
    (line.directory / "torn.yaml").write_text("data: {source: digits\nmodel: {")
    refused(line, "forget", "torn.yaml", says="torn.yaml")


def test_custom_code_that_raises(line: Line) -> None:
    text = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.last = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > self.many:\n            raise RuntimeError('the dog ate it')\n"
        "        return self.last(x.flatten(1))\n"
        "    many = 4\n"
        "class Always(Net):\n    many = 0\n"
        "def broken():\n    raise ValueError('no such thing')\n"
    )
    (line.directory / "theircode.py").write_text(text)
    says = "theircode:broken: the factory failed (ValueError: no such thing)"
    refused(line, *FORGET, "model={name: 'theircode:broken'}", says=f"{says}")
    says = "cannot be run in training mode (RuntimeError: the dog ate it, theircode.py line 9)"
    refused(line, *FORGET, "model={name: 'theircode:Always'}", says=says)  # before anything is trained
    result = line(*FORGET, "model={name: 'theircode:Net'}")
    assert (result.code, result.out) == (1, "")
    assert "theircode.py:9: custom code raised RuntimeError: the dog ate it" in result.err
    assert "Traceback" not in result.err
    assert not (line.directory / "runs").exists()


def test_a_bug_of_expunge_is_reported_as_one(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.methods.ft.FT.fine_tune", None)
    result = line(*FORGET)
    assert result.code == 70
    assert "this is a bug of expunge, please report it (TypeError" in result.err
    assert "Traceback" not in result.err
    monkeypatch.setenv("EXPUNGE_DEBUG", "1")
    assert "Traceback" in line(*FORGET).err


def test_a_disk_that_fills_up(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC from the system's own fsync, at one file after another: an error each time; then a run succeeds."""
    synced, limit = [0], [0]
    real = os.fsync

    def full(handle: int) -> None:
        synced[0] += 1
        if synced[0] > limit[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    for room in (0, 3, 9, 14):
        synced[0], limit[0] = 0, room
        result = line(*FORGET)
        assert (result.code, result.out) == (2, ""), room
        assert "the disk is full" in result.err
        assert "Traceback" not in result.err
        assert not (line.directory / "runs/config/unlearned").exists()
        assert not [path for path in line.directory.rglob(".*") if path.name != ".expunge"]  # no partial files
    monkeypatch.undo()
    monkeypatch.chdir(line.directory)
    assert line(*FORGET).code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def test_a_small_disk(line: Line, small_disk: Path) -> None:
    """A real file system that is full: once for the results, once for the store."""
    wide = "model.options.widths=[600]"
    result = line(*FORGET, wide, "-o", str(small_disk / "out"))
    assert (result.code, result.out) == (2, "")
    assert "the disk is full" in result.err
    assert list(small_disk.iterdir()) == []
    result = line(*FORGET, wide, "--store", str(small_disk / "store"))
    assert (result.code, result.out) == (2, "")
    assert "the disk is full" in result.err
    assert not list(small_disk.glob("store/entries/train/*"))
    assert not (line.directory / "runs").exists()
