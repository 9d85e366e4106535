"""A report of a small plan: means over seeds, one scenario per request, different requests are not merged."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.app import run
from expunge.core.files import read_json
from expunge.evaluation import disparity_of_means, summarise
from expunge.evaluation.score import NO_REFERENCE, Score, Scores
from expunge.evaluation.scores.disparity import TERMS
from expunge.experiments.config.plan import load_plan
from expunge.experiments.config.run_config import canonical_config, check_config
from expunge.experiments.results.summary import make_sections
from expunge.experiments.scheduler.collect import collect
from expunge.experiments.scheduler.status import PlanState
from expunge.report import (
    Comparison,
    Measured,
    ReportContent,
    ReportWarning,
    assemble_comparison,
    render_report,
)
from expunge.workflow import load_demo_plan, make_report_content
from expunge.workflow import report as reporting
from expunge.workflow.run_stages import open_state, run_stages

PLAN = """\
name: small
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 2}
  runtime: {device: cpu}
grid:
  seed: [0, 1, 2]
  sparsity:
    dense: null
    all layers: {sparsity: 0.5, layers: [linear]}
variants:
  forget:
    some: {forget: {by: random, count: 30}}
    the class 3: {forget: {by: class, index: 3}}
  method:
    Retrain: {method: {name: Retrain}}
    GA: {method: {name: GA, options: {epochs: 1}}}
"""

DRAWS = """\
name: draws
base:
  data: {source: digits}
  model: {name: mlp, options: {widths: [8]}}
  training: {recipe: one-cycle, epochs: 2}
  forget: {by: random, count: 30}
  runtime: {device: cpu}
grid:
  forget.seed: [0, 1]
  method:
    Retrain: {name: Retrain}
    GA: {name: GA, options: {epochs: 1}}
"""

RUN = """\
data: {source: digits}
model: {name: mlp, options: {widths: [4]}}
training: {recipe: one-cycle, epochs: 1}
forget: {by: ids, ids: [digit-0009, digit-0119, digit-0123, digit-0010], on_missing: skip}
method: {name: FT, options: {epochs: 1}}
runtime: {device: cpu}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `RUN`, so that its stages run once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> PlanState:
    place = tmp_path_factory.mktemp("report")
    (place / "small.yaml").write_text(PLAN)
    state = open_state(load_plan(place / "small.yaml"), place / "store", originals=True)
    run_stages(state, None)
    return state


@pytest.fixture(scope="module")
def content(state: PlanState) -> ReportContent:
    return make_report_content(state, title="A test")


def cells(state: PlanState, **labels: str) -> list[dict[str, Path]]:
    """Directories of the stages of the cells with these labels."""
    found = []
    for cell, chain in zip(state.plan.cells, state.graph.cells, strict=True):
        if all(cell.labels[axis] == label for axis, label in labels.items()):
            entries = {stage: state.entry(state.graph.nodes[node]) for stage, node in chain.items()}
            found.append({stage: entry.path for stage, entry in entries.items() if entry is not None})
    return found


def values(directories: list[Path]) -> dict[str, list[float]]:
    bodies = [read_json(at / "scores.json", "expunge.scores", 2) for at in directories]
    names = [score["name"] for score in bodies[0]["scores"]]
    return {n: [s["value"] for body in bodies for s in body["scores"] if s["name"] == n] for n in names}


def comparison(content: ReportContent, scenario: str, label: str) -> Comparison:
    (one,) = [s for s in content.scenarios if s.title == scenario]
    (found,) = [c for c in one.comparisons if c.label == label]
    return found


def test_scenarios_and_comparisons(content: ReportContent) -> None:
    assert [s.title for s in content.scenarios] == ["some", "the class 3"]
    for scenario in content.scenarios:
        assert [c.label for c in scenario.comparisons] == ["dense", "50 % sparse"]
        for found in scenario.comparisons:
            assert [(m.label, m.role) for m in found.models] == [
                ("Original", "original"), ("Retrain", "retrained"), ("GA", "unlearned"),
            ]  # fmt: skip
            assert all(bool(m.density) == (found.label != "dense") for m in found.models)
    assert content.scenarios[1].request.forgotten_class == 3
    assert content.scenarios[0].request.records == 30


