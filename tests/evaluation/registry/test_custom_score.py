"""A score of someone else's: in a module of its own, by `package.module:name`, in Python, plans, tables and claims."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import ConfigError, TrustError
from expunge.core.registry import SCORES
from expunge.evaluation import (
    Score,
    Scores,
    evaluate,
    score_facts,
    summarise,
)
from expunge.evaluation.facts import built_in_facts, make_facts
from expunge.evaluation.registry.measure import find_scores
from expunge.experiments import check_plan, load_config, load_plan, read_results, render_figure, render_table, run_plan
from expunge.experiments.config.registry_checks import check_names
from expunge.report import Comparison, ModelResult, ReportContent, ReportScore, RequestSummary, Scenario, render_report

MODULE = '''\
"""A score of my own."""

from expunge.evaluation import ScoreInputs, register_score


@register_score("Mean confidence", unit="%", needs=("predictions",), decimals=1, gap=True, legend="Mine: a mean.")
def mean_confidence(inputs: ScoreInputs) -> float:
    """Mean probability of the true label on D_f: 100 mean(p_y)."""
    return 100 * float(inputs.parts.forget.confidence.mean())
'''
NAME = "scores_of_a_stranger:mean_confidence"
PLAN = f"""
name: strange
base:
  data: {{source: digits}}
  split: {{limit: 150}}
  model: {{name: mlp, options: {{widths: [4]}}}}
  training: {{recipe: one-cycle, epochs: 1}}
  forget: {{by: random, count: 9}}
  evaluation: {{scores: ["{NAME}"]}}
  runtime: {{device: cpu}}
grid:
  method: [{{name: Retrain}}, {{name: FT, options: {{epochs: 1}}}}]
  seed: [0, 1]
columns: [UA, "{NAME}"]
claims:
  - name: surer
    statement: FT is surer of D_f than Retrain.
    score: "{NAME}"
    compare: [{{method: FT}}, {{method: Retrain}}]
    expect: higher
  - name: far
    statement: the gap is above 0
    score: "gap:{NAME}"
    compare: [{{method: FT}}, {{method: Retrain}}]
    expect: higher
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the module; what it registers is removed after the test."""
    monkeypatch.chdir(tmp_path)
    Path("scores_of_a_stranger.py").write_text(MODULE)
    with SCORES.temporary():
        yield tmp_path
    sys.modules.pop("scores_of_a_stranger", None)


def run(world, weight=0.0, split=None, **options):
    trained = world.trained(split, weight)
    return evaluate(trained, world.request, world.records, predict=world.predict, **options)


def expected(world):
    parts = world.parts().forget
    odds = np.exp(parts.logits.astype(float))
    return 100 * float(np.mean(odds[np.arange(len(parts)), parts.labels] / odds.sum(1)))


def test_the_module_is_short() -> None:
    assert len(MODULE.splitlines()) <= 15


MODELS = (
    MODULE
    + """

@register_score("Moved", needs=("models",))
def moved(inputs: ScoreInputs) -> float:
    \"\"\"Distance of the weights from the original's.\"\"\"
    pairs = zip(inputs.trained.model.parameters(), inputs.original.model.parameters(), strict=True)
    return sum(float((a - b).detach().pow(2).sum()) for a, b in pairs) ** 0.5
