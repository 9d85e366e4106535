"""What is wrong with the data is found by `check` before anything runs; cautions and copies reach scores and report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.core.errors import DataError, ModelError
from expunge.experiments import load_config
from expunge.experiments.config.run_config import check_config
from expunge.experiments.objects.records import drop_records
from expunge.workflow import check_inputs, check_run, forget

MODULE = """
import numpy as np

class Images:
    def __init__(self, broken, size=(1, 4, 4), labels=None):
        self.broken, self.size = broken, size
        if labels:
            self.labels = [i % 2 for i in range(60)]
    def __len__(self):
        return 60
    def __getitem__(self, i):
        x = np.random.default_rng(i).random(self.size).astype(np.float32)
        if i == 47 and self.broken == "size":
            x = x[:, :3]
        if i == 47 and self.broken == "error":
            raise OSError("image file is truncated")
        if i == 47 and self.broken == "label":
            return x, 1 - i % 2
        if i == 47 and self.broken == "nan":
            x[0] = np.nan
        if self.broken == "dict":
            return {"image": x, "label": i % 2}
        return x, i % 2
"""
CONFIG = """
data: {source: python, options: {factory: "images_of_test:Images", arguments: {broken: %s, labels: true}}}
model: {name: mlp, options: {widths: [4]}}
training: {recipe: one-cycle, epochs: 1}
forget: {by: random, count: 3}
method: {name: GA}
runtime: {device: cpu}
"""


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ("size", r"item-000047: has the shape \(1, 3, 4\)"),
        ("error", "(item-000047|item 47): the dataset cannot read item 47 .OSError: image file is truncated"),
        ("label", "item-000047|item 47: the item has the label 0"),
        ("nan", "item-000047: the record has NaN"),
        ("dict", "item 0: .*dict with the keys image, label"),
        ("nothing", None),
    ],
)
def test_items_that_cannot_be_used_are_found_before_anything_runs(
    tmp_path: Path, broken: str, match: str | None
) -> None:
    (tmp_path / f"images_{broken}_of_test.py").write_text(MODULE)
    (tmp_path / "run.yaml").write_text((CONFIG % broken).replace("images_of_test", f"images_{broken}_of_test"))
    config = load_config(tmp_path / "run.yaml")
    check = check_run(config)
    if match is None:
        assert check.usable
        check_inputs(config)
        return
    errors = [finding for finding in check.findings if finding.level == "error"]
    assert errors, check.text()
    with pytest.raises(DataError, match=match) as caught:
        check_inputs(config)
    assert caught.value.what in errors[0].message
    with pytest.raises(DataError, match=match):
        forget(config, tmp_path / "out", store=tmp_path / "store")
    assert not list((tmp_path / "store").glob("entries/*/*"))  # nothing was computed


@pytest.fixture
def doubled(tmp_path: Path) -> dict[str, Any]:
    """Labels 1 and 2 of 120 records in two equal halves: every record has an exact copy."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((60, 6)).astype(np.float32)
    np.savez(tmp_path / "doubled.npz", features=np.concatenate([half, half]), labels=np.tile([1, 2], 60))
    return {
        "data": {"source": "npz", "options": {"path": str(tmp_path / "doubled.npz")}},
        "model": {"name": "mlp", "options": {"widths": [4]}},
        "training": {"recipe": "one-cycle", "epochs": 1},
        "forget": {"by": "random", "count": 10},
        "method": {"name": "GA"},
        "runtime": {"device": "cpu"},
    }


def test_check_run_and_report_name_cautions_and_copies(tmp_path: Path, doubled: dict[str, Any]) -> None:
    config = check_config(doubled)
    check = check_run(config)
    warnings = [f"{finding.subject}: {finding.message}" for finding in check.findings if finding.level == "warning"]
    assert check.usable
    assert any("data: 1 of 3 classes has no record: 0" in line for line in warnings), warnings
    copies = [line for line in warnings if "exact copy" in line]
    assert any(line.endswith("in the retain set") for line in copies), warnings
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert "note: doubled: 1 of 3 classes has no record: 0" in result.text()
    found = result.scores["about"]["copies"]["parts"]
    features = np.load(tmp_path / "doubled.npz")["features"]
    rows = {record: int(record[4:]) for record in result.outcome["request"]["record_ids"]}
    split = __import__("json").loads((tmp_path / "out" / "split.json").read_text())
    for part in ("retain", "non_members"):
        there = {features[int(record[4:])].tobytes() for record in split[part]}
        expected = sum(features[row].tobytes() in there for row in rows.values())
        assert found[part]["exact"] == expected
    assert found["retain"]["exact"] > 0
    for line in copies:
        assert f"note: {line.removeprefix('forget: ')}" in result.text()
    page = (tmp_path / "out" / "report.html").read_text()
    limits = page[page.index("What this does not show") :]
    assert "Copies of forgotten records remain." in limits
    assert f"{found['retain']['exact']} of 10 have an exact copy" in limits
    assert "1 of 3 classes has no record: 0" in page


