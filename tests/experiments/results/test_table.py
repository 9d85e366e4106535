"""Tables compared with the printed numbers of [Jia2023] and with hand calculation."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laboratory import Lab

from expunge.core.errors import ConfigError, FileError
from expunge.core.files import write_json
from expunge.evaluation import Score, Scores
from expunge.evaluation.facts import score_title
from expunge.experiments import load_plan, read_results, render_table, run_plan, write_results
from expunge.experiments.results.summary import make_sections

SCORES = ("UA", "MIA-Efficacy", "RA", "TA")
#: [Jia2023], class-wise forgetting, FT dense; means of the table, with small changes by seed.
RETRAIN = {0: (100.0, 100.0, 100.0, 94.83), 1: (100.0, 100.0, 100.0, 94.83)}
FT = {0: (22.0, 74.0, 99.8, 94.3), 1: (23.06, 76.0, 99.94, 94.32)}


def results(**changes: Any) -> dict[str, Any]:
    cells = []
    for seed, (method, values) in itertools.product((0, 1), (("Retrain", RETRAIN), ("FT", FT))):
        scores = dict(zip(SCORES, values[seed], strict=True)) | {
            "RTE": 3.0,
            "Passes": 20.0 if method == "Retrain" else 2.0,
        }
        if method == "FT":
            scores["Disparity average"] = float(np.mean(np.abs(np.subtract(FT[seed], RETRAIN[seed]))))
        cells.append(
            {
                "labels": {"method": method, "seed": str(seed)}, "method": method, "sparsity": 0.0, "state": "finished",
                "scores": scores, "reference": 2 * seed, "is_reference": method == "Retrain",
                "cost": {"passes": scores["Passes"]}, "guarantee": "empirical",
            }
        )  # fmt: skip
    axes = [
        {"name": "method", "role": "method", "labels": ["Retrain", "FT"]},
        {"name": "seed", "role": "replicate", "labels": ["0", "1"]},
    ]
    body = {
        "plan": {"name": "p", "description": "", "file": "p.yaml", "hash": "0" * 64}, "axes": axes, "cells": cells,
        "reference": "Retrain", "passes_limit": 0.1, "claims": [], "made": {"stages": 0}, "scores": {},
    }  # fmt: skip
    return {**body, **changes}


def test_numbers_of_jia2023() -> None:
    (section,) = make_sections(results())
    row = section.rows["FT"]["dense"]
    assert row["UA"].text() == "22.53±0.75 (77.47)"
    assert row["RA"].gap == pytest.approx(0.13)
    assert row["Disparity average"].gap == pytest.approx(25.78, abs=0.005)
    assert section.rows["Retrain"]["dense"]["UA"].text() == "100.00±0.00"
    assert section.rows["Retrain"]["dense"]["Disparity average"].mean == 0
    assert section.floor["dense"]["UA"] == 0


def test_noise_floor_is_the_mean_difference_of_references() -> None:
    body = results()
    values = np.array([[10.0, 20, 90, 80], [13.0, 20, 91, 84], [11.0, 26, 90, 80]])
    template = body["cells"][0]
    body["cells"] = []
    for seed, row in enumerate(values):
        cell = copy.deepcopy(template)
        cell.update(labels={"method": "Retrain", "seed": str(seed)}, reference=seed)
        cell["scores"].update(zip(SCORES, row.tolist(), strict=True))
        body["cells"].append(cell)
    (section,) = make_sections(body)
    pairs = [np.abs(a - b) for a, b in itertools.combinations(values, 2)]
    assert [section.floor["dense"][name] for name in SCORES] == pytest.approx(np.mean(pairs, axis=0).tolist())
    assert section.floor["dense"]["Disparity average"] == pytest.approx(np.mean(pairs))
    for cell, weights in zip(body["cells"], ("a", "b", "a"), strict=True):
        cell["hashes"] = {"weights": weights}
    (section,) = make_sections(body)  # the third cell is the first one's model: one pair is left
    assert [section.floor["dense"][name] for name in SCORES] == pytest.approx(np.abs(values[0] - values[1]).tolist())
    assert section.floor["dense"]["Disparity average"] == pytest.approx(np.mean(np.abs(values[0] - values[1])))


def test_a_reference_without_one_of_the_four_scores_has_no_disparity() -> None:
    body = results()
    for cell in body["cells"]:
        cell["scores"].pop("MIA-Efficacy")
        cell["scores"].pop("Disparity average", None)
    (section,) = make_sections(body)
    assert section.rows["Retrain"]["dense"]["Disparity average"].text() == "-"
    assert section.rows["FT"]["dense"]["Disparity average"].text() == "-"
    assert "Disparity average" not in section.floor["dense"]
    assert section.floor["dense"]["UA"] == 0


def test_every_score_with_a_gap_has_its_noise_floor() -> None:
    body = results(
        columns=["UA", "AUC", "RTE"], scores={"AUC": {"unit": ""}, "UA": {"unit": "%"}, "RTE": {"unit": "s"}}
    )
    for place, cell in enumerate(body["cells"]):
        cell["scores"]["AUC"] = 0.5 + 0.0125 * place  # the references are cells 0 and 2
    floor = next(line for line in render_table(body, "markdown").splitlines() if "noise floor" in line)
    assert floor == "| *noise floor* | 0.00 | 0.025 |  |"


def test_missing_cells_are_counted() -> None:
    body = results()
    body["cells"][3].update(state="failed", message="it diverged", scores={})
    (section,) = make_sections(body)
    assert section.rows["FT"]["dense"]["UA"].text() == "22.00 (78.00) [1/2]"
    text = render_table(body)
    assert "FAILED: method FT, seed 1: it diverged" in text


@pytest.mark.parametrize(("passes", "over"), [(1.0, False), (1.01, True)])
def test_a_method_over_the_limit_of_passes_is_marked(lab: Lab, passes: float, over: bool) -> None:
    lab.plan.write_text(lab.plan.read_text().replace("{name: GA}", f"{{name: GA, options: {{passes: {passes}}}}}"))
    run = run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    for style in ("text", "markdown"):
        text = render_table(run.results, style)
        assert ("cells used more than 0.1 of the passes of Retrain" in text) == over
        assert (" !" in text) == over
    fractions = {cell["passes_fraction"] for cell in run.results["cells"] if cell["method"] == "GA"}
    assert fractions == {passes / 10}


def test_a_table_needs_only_the_result_file(lab: Lab) -> None:
    claim = (
        "claims:\n  - {name: c, statement: it is so, score: UA, where: {method: FT}, expect: lower,\n"
        "     compare: [{sparsity: 95 %}, {sparsity: dense}]}\n"
    )
    lab.plan.write_text(lab.plan.read_text() + claim)
    run = run_plan(load_plan(lab.plan), store=lab.store, stages=lab.stages)
    read = read_results(run.path)
    for style in ("text", "markdown"):
        assert render_table(read, style) == render_table(run.results, style)
    text = render_table(read, "markdown")
    assert "UA % dense | UA % 95 %" in text
    assert "forget random (2 seeds)" in text
    assert "noise floor" in text
    assert "**c**: it is so (UA: sparsity 95 % lower than sparsity dense)" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_unknown_style_and_bad_file(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="did you mean 'markdown'"):
        render_table(results(), "markdwn")
    path = lab.root / "x.json"
    path.write_text("{}")
    with pytest.raises(FileError, match=r"not 'expunge\.results'"):
        read_results(path)


def test_results_of_a_migrated_plan_keep_the_hash_under_which_its_claims_were_fixed(tmp_path: Path) -> None:
    """`plan.hash_before_rename` is optional and must be a hash; files of schema version 2 are refused."""
    path = tmp_path / "p.results.json"
    body = results()
    for earlier in ("f" * 64, "0123456789abcdef" * 4):
        body["plan"]["hash_before_rename"] = earlier
        write_results(path, body)
        assert read_results(path)["plan"]["hash_before_rename"] == earlier
    for wrong in ("f" * 63, "F" * 64, 5, ["f" * 64], ""):
        body["plan"]["hash_before_rename"] = wrong
        write_results(path, body)
        with pytest.raises(FileError, match=r"plan\.hash_before_rename: is "):
            read_results(path)
    write_json(path, "expunge.results", 2, results())
    with pytest.raises(FileError, match="version 2"):
        read_results(path)


def test_the_legend_names_the_columns_that_are_shown() -> None:
    assert "UA, MIA-Efficacy, RA, TA: mean±spread over seeds (gap" in render_table(results())
    shown = render_table(results(columns=["UA", "Entropy"]))
    assert "UA, Entropy: mean±spread" in shown or "UA: mean±spread over seeds (gap" in shown
    legend = shown.split("noise floor")[-1]
    assert "Entropy" in legend
    assert "MIA-Efficacy" not in shown
    assert "RA, TA" not in shown
    many = render_table(results(columns=["UA", *(f"Custom {n}" for n in range(4))]))
    assert "Other columns: mean±spread over seeds." in many


def test_a_score_by_reference_has_one_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tables of plans, in claims and in the table of a run: the registered name."""
    monkeypatch.chdir(tmp_path)
    Path("titled_scores.py").write_text(
        "from expunge.evaluation import register_score\n"
        '@register_score("Mean confidence", unit="%", gap=True)\n'
        "def mean(inputs):\n    '''Mean.'''\n    return 1.0\n"
    )
    name = "titled_scores:mean"
    claim = {
        "name": "sure", "statement": "FT is surer.", "score": f"gap:{name}", "expect": "higher", "by": 0, "level": 0.9,
        "compare": [{"method": "FT"}, {"method": "Retrain"}], "checks": [],
    }  # fmt: skip
    body = results(columns=["UA", name], claims=[claim])
    for cell in body["cells"]:
        cell["scores"][name] = 50.0
    shown = render_table(body)
    assert "Mean confidence %" in shown
    assert "UA, Mean confidence: mean±spread" in shown
    assert "gap:Mean confidence: method FT higher than method Retrain" in shown
    assert name not in shown
    score = Score(name, 50.0, "%", "reference", "Mean.")
    assert score.row()["score"] == "Mean confidence"
    assert Scores((score,), {}, ()).to_json()["scores"][0]["name"] == name, "its identity is the reference"
    assert score_title("no_such_module:mean") == "no_such_module:mean"


def test_the_noise_floor_is_explained_where_one_is_shown() -> None:
    explained = "mean absolute difference over pairs of references"
    assert explained in render_table(results())
    body = results()
    one = {**body, "cells": body["cells"][:2]}
    assert explained not in render_table(one)