@pytest.mark.parametrize("scenario", ["some", "the class 3"])
@pytest.mark.parametrize(("label", "axis"), [("dense", "dense"), ("50 % sparse", "all layers")])
@pytest.mark.parametrize("method", ["Original", "Retrain", "GA"])
def test_scores_are_means_over_distinct_runs(
    state: PlanState, content: ReportContent, scenario: str, label: str, axis: str, method: str
) -> None:
    (model,) = [m for m in comparison(content, scenario, label).models if m.label == method]
    stage = "score_original" if method == "Original" else "score"
    chosen = cells(state, forget=scenario, sparsity=axis, method="GA" if method == "Original" else method)
    directories = [paths[stage] for paths in chosen]
    assert len(set(directories)) == 3
    for name, numbers in values(directories).items():
        assert model.scores[name].value == pytest.approx(statistics.fmean(numbers))
        assert model.scores[name].spread == pytest.approx(statistics.stdev(numbers))
        assert model.scores[name].seeds == 3
    if method != "Original":
        seconds = [read_json(p["forget"] / "outcome.json", "expunge.outcome", 2)["cost"]["seconds"] for p in chosen]
        assert model.seconds == pytest.approx(statistics.fmean(seconds))
    tables = [read_json(at / "details.json", "expunge.details", 2)["classes"] for at in directories]
    means = [statistics.fmean(t[k]["test"]["accuracy"] for t in tables) for k in range(10)]
    assert model.class_accuracy == pytest.approx(means)


def test_the_noise_floor_is_that_of_the_reference(state: PlanState, content: ReportContent) -> None:
    noise = comparison(content, "some", "dense").noise_floors()
    retrained = values([paths["score"] for paths in cells(state, forget="some", sparsity="dense", method="Retrain")])
    for name in ("UA", "RA", "TA", "MIA-Efficacy", "AUC"):
        pairs = [abs(a - b) for a, b in itertools.combinations(retrained[name], 2)]
        assert noise[name] == pytest.approx(statistics.fmean(pairs))
        assert comparison(content, "some", "dense").reference.scores[name].noise_floor == pytest.approx(noise[name])
    assert noise["Disparity average"] > 0


def test_table_report_and_summary_have_the_same_noise_floor(state: PlanState, content: ReportContent) -> None:
    tables = {section.case["forget"]: section for section in make_sections(collect(state, {}))}
    for case, column, label in (("some", "dense", "dense"), ("some", "all layers", "50 % sparse")):
        noise, floor = comparison(content, case, label).noise_floors(), tables[case].floor[column]
        chosen = cells(state, forget=case, sparsity=column, method="GA")
        summary = summarise([Scores.load(paths["score"] / "scores.json") for paths in chosen])
        assert set(floor) >= {"UA", "MIA-Efficacy", "RA", "TA", "AUC", "Disparity average"}
        for name, value in floor.items():
            assert value == pytest.approx(noise[name], rel=1e-6)  # a result file has nine digits
            assert value == pytest.approx(summary[name].noise_floor, rel=1e-6)


def test_table_report_and_summary_print_the_same_numbers(state: PlanState, content: ReportContent) -> None:
    """Every mean, standard deviation, gap and noise floor that two of them share."""
    results = collect(state, {})
    sections = make_sections({**results, "columns": list(results["scores"])})
    compared = 0
    for section, (column, label), method in itertools.product(
        sections, (("dense", "dense"), ("all layers", "50 % sparse")), ("Retrain", "GA")
    ):
        case = section.case["forget"]
        shown = comparison(content, case, label)
        (model,) = [m for m in shown.models if m.label == method]
        chosen = cells(state, forget=case, sparsity=column, method=method)
        summary = summarise([Scores.load(paths["score"] / "scores.json") for paths in chosen])
        row = section.rows[method][column]
        assert row["RTE"].mean == pytest.approx(model.seconds, rel=1e-6)
        assert row["Passes"].mean == pytest.approx(model.passes, rel=1e-6)
        for name, score in model.scores.items():
            own = row[name]
            assert score.value == pytest.approx(summary[name].value.mean, rel=1e-12)
            assert score.spread == pytest.approx(summary[name].value.std, rel=1e-9)
            if method == "GA" and summary[name].gap is not None:
                assert score.signed_gap == pytest.approx(summary[name].gap.mean, rel=1e-9, abs=1e-9)
            if name not in ("RTE", "Peak memory"):  # of equal models, the table has each one's own
                assert (own.mean, own.spread) == pytest.approx((score.value, score.spread), rel=1e-6, abs=1e-8)
            if own.gap is not None and name != "Disparity average":
                assert own.gap == pytest.approx(abs(score.signed_gap or 0.0), rel=1e-6, abs=1e-6)
            compared += 1
        if method == "GA":
            gaps = [abs(summary[term].gap.mean) for term in TERMS]
            assert row["Disparity average"].gap == pytest.approx(statistics.fmean(gaps), rel=1e-6)
            assert row["Disparity average"].gap == pytest.approx(disparity_of_means(summary), rel=1e-6)
    assert compared > 80


