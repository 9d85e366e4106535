"""Damaged entries and checkpoints of a store: the stage runs again, the log says why, and the results are the same."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory import Lab

import expunge
from expunge.core.errors import FileError
from expunge.experiments import explain_plan, get_plan_status, load_plan, run_plan
from expunge.experiments.config.run_config import check_config
from expunge.experiments.scheduler.progress import NullReporter
from expunge.experiments.store.store import Ingredients, Store
from expunge.workflow import forget

BASE = Ingredients("train", 1, {"m": "1"}, {"epochs": 2}, {"data": "d"}, None)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": flip,
    "removed": Path.unlink,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
}


class Log(NullReporter):
    """A reporter that keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    @property
    def damages(self) -> list[str]:
        return [line for line in self.lines if "was damaged" in line]


def list_files(store: Path) -> list[Path]:
    return sorted(path for path in (store / "entries").rglob("*") if path.is_file())


# ---- fake stages: every file of every entry


def read_results(lab: Lab) -> Any:
    cells = json.loads(load_plan(lab.plan).results_path.read_text())["cells"]
    return [(cell["labels"], cell["state"], cell["scores"]) for cell in cells]


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_file_of_an_entry_is_computed_again(lab: Lab, kind: str) -> None:
    plan = load_plan(lab.plan)
    run_plan(plan, store=lab.store, stages=lab.stages)
    before = read_results(lab)
    chosen = {}
    for path in list_files(lab.store):
        chosen.setdefault((path.parent.parent.name, path.name), path)
    assert {stage for stage, _ in chosen} == {"data", "train", "prune", "forget", "score"}
    assert len(chosen) >= 12
    for (stage, name), path in chosen.items():
        DAMAGES[kind](path)
        started, log = len(lab.started()), Log()
        run_plan(plan, store=lab.store, stages=lab.stages, reporter=log)
        assert lab.started()[started:] == [stage], (stage, name)
        assert len(log.damages) == 1
        assert name in log.damages[0]
        assert read_results(lab) == before
    assert run_plan(plan, store=lab.store, stages=lab.stages).computed == 0


def test_status_and_explanation_know_of_the_damage(lab: Lab) -> None:
    plan = load_plan(lab.plan)
    run_plan(plan, store=lab.store, stages=lab.stages)
    path = next(path for path in list_files(lab.store) if path.parts[-3:][0] == "score" and path.name == "scores.json")
    DAMAGES["cut short"](path)
    assert get_plan_status(plan, store=lab.store, stages=lab.stages).stages["score"]["ready"] == 1
    (line,) = explain_plan(plan, store=lab.store, stages=lab.stages)
    assert "its stored result is damaged: scores.json has" in line


def test_workers_compute_damaged_entries_again(lab: Lab) -> None:
    plan = load_plan(lab.plan)
    run_plan(plan, store=lab.store, stages=lab.stages)
    before = read_results(lab)
    for number, path in enumerate(path for path in list_files(lab.store) if path.name == "value.txt"):
        if number % 3 == 0:
            DAMAGES["cut short"](path)
    log = Log()
    run = run_plan(plan, store=lab.store, stages=lab.stages, workers=2, reporter=log)
    assert run.failures == ()
    assert log.damages
    assert read_results(lab) == before


