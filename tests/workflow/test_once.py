"""One run of `forget` loads its data once, draws each network once and traces it once (benchmarks/build_counts.py)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.registry import SOURCES
from expunge.data import registry
from expunge.experiments import load_config
from expunge.experiments.objects.records import drop_records
from expunge.models.architecture import _DRAWN
from expunge.models.drawn import DrawnNetworks
from expunge.sparsity.channels import groups
from expunge.workflow import forget

CONFIG = """
data: {source: digits}
split: {limit: 200}
model: {name: small-cnn, options: {widths: [4, 8]}}
training: {recipe: one-cycle, epochs: 1}
sparsity: {sparsity: 0.5, layers: [conv, linear], criterion: filter-l1, granularity: filter, scope: layer}
forget: {by: random, count: 10}
method: {name: Un-prune, options: {method: FT, method_options: {epochs: 1}}}
runtime: {device: cpu}
"""


def test_a_run_does_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    source, get, trace = SOURCES.get("digits"), DrawnNetworks.get, torch.fx.Tracer.trace

    def counted_get(self: Any, blueprint: Any, seed: int, draw: Any) -> Any:
        return get(self, blueprint, seed, lambda: (counts.update(["builds"]), draw())[1])

    def counted_trace(self: Any, *arguments: Any) -> Any:
        counts["traces"] += 1
        return trace(self, *arguments)

    def counted_load(directory: Any) -> Any:
        counts["loads"] += 1
        return source.load(directory)

    monkeypatch.setattr(DrawnNetworks, "get", counted_get)
    monkeypatch.setattr(torch.fx.Tracer, "trace", counted_trace)
    monkeypatch.setattr(registry, "get_source", lambda name: dataclasses.replace(source, load=counted_load))
    drop_records()
    _DRAWN._networks.clear()
    groups._traced.clear()
    (tmp_path / "run.yaml").write_text(CONFIG)
    try:
        forget(load_config(tmp_path / "run.yaml"), tmp_path / "out", store=tmp_path / "store")
    finally:
        drop_records()
    # Two networks: the original's initial weights, and those of Retrain, with the normalisation statistics of D_r.
    assert counts == {"loads": 1, "builds": 2, "traces": 1}


def test_records_are_read_again_when_a_file_changed(tmp_path: Path) -> None:
    import numpy as np

    from expunge.experiments.objects.records import read_records

    path = tmp_path / "a.npz"
    section = {"source": "npz", "options": {"path": str(path)}}
    np.savez(path, features=np.zeros((4, 3), dtype=np.float32), labels=np.asarray([0, 1, 0, 1]))
    first = read_records(section, None)
    assert read_records(section, None) is first
    np.savez(path, features=np.ones((6, 3), dtype=np.float32), labels=np.asarray([0, 1, 0, 1, 0, 1]))
    assert len(read_records(section, None)) == 6