def test_different_requests_are_different_scenarios(state: PlanState, tmp_path: Path) -> None:
    """Forget sets that only a seed tells apart are not averaged under the name of the first."""
    (tmp_path / "draws.yaml").write_text(DRAWS)
    other = open_state(load_plan(tmp_path / "draws.yaml"), state.store.root, originals=True)
    run_stages(other, None)
    scenarios = make_report_content(other, title="Draws").scenarios
    assert len(scenarios) == 2
    assert len({scenario.request.hash for scenario in scenarios}) == 2
    assert len({scenario.title for scenario in scenarios}) == 2
    assert all([m.label for m in s.comparisons[0].models] == ["Original", "Retrain", "GA"] for s in scenarios)


def test_the_date_is_that_of_the_last_stage_and_not_of_the_clock(state: PlanState, content: ReportContent) -> None:
    finished = [read_json(at / "entry.json", "expunge.entry", 1)["finished"] for paths in cells(state)
                for at in paths.values()]  # fmt: skip
    assert content.created == max(finished)[:10]
    assert f'Unlearning report <span aria-hidden="true">·</span> {content.created}' in render_report(content)


def test_of_several_days_the_last_is_the_date(state: PlanState, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reporting._run
    days = iter([4, 31, *[9] * (len(state.plan.cells) - 2)])
    monkeypatch.setattr(
        reporting, "_run", lambda *a: dataclasses.replace(read(*a), finished=f"2026-03-{next(days):02d}T9")
    )
    assert make_report_content(state).created == "2026-03-31"


def test_originals_and_unlearned_models_share_the_figure_of_their_mask(content: ReportContent) -> None:
    """GA keeps the mask of its original, and so does Retrain: one figure for both requests."""
    masks = {m.hashes["mask"] for s in content.scenarios for m in s.comparisons[1].models}
    assert len(masks) == 1
    assert render_report(content).count("Mask density by layer: ") == 1


def test_each_model_has_its_file_and_the_hash_of_its_bytes(state: PlanState, content: ReportContent) -> None:
    files = {m.file: m.file_hash for s in content.scenarios for c in s.comparisons for m in c.models if m.file}
    assert len(files) == 8
    for file, digest in files.items():
        assert hashlib.sha256((state.store.root / file).read_bytes()).hexdigest() == digest
        assert not Path(file).is_absolute()


def test_the_titles_are_those_of_model_and_data(state: PlanState) -> None:
    content = make_report_content(state)
    assert content.title == "MLP, scikit-learn digits: forgetting with GA"
    assert (content.architecture, content.data) == ("MLP", "scikit-learn digits")


def test_ids_are_printed_only_on_request(state: PlanState, content: ReportContent) -> None:
    (chosen,) = {tuple(read_json(paths["forget"] / "outcome.json", "expunge.outcome", 2)["request"]["record_ids"])
                 for paths in cells(state, forget="some", method="GA")}  # fmt: skip
    assert len(chosen) == 30
    page, asked = render_report(content), render_report(make_report_content(state, title="A test", ids=True))
    assert not any(name in page for name in chosen)
    assert all(name in asked for name in chosen)


@pytest.mark.parametrize(("options", "printed"), [((), False), (("--ids",), True), (("report.ids=true",), True)])
def test_the_command_leaves_ids_out_of_the_page_and_of_its_configuration(
    tmp_path: Path, store: Path, options: tuple[str, ...], printed: bool
) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    arguments = ["--output", str(tmp_path / "out"), "--store", str(store)]
    assert run(["forget", str(tmp_path / "run.yaml"), *options, *arguments]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert {name in page for name in ("digit-0009", "digit-0119", "digit-0123", "digit-0010")} == {printed}
    assert "model.safetensors" in page
    assert hashlib.sha256((tmp_path / "out/model.safetensors").read_bytes()).hexdigest() in page
    assert "3 listed records" in page


def test_the_section_report_changes_no_plan() -> None:
    values = {"data": {"source": "digits"}, "model": {"name": "mlp"}, "training": {"recipe": "one-cycle"}}
    asked = check_config({**values, "report": {"ids": True, "title": "A title"}})
    assert (asked.report.ids, asked.report.title) == (True, "A title")
    assert canonical_config(asked) == canonical_config(check_config(values))


DETAILS = {"confidence": {"edges": [0.0, 1.0], "parts": {}}, "classes": [], "density": {}}
OUTCOME = {"method": {"name": "FT"}, "cost": {"passes": 1.0, "seconds": 1.0}}


def test_warnings_of_the_scores_reach_the_page() -> None:
    warnings = [{"message": "Only declared.", "values": {"a": 1.0}, "code": "declared"}]
    body = Scores((Score("UA", 1.0, "%", "reference", "made up"),)).to_json()
    scores = Scores.from_json({**body, "warnings": warnings})
    runs = [Measured(scores, DETAILS, OUTCOME)] * 2
    (model,) = assemble_comparison("dense", (), {"FT": runs}, None).models
    assert model.warnings == (ReportWarning("Only declared.", "", "declared"),)


def test_the_page(content: ReportContent) -> None:
    page = render_report(content)
    assert "What this does not show" in page
    for text in ("some", "the class 3", "50 % sparse", "Original", "Retrain"):
        assert text in page
    assert render_report(content) == page


def test_the_demo_plan_is_as_documented() -> None:
    plan = load_demo_plan()
    sparsities = {None if c.config.sparsity is None else c.config.sparsity.sparsity for c in plan.cells}
    assert sparsities == {None, 0.9}
    assert {c.config.seed for c in plan.cells} == {0, 1, 2}
    assert {c.config.data.source for c in plan.cells} == {"digits"}
    forgets: list[dict[str, Any]] = [c.config.forget.model_dump() for c in plan.cells if c.config.forget]
    assert {f["by"] for f in forgets} == {"random", "class"}
    assert {f.get("fraction") for f in forgets if f["by"] == "random"} == {0.05}
    assert {c.labels["method"] for c in plan.cells} == {"Retrain", "FT", "GA", "l1-sparse"}


def test_the_demo_writes_its_results_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.experiments import read_results
    from expunge.workflow import demo

    (tmp_path / "demo.yaml").write_text(PLAN.replace("seed: [0, 1, 2]", "seed: [0]"))
    monkeypatch.setattr(demo, "load_demo_plan", lambda: load_plan(tmp_path / "demo.yaml"))
    body = demo.run_demo(tmp_path / "out")
    assert [cell["state"] for cell in body["cells"]] == ["finished"] * 8
    assert read_results(tmp_path / "out/results.json").items() >= body.items()
    assert "What this does not show" in (tmp_path / "out/report.html").read_text()
    before = (tmp_path / "out/report.html").read_bytes()
    demo.run_demo(tmp_path / "out")  # nothing is recomputed, and the page is the same
    assert (tmp_path / "out/report.html").read_bytes() == before


def test_the_reference_has_no_note_about_a_missing_reference() -> None:
    """It is the reference itself; readers would relate the note to the other models."""
    scores = Scores((Score("UA", 1.0, "%", "reference", "made up"),), notes=(NO_REFERENCE, "another note"))
    for reference, notes in (("FT", ("another note",)), (None, (NO_REFERENCE, "another note"))):
        (model,) = assemble_comparison("dense", (), {"FT": [Measured(scores, DETAILS, OUTCOME)]}, reference).models
        assert model.notes == notes