def test_data_without_copies_say_nothing_of_them(tmp_path: Path, doubled: dict[str, Any]) -> None:
    values = {**doubled, "data": {"source": "digits"}, "split": {"limit": 100}}
    check = check_run(check_config(values))
    assert any("no record has an exact or near copy" in finding.message for finding in check.findings)
    assert not [finding for finding in check.findings if finding.level == "warning" and finding.subject == "data"]
    result = forget(check_config(values), tmp_path / "out", store=tmp_path / "store")
    assert "copy" not in result.text()
    assert "Copies of forgotten records remain." not in (tmp_path / "out" / "report.html").read_text()


def test_data_that_change_with_size_and_time_kept(tmp_path: Path, doubled: dict[str, Any]) -> None:
    """The run fails once at most; then `run it again` does help."""
    path = tmp_path / "doubled.npz"
    before = path.stat()
    first = forget(check_config(doubled), tmp_path / "out", store=tmp_path / "store")
    body = dict(np.load(path))
    np.savez(path, features=body["features"][::-1] + 1, labels=body["labels"])
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    longer = {**doubled, "training": {"recipe": "one-cycle", "epochs": 2}}
    second = forget(check_config(longer), tmp_path / "out", store=tmp_path / "store")
    assert second.outcome["hashes"]["data"] != first.outcome["hashes"]["data"]


def test_data_that_a_dataset_reads_without_naming_them(tmp_path: Path) -> None:
    """No fingerprint sees this change: the error says to run again, and running again helps."""
    data = tmp_path / "numbers.npy"
    np.save(data, np.random.default_rng(0).random((60, 3)).astype(np.float32))
    (tmp_path / "hidden_data_of_test.py").write_text(
        "import numpy as np\n"
        f"class Hidden:\n    x = np.load({str(data)!r})\n"
        f"    def __init__(self): self.x = np.load({str(data)!r})\n"
        "    def __len__(self): return 60\n"
        "    def __getitem__(self, i): return self.x[i], int(self.x[i, 0] > 0.5)\n"
    )
    text = CONFIG.replace("images_of_test:Images", "hidden_data_of_test:Hidden")
    text = text.replace("arguments: {broken: %s, labels: true}", "arguments: {}")
    (tmp_path / "run.yaml").write_text(text)
    forget(load_config(tmp_path / "run.yaml"), tmp_path / "out", store=tmp_path / "store")
    np.save(data, np.random.default_rng(1).random((60, 3)).astype(np.float32))
    config = load_config(tmp_path / "run.yaml", ["training.epochs=2"])
    drop_records()  # as in a new process
    with pytest.raises(DataError, match="differ from those of the earlier stages") as caught:
        forget(config, tmp_path / "out", store=tmp_path / "store")
    assert "run it again" in str(caught.value.hint)
    drop_records()
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert result.outcome["method"]["name"] == "GA"


def test_one_record_to_train_on_and_batch_norm_without_statistics(tmp_path: Path) -> None:
    (tmp_path / "norm_of_test.py").write_text(
        "from torch import nn\n"
        "def make(classes=10):\n"
        "    norm = nn.BatchNorm1d(6, track_running_stats=False)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), norm, nn.Linear(6, 10))\n"
    )
    (tmp_path / "run.yaml").write_text(
        "{data: {source: digits}, split: {limit: 100}, model: {name: 'norm_of_test:make', normalise: none},"
        " training: {recipe: one-cycle, epochs: 1}, forget: {by: random, count: 1}, runtime: {device: cpu}}"
    )
    ascent = load_config(tmp_path / "run.yaml", ["method.name=GA"])
    assert any("a batch of one record has no statistics" in finding.message for finding in check_run(ascent).findings)
    with pytest.raises(ModelError, match="a batch of one record has no statistics"):
        forget(ascent, tmp_path / "out", store=tmp_path / "store")
    assert not list((tmp_path / "store").glob("entries/*/*"))
    for more in (["method.name=FT"], ["method.name=GA", "forget.count=2"]):
        config = load_config(tmp_path / "run.yaml", more)
        assert check_run(config).usable
        check_inputs(config)
