"""Columns that compare with the retrained model: KL, disagreement, the IoU gain; with the noise of a rerun."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from expunge.core.errors import ConfigError
from expunge.evaluation.predictions import predict_parts
from expunge.evaluation.scores.retrained_distance import disagreement, kl_to_retrained
from expunge.evaluation.topology import iou
from expunge.experiments import load_plan, read_results, render_table, run_plan
from expunge.experiments.config.plan_file import Claim
from expunge.experiments.results.claims import cell_score, check_claim
from expunge.experiments.results.summary import make_sections
from expunge.experiments.scheduler.status import PlanState
from expunge.experiments.store.store import Store
from expunge.models import load_trained

PLANS = Path(__file__).parents[3] / "plans"
NAMES = ("KL on D_f", "KL on test", "Disagreement on D_f", "Disagreement on test")
PLAN = """\
name: distances
base:
  data: {source: digits}
  split: {limit: 600}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 2, batch_size: 64}
  forget: {by: class, index: 3}
  evaluation: {svc_records: 50, scores: [KL on D_f, KL on test, Disagreement on D_f, Disagreement on test]}
  runtime: {device: cpu}
grid:
  seed: [0, 1]
variants:
  sparsity:
    dense: {sparsity: null}
    80 %: {sparsity: {sparsity: 0.8, layers: [linear]}}
  method:
    RR: {method: {name: Retrain, options: {mask: re-prune}}}
    RR rerun: {method: {name: Retrain, options: {mask: re-prune, seeds: order}}}
    unchanged: {method: {name: Un-prune, options: {rule: unchanged, method_options: {epochs: 1}}}}
    random: {method: {name: Un-prune, options: {rule: random, method_options: {epochs: 1}}}}
    FT: {method: {name: FT, options: {epochs: 1}}}
adjust:
  - {when: {sparsity: dense, method: [RR, RR rerun]}, set: {method.options.mask: same}}
exclude:
  - {sparsity: dense, method: [unchanged, random]}
  - {sparsity: 80 %, method: FT}
reference: RR
rerun: RR rerun
columns: [IoU gain, KL on D_f, KL on test, Disagreement on D_f, Disagreement on test, Passes]
passes_limit: 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("distances")
    run = run_plan(load_plan(write(root, PLAN)), store=root / "store")
    assert run.failures == ()
    return root, run.results


def test_scores_are_those_of_the_two_models(ran: tuple[Path, dict[str, Any]]) -> None:
    from expunge.core.request import ForgetRequest
    from expunge.data import load_records

    root, results = ran
    plan = load_plan(root / "plan.yaml")
    state = PlanState(plan, Store(root / "store"))
    records = load_records("digits")
    parts, masks = [], []
    for cell, chain in zip(results["cells"], state.graph.cells, strict=True):
        entry = state.entry(state.graph.nodes[chain["forget"]])
        assert entry is not None
        trained = load_trained(entry.path)
        wanted = trained.split.forget
        request = ForgetRequest(wanted, forgotten_class=3)
        parts.append(predict_parts(trained, request, records))
        masks.append(trained.mask)
        assert set(NAMES) <= set(cell["scores"])
    for index, cell in enumerate(results["cells"]):
        own, other = parts[index], parts[cell["reference"]]
        expected = {
            "KL on D_f": kl_to_retrained(own.forget, other.forget).mean(),
            "KL on test": kl_to_retrained(own.legacy_test, other.legacy_test).mean(),
            "Disagreement on D_f": disagreement(own.forget, other.forget),
            "Disagreement on test": disagreement(own.legacy_test, other.legacy_test),
        }
        for name, value in expected.items():
            assert cell["scores"][name] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, cell["labels"])
        if cell["is_reference"]:
            assert set(expected.values()) == {0.0}
        else:
            assert expected["KL on D_f"] > 0.001
        gain = cell_score(cell, results["cells"], "IoU gain")
        own_mask, reference_mask = masks[index], masks[cell["reference"]]
        if own_mask is None or reference_mask is None:
            assert gain is None
            continue
        unchanged = next(
            m for m, c in zip(masks, results["cells"], strict=True)
            if c["labels"] == {**cell["labels"], "method": "unchanged"}
        )  # fmt: skip
        assert unchanged is not None
        assert gain == pytest.approx(iou(own_mask, reference_mask) - iou(unchanged, reference_mask), abs=1e-8)