"""
)


def test_it_is_measured_where_it_is_named(world, place):
    scores = run(world, scores=[NAME])
    assert scores[NAME].value == pytest.approx(expected(world))
    assert (scores[NAME].unit, scores[NAME].direction) == ("%", "reference")
    assert scores[NAME].definition == "Mean probability of the true label on D_f: 100 mean(p_y)."
    assert scores.about["scores"] == [NAME]
    plain = run(world)
    assert plain.scores == tuple(score for score in scores if score.name != NAME)
    assert "scores" not in plain.about
    assert Scores.from_json(scores.to_json()) == scores


def test_it_gets_the_value_of_the_reference(world, place):
    after = world.request.apply(world.split)
    scores = run(world, scores=[NAME], reference=world.trained(after, 1.0))
    assert scores[NAME].gap == pytest.approx(0, abs=1e-4)
    assert all("no gap" not in note for note in scores.notes)
    without = run(world, 1.0, after)
    found = run(world, scores=[NAME], reference=without)
    assert found[NAME].reference is None
    assert f"{NAME} has no gap: the reference has no such score" in found.notes


def test_a_plan_has_it_in_columns_and_claims(place):
    Path("strange.yaml").write_text(PLAN)
    plan = load_plan("strange.yaml")
    assert "scores_of_a_stranger" not in sys.modules, "loading a plan imports nothing"
    check_plan(plan)
    results = run_plan(plan, store="store").results
    values = [cell["scores"][NAME] for cell in results["cells"]]
    assert len(values) == 4
    assert results["scores"][NAME]["unit"] == "%"
    surer, far = results["claims"]
    assert surer["checks"][0]["pairs"] == far["checks"][0]["pairs"] == 2
    by_label = {(cell["labels"]["method"], cell["labels"]["seed"]): cell["scores"][NAME] for cell in results["cells"]}
    gaps = [by_label["FT", seed] - by_label["Retrain", seed] for seed in ("0", "1")]
    assert surer["checks"][0]["gain"] == pytest.approx(np.mean(gaps))
    assert far["checks"][0]["gain"] == pytest.approx(np.mean(np.abs(gaps)))
    table = render_table(results, "markdown")
    assert "| Mean confidence % dense |" in table
    assert "Mine: a mean." in table
    mean, spread = (
        np.mean([by_label["Retrain", s] for s in "01"]),
        np.std([by_label["Retrain", s] for s in "01"], ddof=1),
    )
    assert f"| {mean:.1f}±{spread:.1f} |" in table


def test_a_plan_gives_it_the_original_and_the_retrained_model(place):
    Path("scores_of_a_stranger.py").write_text(MODELS)
    text = PLAN.replace(NAME, "scores_of_a_stranger:moved").replace("seed: [0, 1]", "seed: [0]")
    Path("strange.yaml").write_text(text.partition("claims:")[0])
    cells = run_plan(load_plan("strange.yaml"), store="store").results["cells"]
    values = [cell["scores"]["scores_of_a_stranger:moved"] for cell in cells]
    assert all(value > 0 for value in values)
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("columns: [UA,", "columns: [UB,", "did you mean 'UA'"),
        ("  evaluation:", "  # evaluation:", "no cell measures the score"),
        ('    score: "gap:', '    score: "gap:x', "no cell measures the score"),
    ],
)
def test_a_plan_that_names_another_score_is_refused(place, line, instead, message):
    Path("strange.yaml").write_text(PLAN.replace(line, instead))
    with pytest.raises(ConfigError, match=message):
        load_plan("strange.yaml")


def test_case_does_not_matter(place):
    Path("strange.yaml").write_text(PLAN.replace("columns: [UA,", "columns: [ua, disparity AVERAGE,"))
    assert load_plan("strange.yaml").columns[:2] == ("UA", "Disparity average")


def test_a_configuration_may_name_modules_beside_it_and_no_others(place, tmp_path_factory):
    text = PLAN.partition("base:\n")[2].partition("grid:")[0].replace("\n  ", "\n").removeprefix("  ")
    Path("run.yaml").write_text(text)
    check_names(load_config("run.yaml"))
    assert find_scores([NAME])[0].name == NAME
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "run.yaml").write_text(text.replace(NAME, "os.path:join"))
    with pytest.raises(TrustError):
        check_names(load_config(elsewhere / "run.yaml"))
    (elsewhere / "run.yaml").write_text(text.replace(NAME, "UB"))
    with pytest.raises(ConfigError, match="did you mean 'UA'"):
        check_names(load_config(elsewhere / "run.yaml"))


def test_facts_are_read_without_importing(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    facts = score_facts(NAME)
    assert (facts.unit, facts.decimals, facts.gap, facts.heading) == ("%", 1, True, "Mean confidence %")
    assert facts.order < score_facts("RTE").order
    assert "scores_of_a_stranger" not in sys.modules
    assert score_facts("scores_of_nobody:x").unit == ""


def test_a_fact_that_the_source_does_not_show_is_refused(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    Path("scores_of_a_stranger.py").write_text(
        MODULE.replace('unit="%"', "unit=UNIT").replace("\n\n\n@", '\n\nUNIT = "%"\n\n\n@')
    )
    with pytest.raises(ConfigError, match="the fact 'unit' is not a literal"):
        find_scores([NAME])
    assert "Mean confidence" not in SCORES


def test_reading_facts_and_printing_tables_imports_no_score():
    plan = Path(__file__).parents[3] / "plans" / "patches-adult.results.json"
    code = (
        "import sys; from expunge.evaluation import list_scores; from expunge.experiments import *; list_scores(); "
        f"print(render_table(read_results({str(plan)!r}))); "
        "print([m for m in sys.modules if m == 'torch' or m.startswith('expunge.evaluation.scores.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Region radius" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_score_has_a_meaning_and_a_citation():
    facts = built_in_facts().values()
    assert len(facts) > 50
    assert all(one.text.endswith(".") and one.citation for one in facts)
    with pytest.raises(ConfigError, match="no fact"):
        make_facts("x", {"columns": 1}, "")


def test_further_scores_are_added_in_the_order_of_the_tables():
    """`Scores.with_scores` used to know the names of this package only."""
    scores = Scores((Score("UA", 1.0, "%", "reference", "d."), Score("RTE", 1.0, "s", "lower", "d.")))
    more = scores.with_scores([Score("Mine", 1.0, "", "higher", "d.")])
    assert more.names == ("UA", "Mine", "RTE")


def test_a_result_file_that_names_code_makes_nothing_run(tmp_path, monkeypatch):
    """A name in a file from elsewhere is looked up in sources; a module beside it is read, and never imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("open('was-here', 'w').close()\n\n\ndef score(inputs):\n    return 1.0\n")
    body = json.loads((Path(__file__).parents[3] / "plans" / "patches-adult.results.json").read_text())
    name = "evil:score"
    body.update(
        columns=["UA", name], cells=[{**cell, "scores": {**cell["scores"], name: 1.0}} for cell in body["cells"]]
    )
    Path("x.results.json").write_text(json.dumps(body))
    results = read_results("x.results.json")
    assert f"{name} " in render_table(results, "markdown")
    assert "<svg" in render_figure(results, name)
    summarise([Scores((Score(name, 1.0, "", "higher", "d."),))] * 2)
    report = ReportContent("t", (Scenario("s", RequestSummary(1), (Comparison("dense", (
        ModelResult("FT", "unlearned", {name: ReportScore(name, 1.0)}),)),)),))  # fmt: skip
    assert name in render_report(report)
    assert not Path("was-here").exists()
    assert "evil" not in sys.modules
