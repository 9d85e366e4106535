"""Streams in the store: what the stages after `data` depend on changes with the files and the code of a stream."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import expunge
from expunge.core.errors import ConfigError
from expunge.data import Records, make_split
from expunge.data import batches as batches_module
from expunge.experiments.config.plan import Cell
from expunge.experiments.config.run_config import RunConfig, RuntimeConfig
from expunge.experiments.objects.records import drop_records, hash_records, read_records
from expunge.experiments.scheduler.graph import build_graph
from expunge.experiments.stages.registry import StageInputs
from expunge.experiments.stages.stage_inputs import make_stage_runtime
from expunge.training import Runtime

CODE = """
import numpy as np


class Numbers:
    labels = [0, 1, 0]

    def __len__(self):
        return 3

    def __getitem__(self, row):
        return np.full(4, float(open({path!r}).read()) * {scale}, dtype=np.float32), self.labels[row]
"""


def read_hash(section: dict[str, object]) -> str:
    drop_records()
    return hash_records(read_records(section, None), section, None)


def test_edits_of_a_dataset_and_its_files_are_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    value = tmp_path / "value.txt"
    value.write_text("1")
    (tmp_path / "edited_numbers.py").write_text(CODE.format(path=str(value), scale=1))
    section = {
        "source": "python",
        "options": {"factory": "edited_numbers:Numbers", "depends_on": [str(value)]},
    }
    first = read_hash(section)
    assert read_hash(section) == first
    value.write_text("2")
    edited = read_hash(section)
    assert edited != first
    (tmp_path / "edited_numbers.py").write_text(CODE.format(path=str(value), scale=3))
    sys.modules.pop("edited_numbers", None)
    importlib.invalidate_caches()
    assert read_hash(section) not in (first, edited)


def test_an_edited_image_is_other_data_and_a_copy_is_not(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / "one" / kind).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "one" / kind / "0.png")
    section = {"source": "folder", "options": {"path": str(tmp_path / "one")}}
    first = read_hash(section)
    os.utime(tmp_path / "one" / "a" / "0.png", (5, 5))  # touched, with the same contents
    assert read_hash(section) == first
    Image.fromarray(np.full((4, 4, 3), 8, np.uint8)).save(tmp_path / "one" / "a" / "0.png")
    assert read_hash(section) != first


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_reach_the_runtime_and_no_key(workers: int) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"source": "digits"}, "model": {"name": "mlp"}, "forget": {"by": "random", "count": 3},
            "method": {"name": "GA"}, "training": {"recipe": "one-cycle", "epochs": 1},
            "runtime": {"device": "cpu", "workers": workers},
        }
    )  # fmt: skip
    graph = build_graph([Cell({}, config, 0)])
    plain = build_graph([Cell({}, config.model_copy(update={"runtime": RuntimeConfig(device="cpu")}), 0)])
    assert list(graph.nodes) == list(plain.nodes)
    nodes = [node for node in graph.nodes.values() if "runtime" in node.config]
    assert nodes
    for node in nodes:
        assert "workers" not in node.config["runtime"]
        inputs = StageInputs(node.settings, {}, {}, None, Path("work"))
        assert make_stage_runtime(inputs).workers == workers


def test_every_loader_of_a_training_run_has_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = batches_module.DataLoader

    def count(*arguments: object, **options: object) -> object:
        seen.append(int(str(options["num_workers"])))
        return real(*arguments, **{**options, "num_workers": 0})

    monkeypatch.setattr(batches_module, "DataLoader", count)
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    records = Records.from_dataset([(row, int(i % 2)) for i, row in enumerate(x)])
    split = make_split(records, seed=0)
    runtime = Runtime(device="cpu", workers=2)
    architecture = expunge.architecture("mlp", records, widths=(4,), normalise="none")
    trained = expunge.train(
        records, split, architecture, recipe=expunge.get_recipe("one-cycle", epochs=1), runtime=runtime
    )
    expunge.predict_logits(trained.model, records, np.arange(4), runtime=runtime)
    assert seen
    assert set(seen) == {2}


@pytest.mark.parametrize("workers", [-1, 1.5, True, 10_000])
def test_wrong_numbers_of_workers_are_refused(workers: object) -> None:
    with pytest.raises(ConfigError, match="workers"):
        Runtime(device="cpu", workers=workers)  # type: ignore[arg-type]
