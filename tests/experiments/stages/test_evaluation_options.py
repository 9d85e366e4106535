"""The options of the evaluation in a plan: further scores of every cell, the reference's included."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.core.errors import ConfigError
from expunge.experiments import load_plan, render_table, run_plan

PLAN = """\
name: options
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [12]}}
  training: {recipe: one-cycle, lr_schedule: constant, warmup: 0, momentum: 0, weight_decay: 0, epochs: 2,
    batch_size: 256}
  forget: {by: random, fraction: 0.1}
  evaluation: {bound: true, svc_records: 60, svc_ratios: ["1:2", "9:1"]}
  runtime: {device: cpu}
variants:
  sparsity:
    dense: {sparsity: null}
    80 %: {sparsity: {sparsity: 0.8, layers: [linear], schedule: at-init, criterion: SNIP}}
  method:
    Retrain: {method: {name: Retrain}}
    GA: {method: {name: GA, options: {epochs: 1, momentum: 0, weight_decay: 0}}}
columns: [Distance, Bound, Recursion error, "MIA-Efficacy 1:2", "MIA-Efficacy 9:1"]
passes_limit: 1
"""


def test_a_plan_with_the_bound_and_other_ratios(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    run = run_plan(load_plan(tmp_path / "plan.yaml"), store=tmp_path / "store")
    for cell in run.results["cells"]:
        scores, alone = cell["scores"], cell["labels"]["method"] == "Retrain"
        assert {"Distance", "Bound", "sigma", "MIA-Efficacy 1:2", "MIA-Efficacy 9:1"} <= set(scores)
        assert (scores["Distance"] == 0) == alone
        assert ("Recursion error" in scores) != alone
    assert "Recursion error" in render_table(run.results)


def test_an_unknown_ratio(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace('"9:1"', '"3:1"', 1))
    with pytest.raises(ConfigError, match="svc_ratios"):
        load_plan(tmp_path / "plan.yaml")
