"""The stage of the shadow models trains them on the device and in the precision of the plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expunge.experiments.stages import shadow_models
from expunge.training import Runtime


def test_shadow_models_train_with_the_runtime_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, Any] = {}

    def train(*_: Any, **options: Any) -> dict[str, torch.Tensor]:
        used.update(options)
        return {"weight": torch.zeros(1)}

    for name in ("read_stage_records", "make_stage_split", "make_other_request", "make_stage_architecture"):
        monkeypatch.setattr(shadow_models, name, lambda *_: None)
    for name in ("draw_stage_game", "make_stage_recipe"):
        monkeypatch.setattr(shadow_models, name, lambda *_: None)
    monkeypatch.setattr(shadow_models, "make_stage_split", lambda *_: SimpleNamespace(save=lambda _: None))
    request = SimpleNamespace(to_json=dict, hash="0" * 64)
    monkeypatch.setattr(shadow_models, "make_stage_request", lambda *_: request)
    monkeypatch.setattr(shadow_models, "train_shadow_game", train)
    config = {"shadow_models": {"retrained": True}, "runtime": {"device": "cpu", "precision": "bf16"}}
    inputs: Any = SimpleNamespace(config=config, progress=None, directories={}, work_dir=tmp_path)
    shadow_models.run(inputs, tmp_path)
    assert used["runtime"] == Runtime("cpu", precision="bf16")
    assert used["retrained"] is True
