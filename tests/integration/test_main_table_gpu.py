"""benchmarks/main_table_gpu.py: parts of files, and its plan in parts of time. Small, and on the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from expunge.experiments import load_plan, read_results

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.source=digits", "split.limit=120", "model.name=small-cnn", "model.options={widths: [4, 8]}",
    "training.epochs=2", "training.augment=none", "runtime={device: cpu}",
]  # fmt: skip


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("main_table_gpu", ROOT / "benchmarks" / "main_table_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three files, of which one is longer than a part and one is empty."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    for name, size in (("a.webp", 2**20 + 17), ("b.webp", 0), ("labels.npz", 700_000)):
        (folder / name).write_bytes(bytes(i * 7 % 251 for i in range(1000)) * (size // 1000) + b"x" * (size % 1000))
    return tmp_path / "data"


def test_parts_that_come_one_by_one_give_the_same_files(data: Path, tmp_path: Path) -> None:
    assert script.pack(data, tmp_path / "parts", 1) == 2
    sizes = [(tmp_path / "parts" / str(index) / "piece").stat().st_size for index in range(2)]
    assert sizes == [2**20, 700_017]
    for index, missing in ((1, [0]), (0, [])):
        come = tmp_path / f"come-{index}"  # each time the other part is gone
        come.mkdir()
        shutil.copytree(tmp_path / "parts" / str(index), come / str(index))
        assert script.join(come, tmp_path / "joined") == missing
    for path in (data / "cifar10").iterdir():
        assert (tmp_path / "joined" / "cifar10" / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_part_is_refused(data: Path, tmp_path: Path) -> None:
    script.pack(data, tmp_path / "parts", 1)
    piece = tmp_path / "parts" / "1" / "piece"
    piece.write_bytes(piece.read_bytes()[:-1] + b"y")
    with pytest.raises(SystemExit, match="not what was packed; copy it again"):
        script.join(tmp_path / "parts", tmp_path / "joined")
    with pytest.raises(SystemExit, match="no parts"):
        script.join(tmp_path / "none", tmp_path / "other")


def test_parts_of_different_packs_are_not_joined(data: Path, tmp_path: Path) -> None:
    script.pack(data, tmp_path / "parts", 1)
    shutil.rmtree(tmp_path / "parts" / "1")
    assert script.join(tmp_path / "parts", tmp_path / "joined") == [1]
    (data / "cifar10" / "b.webp").write_bytes(b"now longer")
    script.pack(data, tmp_path / "again", 1)
    shutil.rmtree(tmp_path / "again" / "0")
    with pytest.raises(SystemExit, match="parts of different packs"):
        script.join(tmp_path / "again", tmp_path / "joined")


def test_the_plan_is_that_of_the_cpu_with_another_network_and_all_records() -> None:
    """The same question, claims and methods, so that both stand side by side in docs/claims.md."""
    bodies = []
    for name in ("main-table-cifar10", script.NAME):
        places = [ROOT / "plans" / f"{name}.yaml", ROOT / "plans" / "pending" / f"{name}.yaml"]
        bodies.append(yaml.safe_load(next(path for path in places if path.is_file()).read_text()))
    cpu, gpu = bodies
    for key in ("grid", "variants", "claims", "columns", "reference", "passes_limit"):
        assert cpu[key] == gpu[key], key
    assert gpu["base"]["model"] == {"name": "resnet18"}
    assert gpu["base"]["runtime"] == {"device": "cuda", "precision": "bf16", "channels_last": True}
    assert "limit" not in gpu["base"]["split"]
    assert gpu["base"]["training"]["epochs"] == 20


def make_small_plan(path: Path) -> Path:
    """The plan with two methods, so that it takes seconds."""
    body = yaml.safe_load(script.find_plan().read_text())
    text = script.find_plan().read_text()
    seeds = body["grid"]["seed"]
    body["variants"]["method"] = {name: body["variants"]["method"][name] for name in ("Retrain", "FT")}
    body["claims"] = []
    assert f"seed: {seeds}" in text, "the script looks for this line"
    text = yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=10_000)
    path.write_text(text)
    return path


def test_runs_go_on_where_they_stopped_and_add_seeds(tmp_path: Path) -> None:
    plan = make_small_plan(tmp_path / "plan.yaml")
    place = tmp_path / "data", tmp_path / "store", tmp_path / "out"
    started = time.monotonic()
    assert script.run(plan, *place, seeds=2, minutes=0.0, overrides=SMALL) == 0  # no time: stopped at once
    assert time.monotonic() - started < 30
    assert not list((tmp_path / "out").glob("*.json"))
    assert script.run(plan, *place, seeds=2, minutes=60, overrides=SMALL) == 2
    one, two = (read_results(tmp_path / "out" / f"{script.NAME}-{count}.results.json") for count in (1, 2))
    assert [len(body["cells"]) for body in (one, two)] == [8, 16]
    assert all(cell["state"] == "finished" for cell in two["cells"])
    kept = [cell for cell in two["cells"] if cell["labels"]["seed"] == "0"]
    assert [cell["hashes"] for cell in kept] == [cell["hashes"] for cell in one["cells"]]
    written = load_plan(tmp_path / "out" / f"{script.NAME}-2.yaml", [f"data.dir={place[0]}", *SMALL])
    assert written.hash == two["plan"]["hash"]
    assert script.run(plan, *place, seeds=2, minutes=60, overrides=SMALL) == 2  # nothing is left to compute
