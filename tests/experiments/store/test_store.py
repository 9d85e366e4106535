"""Keys change if and only if something that determines the result changes."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from laboratory import Lab

from expunge.core.errors import ConfigError
from expunge.core.hashing import hash_json
from expunge.experiments import load_plan, run_plan
from expunge.experiments.store.environment import check_platform
from expunge.experiments.store.store import Ingredients, Store

BASE = Ingredients("train", 1, {"m": "1"}, {"epochs": 2, "model": {"name": "mlp"}}, {"data": "d"}, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stage": "prune"}, None),
        ({"version": 2}, "stage version: 1 -> 2"),
        ({"source": {"m": "2"}}, "source changed: m"),
        ({"source": {"m": "1", "n": "1"}}, "source added: n"),
        ({"config": {"epochs": 3, "model": {"name": "mlp"}}}, "configuration: epochs: 2 -> 3"),
        ({"config": {"epochs": 2, "model": {"name": "cnn"}}}, 'configuration: model.name: "mlp" -> "cnn"'),
        ({"inputs": {"data": "e"}}, "input changed: data"),
        ({"fingerprint": "f"}, "data files changed (names, sizes or times)"),
    ],
)
def test_each_ingredient_is_in_the_key_and_is_explained(
    tmp_path: Path, change: dict[str, object], reason: str | None
) -> None:
    other = dataclasses.replace(BASE, **change)  # type: ignore[arg-type]
    assert other.key != BASE.key
    store = Store(tmp_path)
    store.compute(BASE, lambda out, work: "output", label="x")
    assert store.explain(BASE) == ["it is in the store"]
    assert store.explain(other) == ([reason] if reason else ["no prune stage has finished in this store yet"])


def test_order_of_keys_does_not_count() -> None:
    other = dataclasses.replace(BASE, config={"model": {"name": "mlp"}, "epochs": 2})
    assert other.key == BASE.key


def test_an_entry_is_complete_or_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(out: Path, work: Path) -> str:
        (out / "half.txt").write_text("half")
        (work / "checkpoint").write_text("kept")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        store.compute(BASE, fails, label="x")
    assert store.find("train", BASE.key) is None
    assert not list(tmp_path.glob("entries/train/*"))
    assert (store.work_directory(BASE.key) / "checkpoint").read_text() == "kept"
    entry = store.compute(BASE, lambda out, work: (work / "checkpoint").read_text(), label="x")
    assert entry.output == "kept"
    assert Store(tmp_path).find("train", BASE.key) == entry
    assert not store.work_directory(BASE.key).exists()


def test_a_damaged_entry_counts_as_absent_and_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.compute(BASE, lambda out, work: "x", label="x")
    text = (entry.path / "entry.json").read_text()
    for damaged in (
        "{}",
        text[:-10],
        text.replace('"seconds"', '"second"'),
        text.replace('"output": "x"', '"output": "y"'),
    ):
        assert damaged != text
        (entry.path / "entry.json").write_text(damaged)
        opened = Store(tmp_path)
        assert opened.find("train", BASE.key) is None
        assert "entry.json" in opened.damaged["train", BASE.key]
        assert list(opened.entries("train")) == []


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("k") as first, store.lock("k") as second, store.lock("other") as third:
        assert (first, second, third) == (True, False, True)
        assert store.is_locked("k")
    assert not store.is_locked("k")


def test_a_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    check_platform()
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(ConfigError, match="file locks") as caught:
        run_plan(load_plan(lab.plan), store=tmp_path / "store", stages=lab.stages)
    assert "Linux, macOS and WSL" in str(caught.value)
    assert not (tmp_path / "store").exists()


def _rerun(lab: Lab) -> list[str]:
    before = len(lab.started())
    run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    return lab.started()[before:]


def test_which_stages_run_again(lab: Lab) -> None:
    assert len(_rerun(lab)) == 29
    assert _rerun(lab) == []
    helper, train, forget = lab.file("helper.py"), lab.file("train.py"), lab.file("forget.py")
    helper.write_text("# said differently\n" + helper.read_text())
    train.write_text(train.read_text() + "\nunused = 1\n")
    # The trainings run again with unchanged outputs: no later stage runs.
    assert sorted(_rerun(lab)) == ["train", "train"]
    forget.write_text(forget.read_text() + "\nunused = 1\n")
    assert set(_rerun(lab)) == {"forget"}
    lab.plan.write_text(lab.plan.read_text().replace("GA: {name: GA}", "GA: {name: GA, options: {rate: 2}}"))
    assert sorted(_rerun(lab)) == ["forget"] * 4 + ["score"] * 4
    lab.plan.write_text(lab.plan.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    assert sorted(_rerun(lab)) == ["forget"] * 6 + ["prune", *["score"] * 6, "train"]
    helper.write_text(helper.read_text().replace("[name,", "['x', name,"))
    assert len(_rerun(lab)) == 1 + 3 + 3 + 18 + 18


def test_the_size_of_a_store_survives_files_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker renames its directory while another process sums the sizes."""
    store = Store(tmp_path)
    (tmp_path / "entries").mkdir(exist_ok=True)
    for name in ("a", "b", "c"):
        (tmp_path / "entries" / name).write_bytes(b"12345")
    assert store.size() == 15
    real = os.lstat

    def vanishing(path: str) -> os.stat_result:
        if str(path).endswith("b"):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "lstat", vanishing)
    assert store.size() == 10


def test_the_key_is_hashed_once_and_depends_on_every_ingredient() -> None:
    one = Ingredients("s", 1, {"m": "h"}, {"a": {"b": [1]}}, {"x": "y"}, None)
    assert one.key == hash_json(dataclasses.asdict(one))[:40]
    assert one.key is one.key
    changes = ({"version": 2}, {"source": {}}, {"config": {}}, {"inputs": {}}, {"fingerprint": "f"}, {"stage": "t"})
    assert len({one.key, *(dataclasses.replace(one, **change).key for change in changes)}) == 7