def test_the_floor_is_the_mean_of_the_reruns(ran: tuple[Path, dict[str, Any]]) -> None:
    _, results = ran
    (section,) = make_sections(results)
    for column, name in itertools.product(("dense", "80 %"), (*NAMES, "IoU gain")):
        cells = [
            cell_score(cell, results["cells"], name)
            for cell in results["cells"]
            if (cell["labels"]["method"], cell["labels"]["sparsity"]) == ("RR rerun", column)
        ]
        if (column, name) == ("dense", "IoU gain"):
            assert name not in section.floor[column]
        else:
            assert section.floor[column][name] == pytest.approx(np.mean([float(c) for c in cells if c is not None]))
    assert "UA" in section.floor["dense"], "floors of gaps stay"
    for style in ("text", "markdown"):
        table = render_table(results, style)
        assert "Noise floor of IoU gain, KL on D_f, KL on test, Disagreement on D_f, Disagreement on test: " in table
        assert "IoU gain: with the 95 % t interval" in table
    assert "nats" in results["scores"]["KL on D_f"]["unit"]
    del results["rerun"]
    assert "second retrained model" not in render_table(results)


def test_a_plan_that_does_not_measure_them_is_an_error(tmp_path: Path) -> None:
    text = "".join(line for line in PLAN.splitlines(keepends=True) if "evaluation:" not in line)
    with pytest.raises(ConfigError, match="no cell measures the score 'KL on D_f'") as caught:
        load_plan(write(tmp_path, text))
    assert "evaluation: {scores: ['KL on D_f']}" in str(caught.value)
    assert "plan.yaml:28: " in str(caught.value)
    gain = text.replace(", KL on D_f, KL on test, Disagreement on D_f, Disagreement on test", "")
    assert load_plan(write(tmp_path, gain)).columns == ("IoU gain", "Passes")


def test_the_gain_of_a_committed_study_is_the_paired_difference() -> None:
    results = read_results(PLANS / "topology-digits.results.json")
    results["columns"] = ["IoU gain"]
    cells = results["cells"]

    def values(mask: str) -> dict[str, float]:
        wanted = {"method": "FT", "mask": mask, "sparsity": "90 % of weights", "forget": "class 3"}
        return {c["labels"]["seed"]: c["scores"]["IoU"] for c in cells if wanted.items() <= c["labels"].items()}

    influence, unchanged = values("influence"), values("unchanged")
    gains = np.array([influence[seed] - unchanged[seed] for seed in sorted(influence)])
    half = t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    section = next(s for s in make_sections(results) if s.case == {"forget": "class 3"})
    row = section.rows["FT, influence"]["90 % of weights"]["IoU gain"]
    assert len(gains) == 5
    assert row.mean == pytest.approx(gains.mean())
    assert row.interval == pytest.approx((gains.mean() - half, gains.mean() + half))
    assert row.text() == (
        f"{gains.mean():.3f}±{gains.std(ddof=1):.3f} [{gains.mean() - half:.3f}, {gains.mean() + half:.3f}]"
    )
    assert section.rows["FT, unchanged"]["90 % of weights"]["IoU gain"].mean == 0
    # the same as a claim on the gain: paired by seed, with the same interval
    claim = Claim(
        name="c", statement="s", score="IoU gain", compare=({"mask": "influence"}, {"mask": "unchanged"}),
        where={"method": "FT", "sparsity": "90 % of weights", "forget": "class 3"}, expect="higher",
    )  # fmt: skip
    (check,) = check_claim(claim, cells, results["axes"])["checks"]
    assert check["interval"] == pytest.approx(row.interval)
