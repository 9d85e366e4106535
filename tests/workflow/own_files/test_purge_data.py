"""`purge` where data is indexed, recorded by a bridge, or while a signal arrives: real sources, files and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import expunge
from expunge.bridges import read_recording
from expunge.bridges.recorder import Recorder
from expunge.cli.app import run
from expunge.core.errors import DataError, RequestError
from expunge.core.split import Split
from expunge.data import load_records
from expunge.data.reading.index_cache import use_index_directory
from expunge.data.tables import packed
from expunge.experiments import load_config
from expunge.experiments.store.store import Store
from expunge.workflow import find_artefacts, forget, purge, read_purge_ids
from expunge.workflow.purge import run as purge_run

RUN = """
data: {{source: {source}, dir: {dir}, options: {options}}}
model: {{name: mlp, options: {{widths: [4]}}}}
training: {{recipe: one-cycle, epochs: 1}}
forget: {{by: random, count: 4}}
method: {{name: FT, options: {{epochs: 1}}}}
runtime: {{device: cpu}}
"""
TABLE = "{path: table.parquet, label: y, id: name, numeric: [a, b], stream: true}"
COUNT = 60


def write_images(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def write_table(path: Path, count: int = COUNT) -> np.ndarray:
    """Write a Parquet file; returns its numbers: no two are equal."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers = np.random.default_rng(5).normal(size=(count, 2)).astype(np.float32)
    names = [f"patient-{row}" for row in range(count)]
    columns = {"name": names, "a": numbers[:, 0], "b": numbers[:, 1], "y": [f"kind {row % 2}" for row in range(count)]}
    parquet.write_table(pa.table(columns), path)
    return numbers


def list_holders(directory: Path, content: bytes) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file() and content in path.read_bytes()}


def test_features_of_a_streamed_table(tmp_path: Path) -> None:
    numbers, store = write_table(tmp_path / "table.parquet"), tmp_path / "store"
    (tmp_path / "run.yaml").write_text(RUN.format(source="parquet", dir=tmp_path, options=TABLE))
    forget(load_config(tmp_path / "run.yaml"), tmp_path / "out", store=store)
    split = Split.load(tmp_path / "out" / "split.json")
    gone = str(split.test[0])  # trained on by no model, and its features are in the store all the same
    content = numbers[int(gone.split("-")[1])].tobytes()
    (name,) = list_holders(store, content)
    found = {Path(a.path).name: a for a in find_artefacts([gone], store=store).artefacts if a.kind == "index"}
    assert {key: (a.status, a.records) for key, a in found.items()} == {
        name: ("holds", 1), name.replace(".npy", ".npz"): ("names", 1)
    }  # fmt: skip
    assert not [a for a in find_artefacts(["patient-"], store=store).artefacts if a.kind == "index"]  # control
    result = purge([gone], store=store)
    assert result.exit_code == 0
    assert list_holders(store, content) == set()
    assert list((store / "index").iterdir()) == []


def test_an_index_of_images(tmp_path: Path) -> None:
    names = [f"{kind}/{number:02}.png" for kind in ("cat", "dog") for number in range(30)]
    write_images(tmp_path / "pets", names)
    write_images(tmp_path / "others", ["cat/a.png", "dog/b.png"])
    store = tmp_path / "store"
    (tmp_path / "run.yaml").write_text(RUN.format(source="folder", dir=tmp_path, options="{path: pets}"))
    forget(load_config(tmp_path / "run.yaml"), tmp_path / "out", store=store)
    with use_index_directory(store / "index"):
        load_records("folder", path=str(tmp_path / "others"))
    assert len(list((store / "index").iterdir())) == 2
    (tmp_path / "pets" / "cat" / "03.png").unlink()  # deleted at its source: its hash is still stored
    (index,) = (a for a in find_artefacts(["cat/03.png"], store=store).artefacts if a.kind == "index")
    assert (index.status, index.records, index.action) == ("names", 1, "delete")
    assert purge(["cat/03.png"], store=store).exit_code == 0
    assert not Path(index.path).exists()
    assert len(list((store / "index").iterdir())) == 1  # that of the other folder
    assert purge(["cat/a.png"], paths=[store / "index"]).exit_code == 0  # a directory of indexes without a store
    assert list((store / "index").iterdir()) == []


