"""`purge` finds what saw given records, and nothing else; it deletes it, whatever interrupts it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import expunge
from expunge.core.errors import ConfigError, FileError, Interrupted, RequestError
from expunge.core.split import Split
from expunge.experiments import load_config, load_plan, run_plan
from expunge.experiments.store.store import Store
from expunge.workflow import find_artefacts, forget, purge, read_purge_ids
from expunge.workflow.purge import run as purge_run
from expunge.workflow.purge.store_search import _derive, _Place

RUN = """
data: {{source: npz, dir: {dir}, options: {{path: {name}.npz, features: x, labels: y, ids: ids}}}}
split: {{limit: 48}}
model: {{name: mlp, options: {{widths: [4]}}}}
training: {{recipe: one-cycle, epochs: 1}}
sparsity: {{sparsity: 0.5, layers: [linear]}}
forget: {{by: memorised, count: 4, models: 2}}
method: {{name: FT, options: {{epochs: 1}}}}
runtime: {{device: cpu}}
"""
LEAKAGE = """
name: leak
base:
  data: {{source: npz, dir: {dir}, options: {{path: {name}.npz, features: x, labels: y, ids: ids}}}}
  split: {{limit: 48}}
  model: {{name: mlp, options: {{widths: [4]}}}}
  training: {{recipe: one-cycle, epochs: 1}}
  sparsity: {{sparsity: 0.5, layers: [linear], schedule: one-shot}}
  forget: {{by: random, count: 4}}
  leakage: {{models: 4, permutations: 2, game: unlearned, processing: replay, prefix_epochs: 1}}
  runtime: {{device: cpu}}
