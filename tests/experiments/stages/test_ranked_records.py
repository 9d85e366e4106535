"""Stages that rank records by training: what they leave beside their checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.core.split import Split
from expunge.data import Records, make_split
from expunge.experiments.stages import confidences, memorise, stage_inputs


@pytest.mark.parametrize("stage", [confidences, memorise], ids=["confidences", "memorise"])
def test_the_split_is_beside_the_checkpoints_when_the_training_is_interrupted(
    stage: Any, tmp_path: Path, digits: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(digits, limit=100)
    monkeypatch.setattr(stage_inputs, "read_stage_records", lambda _: digits)
    monkeypatch.setattr(stage_inputs, "make_stage_split", lambda *_: split)
    for name in ("make_stage_architecture", "make_stage_recipe", "make_stage_runtime"):
        monkeypatch.setattr(stage, name, lambda *_: None)

    def interrupt(records: Records, *_: Any, **__: Any) -> None:
        assert records is digits
        raise KeyboardInterrupt

    measure = "measure_training_confidences" if stage is confidences else "measure_held_out_losses"
    monkeypatch.setattr(stage, measure, interrupt)
    inputs: Any = SimpleNamespace(config={"memorised": {}}, work_dir=tmp_path, progress=None)
    with pytest.raises(KeyboardInterrupt):
        stage.run(inputs, tmp_path / "out")
    saved = Split.load(tmp_path / "split.json")
    assert saved.retain.tolist() == split.retain.tolist()