def test_an_index_in_use_or_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was interrupted while it was written still says whose features it has."""
    write_table(tmp_path / "table.parquet")
    store, table = tmp_path / "store", {"path": str(tmp_path / "table.parquet"), "label": "y", "id": "name"}
    (store / "entries").mkdir(parents=True)
    (store / "locks").mkdir()

    def load() -> None:
        with use_index_directory(store / "index"):
            load_records("parquet", **table, numeric=["a", "b"], stream=True)

    load()
    before = {path.name for path in (store / "index").iterdir()}
    write_table(tmp_path / "table.parquet", COUNT // 2)  # the others were deleted at their source
    monkeypatch.setattr(packed.np.lib.format, "write_array_header_1_0", lambda *_: 1 / 0)
    with pytest.raises(DataError):
        load()
    monkeypatch.undo()
    (features,) = (store / "index").glob("*.npy")
    shutil.copy(features, features.with_name(f".{features.name}.0123456789ab"))  # of a killed process
    assert {path.name for path in (store / "index").iterdir()} > before
    removed = f"patient-{COUNT - 1}"
    found = find_artefacts([removed], store=store).artefacts
    assert sorted(a.status for a in found) == ["holds", "holds", "names"]
    with Store(store).lock("a" * 40) as acquired:
        assert acquired
        assert {a.result for a in purge([removed], store=store).artefacts} == {"in use"}
    assert purge([removed], store=store).exit_code == 0
    assert list((store / "index").iterdir()) == []
    load()
    (features,) = (store / "index").glob("*.npy")
    features.with_suffix(".npz").write_bytes(b"damaged")
    found = find_artefacts(["patient-1"], store=store).artefacts
    assert {a.status for a in found} == {"unknown"}
    assert purge(["patient-1"], store=store).exit_code == 4


def record(folder: Path, prefix: str) -> torch.nn.Module:
    """Record a real training of two epochs, by the recorder of the bridges."""
    model, data = torch.nn.Linear(2, 2), torch.arange(12.0).reshape(6, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=2, shuffle=True)
    recorder = Recorder(folder, ids=[f"{prefix}-{row}" for row in range(6)], keep_epochs=(1, 2))
    recorder.begin(model, rows=6, tool="example")
    recorder.watch(loader)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        for (batch,) in loader:
            optimiser.zero_grad()
            model(batch).sum().backward()
            optimiser.step()
        recorder.end_epoch(model)
    recorder.finish(model, steps=6)
    return model


def check_recording_is_purged(folder: Path, gone: str, own: Path) -> None:
    """The recording that names a record is deleted with its checkpoints; a file beside it that is not of it stays."""
    (found,) = (a for a in find_artefacts([gone], paths=[folder.parent]).artefacts if a.kind == "recording")
    assert (found.status, found.action, found.records) == ("trained", "delete", 1)
    assert "early checkpoint" in found.reason
    result = purge([gone], paths=[folder.parent])
    assert [a.result for a in result.artefacts if a.kind == "recording"] == ["deleted"]
    assert [(Path(a.path), a.status) for a in result.artefacts if a.kind == "file"] == [(own, "unknown")]
    assert result.exit_code == 4
    assert list(folder.iterdir()) == [own]


def test_a_recording_and_its_early_checkpoints(tmp_path: Path) -> None:
    for name in ("a", "b"):
        record(tmp_path / name, name)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files >= {"epoch-0001.safetensors", "epoch-0002.safetensors", "initial.safetensors", "orders.safetensors"}
    own = tmp_path / "a" / "model.safetensors"
    own.write_bytes(b"1234")
    check_recording_is_purged(tmp_path / "a", "a-3", own)
    assert set(read_recording(tmp_path / "b").checkpoints) == {1, 2}  # untouched


#: The command line, in which each deletion of a directory is announced, and takes its time.
SLOW_DELETION = """
import shutil, sys, time
from expunge.cli import main
remove = shutil.rmtree
def slow(path, *arguments, **options):
    if not options:
        print("deleting", file=sys.stderr, flush=True)
        time.sleep(0.3)
    remove(path, *arguments, **options)