grid: {{seed: [0]}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the stages of two runs on disjoint records, `a` and `b`; and their results."""
    place = tmp_path_factory.mktemp("purge")
    records = expunge.load_records("digits")
    for name, rows in (("a", np.arange(100)), ("b", np.arange(100, 200))):
        ids = np.asarray([f"{name}-{row}" for row in rows])
        np.savez(place / f"{name}.npz", x=records.features[rows], y=records.labels[rows], ids=ids)
        (place / f"{name}.yaml").write_text(RUN.format(dir=place, name=name))
        forget(load_config(place / f"{name}.yaml"), place / f"out-{name}", store=place / "store")
        (place / f"leak-{name}.yaml").write_text(LEAKAGE.format(dir=place, name=name))
        run_plan(load_plan(place / f"leak-{name}.yaml"), store=place / "store", results=place / f"leak-{name}.json")
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def list_entries(store: Path, name: str) -> dict[str, str]:
    """Path and stage of every entry of a run, by the data file in its configuration: purge does not look at it."""
    found = {}
    for path in store.glob("entries/*/*/entry.json"):
        options = json.loads(path.read_text())["ingredients"]["config"]["data"]["options"]
        if options["path"] == f"{name}.npz":
            found[str(path.parent)] = path.parent.parent.name
    return found


def test_every_stage_that_saw_a_record_is_found_and_no_other(finished: Path) -> None:
    store = finished / "store"
    split = Split.load(finished / "out-a" / "split.json")
    expected = {path for path, stage in list_entries(store, "a").items() if stage != "data"}
    stages = set(list_entries(store, "a").values())
    assert stages >= {"train", "prune", "forget", "score", "score_original", "memorise", "shadow_models", "leakage"}
    for ids in (split.retain[:1], split.forget[:1], split.train):
        found = find_artefacts(ids, store=store)
        assert {artefact.path for artefact in found.artefacts} == expected
        assert not [artefact for artefact in found.artefacts if artefact.status == "unknown"]
        assert found.exit_code == 3
    by_stage = {artefact.kind.split()[-1]: artefact.status for artefact in found.artefacts}
    assert by_stage["train"] == by_stage["prune"] == "trained"
    assert by_stage["score"] == "derived"


def test_records_of_other_parts_and_of_no_run(finished: Path) -> None:
    split = Split.load(finished / "out-a" / "split.json")
    held_out = find_artefacts(split.validation[:1], store=finished / "store").artefacts
    trains = [artefact for artefact in held_out if artefact.kind == "store entry train"]
    assert {artefact.status for artefact in trains} == {"evaluated"}
    used = np.concatenate([split.train, split.validation, split.test, split.non_members])
    unused = np.setdiff1d([f"a-{row}" for row in range(100)], used)
    found = find_artefacts(unused[:3], store=finished / "store")  # in the data, and drawn for no part
    assert (found.artefacts, found.exit_code) == ((), 0)
    assert find_artefacts(["a-"], store=finished / "store").artefacts == ()  # the beginning of an id is no id


def contains(directory: Path, text: str) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_deletion_leaves_no_trace_in_the_store_and_nothing_else_is_touched(place: Path) -> None:
    store, other = place / "store", list_entries(place / "store", "b")
    split = Split.load(place / "out-a" / "split.json")
    result = purge(split.train, store=store)
    assert result.exit_code == 0
    assert all(artefact.result == "deleted" for artefact in result.artefacts)
    assert list_entries(store, "b") == other
    assert [stage for stage in list_entries(store, "a").values() if stage != "data"] == []
    for name in split.train[:5].tolist():
        assert contains(store, f'"{name}"') == []
    again = forget(load_config(place / "b.yaml"), place / "out-b2", store=store)  # nothing is computed again
    assert (place / "out-b" / "model.safetensors").read_bytes() == (
        again.paths.directory / "model.safetensors"
    ).read_bytes()
    assert purge(split.train, store=store).exit_code == 0


def test_model_directories(place: Path) -> None:
    ids = Split.load(place / "out-a" / "split.json").forget
    trained = next(path for path, stage in list_entries(place / "store", "a").items() if stage == "train")
    model = place / "models" / "original"
    shutil.copytree(trained, model)
    (model / "notes.md").write_text("mine\n")
    (place / "models" / "link").symlink_to(model)
    (place / "models" / "plain.safetensors").write_bytes(b"1234")
    (place / "models" / "report.html").write_text(f"<td>{ids[0]}</td>")
    unlearned = place / "out-a"
    found = {Path(a.path).name: a for a in find_artefacts(ids, paths=[place / "models", unlearned]).artefacts}
    assert found["original"].status == "trained"
    assert found[unlearned.name].status == "forgotten"
    assert found["plain.safetensors"].status == "unknown"
    assert found["report.html"].status == "names"
    assert "link" not in found
    result = purge(ids, paths=[place / "models", unlearned])
    assert result.exit_code == 4  # the rest is for the user to judge
    assert [path.name for path in model.iterdir() if path.name != "entry.json"] == ["notes.md"]
    assert (unlearned / "model.safetensors").exists()
    assert (place / "models" / "report.html").exists()


def test_symbolic_links_are_not_followed(place: Path) -> None:
    ids = Split.load(place / "out-a" / "split.json").forget
    entry = next(path for path, stage in list_entries(place / "store", "a").items() if stage == "train")
    moved = place / "elsewhere"
    Path(entry).rename(moved)
    Path(entry).symlink_to(moved)
    result = purge(ids, store=place / "store")
    linked = next(artefact for artefact in result.artefacts if artefact.path == entry)
    assert (linked.status, linked.result) == ("unknown", "")
    assert (moved / "model.safetensors").exists()


def test_what_a_worker_runs_or_reads_is_in_use(place: Path) -> None:
    store = Store(place / "store")
    ids = Split.load(place / "out-a" / "split.json").forget
    entries = list_entries(store.root, "a")
    prune = Path(next(path for path, stage in entries.items() if stage == "prune"))
    body = json.loads((prune / "entry.json").read_text())
    work = store.work_directory(prune.name)
    work.mkdir(parents=True)
    (work / "run.json").write_text(json.dumps({"ingredients": body["ingredients"]}))
    with store.lock(prune.name) as acquired:  # as a running worker does
        assert acquired
        result = purge(ids, store=store.root)
    used = {artefact.kind for artefact in result.artefacts if artefact.result == "in use"}
    assert used == {"store entry prune", "checkpoint", "store entry train"}
    assert result.exit_code == 3
    assert prune.exists()
    assert purge(ids, store=store.root).exit_code == 0
    assert not prune.exists()


@pytest.mark.parametrize("at", [0, 2, 5])
def test_interrupted_and_called_again(place: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    ids = Split.load(place / "out-a" / "split.json").train
    calls = 0
    remove = shutil.rmtree

    def interrupt(path: Path, **options: bool) -> None:
        nonlocal calls
        if not options:
            calls += 1
            if calls == at + 1:
                raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(purge_run.shutil, "rmtree", interrupt)
    with pytest.raises(Interrupted):
        purge(ids, store=place / "store")
    monkeypatch.undo()
    assert purge(ids, store=place / "store").exit_code == 0
    assert [stage for stage in list_entries(place / "store", "a").values() if stage != "data"] == []
    assert not list((place / "store").glob("entries/*/.*"))


def test_checkpoints_leftovers_and_what_is_not_known(place: Path) -> None:
    store, split = place / "store", Split.load(place / "out-a" / "split.json")
    known, derived, unknown = (store / "work" / (letter * 40) for letter in "abc")
    train = next(path for path, stage in list_entries(store, "a").items() if stage == "train")
    output = json.loads((Path(train) / "entry.json").read_text())["output"]
    for path in (known, derived, unknown):
        path.mkdir(parents=True)
        (path / "train.safetensors").write_bytes(b"state")
    split.save(known / "split.json")
    (derived / "run.json").write_text(json.dumps({"ingredients": {"stage": "prune", "inputs": {"trained": output}}}))
    killed = store / "entries" / "forget" / f".{'b' * 40}.x1"
    killed.mkdir()
    shadow = next(path for path, stage in list_entries(store, "b").items() if stage == "shadow_models")
    (Path(shadow) / "split.json").unlink()
    found = {a.path: a for a in find_artefacts(split.retain[:1], store=store).artefacts}
    assert (found[str(known)].status, found[str(derived)].status) == ("trained", "derived")
    assert (found[str(unknown)].status, found[str(killed)].status) == ("unknown", "derived")
    assert found[shadow].status == "unknown"  # of run b, but nothing in it says so any more
    result = purge(split.retain[:1], store=store)
    assert result.exit_code == 4
    assert unknown.exists()
    assert not known.exists()


def test_bad_input(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not a store"):
        find_artefacts(["a-1"], store=tmp_path)
    with pytest.raises(ConfigError, match="nothing to search"):
        find_artefacts(["a-1"])
    with pytest.raises(FileError, match="no such file"):
        find_artefacts(["a-1"], paths=[tmp_path / "missing"])
    with pytest.raises(RequestError, match="no record ids"):
        find_artefacts([], paths=[tmp_path])
    with pytest.raises(ConfigError, match="either record ids or subjects"):
        read_purge_ids()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(RequestError, match="no ids"):
        read_purge_ids(ids=tmp_path / "empty.txt")
    with pytest.raises(RequestError, match="no subjects"):
        read_purge_ids(subjects=tmp_path / "empty.txt", config=load_config(finished / "a.yaml"))


@pytest.mark.parametrize("own", ["unknown", "names"])
def test_what_was_made_from_a_model_that_saw_them_is_derived_whatever_its_own_files_say(
    tmp_path: Path, own: str
) -> None:
    model = _Place(tmp_path / "a", "store entry train", "a" * 64, "train", {}, "out", ("trained", "its split", 2))
    scores = _Place(tmp_path / "b", "store entry score", "b" * 64, "score", {"model": "out"}, "", (own, "a file", 1))
    _derive([model, scores])
    assert scores.found == ("derived", "made from store entry train aaaaaaaaaaaa (model)", 1)
