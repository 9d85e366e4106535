"""The peak memory of a stage is that of its own time, also in a process that had more before."""

from __future__ import annotations

import json
import sys
from mmap import PAGESIZE, mmap
from pathlib import Path
from types import SimpleNamespace

import pytest

from expunge.core.hashing import hash_json
from expunge.experiments.store import environment
from expunge.experiments.store import memory as module
from expunge.experiments.store.memory import PeakMemory
from expunge.experiments.store.store import Ingredients, Store

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the peak")
STAGE = Ingredients("train", 1, {"m": "1"}, {"epochs": 2}, {"data": "d"}, None)


def use(mib: int) -> None:
    """Pages of its own: `malloc` could serve the block from a part of the heap that is resident already."""
    with mmap(-1, mib * MIB) as block:
        for start in range(0, len(block), PAGESIZE):
            block[start] = 1


def peak(found: PeakMemory) -> float:
    resident = found.to_json()["resident"]
    assert resident is not None
    return float(resident) / MIB


@linux
def test_each_block_has_its_own_peak() -> None:
    with PeakMemory() as nothing:
        pass
    use(200)
    with PeakMemory() as later:
        pass
    with PeakMemory() as large:
        use(100)
        with PeakMemory() as inside:
            use(20)
    assert abs(peak(later) - peak(nothing)) < 40  # not the 200 MiB that were freed before
    assert peak(large) > peak(nothing) + 80  # the block inside does not reset that of the outer one
    assert peak(inside) < peak(nothing) + 60


def test_a_system_that_keeps_only_one_peak_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 100, 100, 150])
    monkeypatch.setattr(module, "_CLEAR", "/nonexistent/clear_refs")
    monkeypatch.setattr(module, "_read_peak", lambda: next(peaks))
    with PeakMemory() as below:
        pass
    assert below.to_json() == {"resident": None}  # the peak is of something before
    with PeakMemory() as above:
        pass
    assert above.to_json() == {"resident": 150}


def test_a_gpu_is_measured_if_torch_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        reset_peak_memory_stats=lambda: calls.append("reset"),
        max_memory_allocated=lambda: 7 if calls else 0,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with PeakMemory() as found:
        pass
    assert found.to_json()["gpu"] == 7


@linux
def test_entries_have_it_and_older_ones_are_read_without(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def run(out: Path, work: Path) -> str:
        use(50)
        return "output"

    entry = store.compute(STAGE, run, label="x")
    assert entry.memory["resident"] is not None
    assert entry.memory["resident"] > 50 * MIB
    assert not entry.resumed
    path = entry.path / "entry.json"
    body = json.loads(path.read_text())
    head = {key: body.pop(key) for key in ("kind", "schema_version", "hash")}
    del body["memory"]
    path.write_text(json.dumps({**head, **body, "hash": hash_json(body)}))
    older = Store(tmp_path).find("train", STAGE.key)
    assert older is not None
    assert older.memory == {}


def test_a_stage_that_continued_from_a_checkpoint_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, resumed in (("split.json", False), ("train.safetensors", True)):
        work = store.work_directory(STAGE.key)
        work.mkdir(parents=True)
        (work / name).write_text("")
        entry = store.compute(STAGE, lambda out, work: "output", label="x")
        assert entry.resumed is resumed
        store.drop(entry)


def test_the_first_stage_of_its_name_in_a_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_RAN", set())
    store = Store(tmp_path)
    found = []
    for seed in range(2):
        stage = Ingredients("train", 1, {"m": "1"}, {"seed": seed}, {"data": "d"}, None)
        found.append(store.compute(stage, lambda out, work: "output", label="x").first)
    assert found == [True, False]


def test_a_stage_does_not_list_those_that_have_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a plan of n stages would read n * n names; leftovers are looked for after a stage that did not end."""
    store, listed = Store(tmp_path), []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: listed.append(pattern) or glob(path, pattern))
    store.compute(STAGE, lambda out, work: "output", label="x")
    assert listed == []
    store.drop(Store(tmp_path).find("train", STAGE.key))  # type: ignore[arg-type]
    leftover = store.entry_directory("train", STAGE.key).with_name(f".{STAGE.key}.0123")
    leftover.mkdir()
    store.work_directory(STAGE.key).mkdir(parents=True)
    store.compute(STAGE, lambda out, work: "output", label="x")
    assert not leftover.exists()