shutil.rmtree = slow
sys.exit(main())
"""


def test_a_real_signal_interrupts_the_command_and_the_next_one_finishes(tmp_path: Path) -> None:
    write_table(tmp_path / "table.parquet")
    store = tmp_path / "store"
    (tmp_path / "run.yaml").write_text(RUN.format(source="parquet", dir=tmp_path, options=TABLE))
    forget(load_config(tmp_path / "run.yaml"), tmp_path / "out", store=store)
    split = Split.load(tmp_path / "out" / "split.json")
    (tmp_path / "ids.txt").write_text(f"{split.forget[0]}\n")
    arguments = ["purge", "--ids", str(tmp_path / "ids.txt"), "--store", str(store), "--delete"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DELETION, *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    for _ in range(2):
        assert process.stderr.readline() == "deleting\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command deletes the rest" in error
    assert "Traceback" not in error
    left = find_artefacts([split.forget[0]], store=store).artefacts
    assert {a.status for a in left} >= {"trained"}
    done = subprocess.run(
        [sys.executable, "-m", "expunge.cli", *arguments], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "no artefact has the ids of a stand-in" in done.stdout
    assert find_artefacts([split.forget[0]], store=store).artefacts == ()
    assert not list(store.glob("entries/*/.*"))


def test_what_appears_while_others_are_deleted_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that runs on writes artefacts meanwhile: the search is repeated until it finds nothing to delete."""
    records = expunge.load_records("digits")
    split = expunge.make_split(records)
    network = expunge.architecture("mlp", records, split, widths=(4,))
    trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
    expunge.save_trained(trained, tmp_path / "models" / "first")
    delete, written = purge_run._delete, []

    def write_and_delete(*arguments: Any) -> str:
        if not written:
            written.append(expunge.save_trained(trained, tmp_path / "models" / "second"))
        return delete(*arguments)

    monkeypatch.setattr(purge_run, "_delete", write_and_delete)
    (tmp_path / "models" / "keep.txt").write_text("")
    result = purge(split.retain[:2], paths=[tmp_path / "models"])
    assert {Path(artefact.path).name: artefact.result for artefact in result.artefacts} == {
        "first": "deleted", "second": "deleted",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["keep.txt"]


def test_ids_that_nothing_has_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = Split(retain=["p1", "p2"], forget=[], validation=[], test=[], non_members=[])
    (tmp_path / "model").mkdir()
    split.save(tmp_path / "model" / "split.json")
    (tmp_path / "model" / "trained.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("p3 was seen; p 4 too")
    found = find_artefacts(["p1", "q1", "p3", "p 4"], paths=[tmp_path])
    assert found.unseen == ("q1",)
    assert found.to_json()["unseen"] == ["q1"]
    assert "1 of the ids is in none: q1" in found.text()
    assert "in none" not in find_artefacts(["p1"], paths=[tmp_path]).text()
    (tmp_path / "ids.txt").write_text("p1\nq1\n")
    assert run(["purge", str(tmp_path / "model"), "--ids", str(tmp_path / "ids.txt"), "--delete"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("trained   model directory") == 1  # one list, of what was done
    assert "in none: q1" in printed
    assert not (tmp_path / "model").exists()


def test_a_subject_that_the_data_lack_is_an_error(tmp_path: Path) -> None:
    rows = "".join(f"r{n},p{n // 2},{n},{'yes' if n % 2 else 'no'}\n" for n in range(8))
    (tmp_path / "people.csv").write_text("id,subject,age,label\n" + rows)
    (tmp_path / "run.yaml").write_text(
        f"data: {{source: table, options: {{path: {tmp_path / 'people.csv'}, label: label, id: id, subject: subject, "
        "numeric: [age]}}\nmodel: {name: mlp}\ntraining: {recipe: one-cycle}\n"
    )
    (tmp_path / "who.txt").write_text("p1\n")
    config = load_config(tmp_path / "run.yaml")
    assert read_purge_ids(subjects=tmp_path / "who.txt", config=config) == ["r2", "r3"]
    (tmp_path / "who.txt").write_text("p1\np9\n")
    with pytest.raises(RequestError, match="p9: no record of the data belongs to the subject"):
        read_purge_ids(subjects=tmp_path / "who.txt", config=config)