def test_damage_that_comes_back_names_what_to_remove(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk: whatever is written is wrong when it is read."""
    plan = load_plan(lab.plan)
    run_plan(plan, store=lab.store, stages=lab.stages)
    monkeypatch.setattr("expunge.experiments.store.store.find_damage", lambda path, files, most=None: (
        None if most == -1 else "value.txt has other contents than were written"
    ))  # fmt: skip
    with pytest.raises(FileError, match="damaged again") as raised:
        run_plan(plan, store=lab.store, stages=lab.stages)
    assert str(lab.store) in (raised.value.hint or "")


def test_damage_during_a_run_is_found_before_the_stage_reads_it(lab: Lab) -> None:
    """A large file is not hashed for every run, but before a stage reads it."""
    store = Store(lab.store)

    def write(out: Path, work: Path) -> str:
        (out / "large.bin").write_bytes(bytes(2**20 + 1))
        return "x"

    entry = store.compute(BASE, write, label="x")
    flip(entry.path / "large.bin")
    opened = Store(lab.store)
    found = opened.find("train", BASE.key)
    assert found is not None
    assert opened.check(found, 2**20) is None
    assert opened.check(found) == "large.bin has other contents than were written"
    assert opened.discard(found, "large.bin")
    assert opened.find("train", BASE.key) is None


def test_a_damaged_record_of_a_failure_is_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record_failure("k", "label", "message", None)
    assert store.read_failure("k") == "message"
    for text in ("", "{", '{"kind": "expunge.failure", "schema_version": 1}'):
        store.failure_path("k").write_text(text)
        assert store.read_failure("k") is None


# ---- real stages


def make_config() -> Any:
    return check_config(
        {
            "data": {"source": "digits"},
            "split": {"limit": 150},
            "model": {"name": "mlp", "options": {"widths": [4]}},
            "training": {"recipe": "one-cycle", "epochs": 2},
            "sparsity": {"sparsity": 0.5, "layers": ["linear"]},
            "forget": {"by": "random", "count": 5},
            "method": {"name": "FT", "options": {"epochs": 1}},
            "evaluation": {"svc_records": 30},
            "runtime": {"device": "cpu"},
        }
    )


def read_values(scores: Any) -> dict[str, float]:
    return {score["name"]: score["value"] for score in scores["scores"] if score["name"] not in ("RTE", "Peak memory")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("finished")
    result = forget(make_config(), folder / "out", store=folder / "store")
    return folder / "store", (read_values(result.scores), result.outcome["hashes"])


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_run_repairs_its_store(finished: tuple[Path, Any], tmp_path: Path, kind: str) -> None:
    """One file of each entry is damaged; with EXPUNGE_ALL_FILES=1 each file of each entry, one at a time."""
    kept, before = finished
    shutil.copytree(kept, tmp_path / "store")
    files = list_files(tmp_path / "store")
    by_entry: dict[Path, list[Path]] = {}
    for path in files:
        entry = path.parent.parent if path.parent.name == "state" else path.parent
        by_entry.setdefault(entry, []).append(path)
    assert len(by_entry) == 8
    generator = random.Random(kind)
    rounds = [[generator.choice(paths) for paths in by_entry.values()]]
    if os.environ.get("EXPUNGE_ALL_FILES"):
        rounds = [[path] for path in files]
    for chosen in rounds:
        for path in chosen:
            DAMAGES[kind](path)
        log = Log()
        result = forget(make_config(), tmp_path / "out", store=tmp_path / "store", reporter=log)
        assert len(log.damages) == len(chosen), (chosen, log.lines)
        assert (read_values(result.scores), result.outcome["hashes"]) == before


# ---- checkpoints


class Stopped(KeyboardInterrupt):
    """The interruption of the test."""


def interrupt(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Train until a checkpoint is written; returns a function that trains, and the weights of the whole training."""
    records = expunge.load_records("digits")
    split = expunge.make_split(records, limit=150)
    network = expunge.architecture("mlp", records, split, widths=(4,))
    recipe = expunge.get_recipe("one-cycle", epochs=3, batch_size=16)

    def train(progress: Any = None) -> Any:
        return expunge.train(
            records, split, network, recipe=recipe, runtime=expunge.Runtime("cpu"), checkpoint=checkpoint,
            progress=progress,
        )  # fmt: skip

    whole = train()

    def stop(*arguments: Any) -> None:
        if checkpoint.exists():
            raise Stopped

    monkeypatch.setattr("expunge.training.loop.CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(expunge.core.errors.Interrupted):
        train(stop)
    assert checkpoint.exists()
    return train, whole.hash


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "removed"])
def test_a_damaged_checkpoint_is_refused_with_the_path_to_remove(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "train.safetensors"
    train, whole = interrupt(checkpoint, monkeypatch)
    kept = checkpoint.read_bytes()
    DAMAGES[kind](checkpoint)
    with pytest.raises(FileError) as raised:
        train()
    assert "damaged checkpoint" in raised.value.what or "release" in raised.value.what
    assert f"remove {checkpoint}" in (raised.value.hint or "")
    checkpoint.write_bytes(kept)
    assert train().hash == whole


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit of a weight, of the momentum or of the history is found."""
    checkpoint = tmp_path / "train.safetensors"
    train, _ = interrupt(checkpoint, monkeypatch)
    kept = checkpoint.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        content = bytearray(kept)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        checkpoint.write_bytes(bytes(content))
        with pytest.raises(FileError):
            train()
        checkpoint.write_bytes(kept)


def test_a_damaged_checkpoint_in_a_store_starts_the_stage_again(finished: tuple[Path, Any], tmp_path: Path) -> None:
    kept, before = finished
    for number, content in enumerate((b"", b"{}", bytes(100))):
        store = tmp_path / f"store{number}"
        shutil.copytree(kept, store)
        (entry,) = (store / "entries" / "train").iterdir()
        shutil.rmtree(entry)
        (store / "work" / entry.name).mkdir(parents=True)
        (store / "work" / entry.name / "train.safetensors").write_bytes(content)
        log = Log()
        result = forget(make_config(), tmp_path / "out", store=store, reporter=log)
        assert [line for line in log.lines if "checkpoint was damaged" in line]
        assert (read_values(result.scores), result.outcome["hashes"]) == before
