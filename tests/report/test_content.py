import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import DataError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import GUARANTEES, Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split, as_ids
from expunge.core.trained import Provenance, Trained
from expunge.report import (
    Comparison,
    Histogram,
    ModelResult,
    ReportContent,
    ReportScore,
    RequestSummary,
    Scenario,
    average_over_seeds,
    read_class_accuracy,
    read_histograms,
    read_scores,
)
from expunge.report.view import collect_guarantees


def test_importing_the_report_does_not_import_torch():
    code = "import sys, expunge.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_report_explains_every_guarantee_in_the_words_of_the_core():
    models = tuple(ModelResult(name, "unlearned", guarantee=name) for name in GUARANTEES)
    scenario = Scenario("a request", RequestSummary(1), (Comparison("dense", models),))
    assert dict(collect_guarantees(ReportContent("title", (scenario,)))) == GUARANTEES


def test_scores_are_read_from_a_list_a_mapping_and_a_file_body():
    body = {"name": "UA", "value": 3.0, "interval": [1, 2], "unit": "%", "direction": "reference", "unknown": 1}
    expected = ReportScore("UA", 3.0, unit="%", interval=(1.0, 2.0))
    for shape in (
        [{**body, "interval": {"low": 1, "high": 2, "level": 0.95}}],
        [body],
        {"UA": body},
        {"scores": [body], "seed": 0},
        {"scores": {"UA": body}},
    ):
        assert read_scores(json.loads(json.dumps(shape))) == {"UA": expected}


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_mean_and_spread_over_seeds_are_those_of_numpy(values, reference):
    runs = [{"UA": ReportScore("UA", value, reference=reference, interval=(0, 1))} for value in values]
    score = average_over_seeds(runs)["UA"]
    assert score.value == pytest.approx(np.mean(values), abs=1e-9)
    assert score.spread == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert score.signed_gap == pytest.approx(np.mean(values) - reference, abs=1e-9)
    assert (score.seeds, score.interval) == (len(values), None)


def test_one_run_keeps_its_interval_and_has_no_spread():
    run = {"AUC": ReportScore("AUC", 0.5, interval=(0.4, 0.6))}
    assert average_over_seeds([run]) == run


def test_a_score_that_one_seed_lacks_has_no_mean():
    score = average_over_seeds([{"UA": ReportScore("UA", 1.0)}, {"UA": ReportScore("UA", None)}, {}])["UA"]
    assert score.value is None
    assert score.missing == "measured for 1 of 3 seeds"
    first = ReportScore("UA", 1.0, reference=3.0, gap=-2.0, interval=(0.5, 1.5))
    alone = average_over_seeds([{"UA": first}, {}])["UA"]
    assert (alone.value, alone.gap, alone.interval, alone.seeds) == (None, None, None, 2), "those of one seed"
    score = average_over_seeds([{}, {"UA": ReportScore("UA", 1.0, unit="%")}])["UA"]
    assert (score.value, score.unit, score.missing) == (None, "%", "measured for 1 of 2 seeds")


def _outcome(dropped=()):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ids = as_ids([f"r{i}" for i in range(20)])
    split = Split(ids[:10], as_ids(()), ids[10:12], ids[12:16], ids[16:])
    request = ForgetRequest(ids[:3])
    mask = Mask({"0.weight": torch.tensor([True, False]).reshape(2, 1, 1, 1)}, MaskProvenance("magnitude"))
    trained = Trained(model, mask, request.apply(split), Provenance({"name": "tiny"}, seeds={"order": 4}))
    return Outcome(trained, request, "GA", {"epochs": 1}, "empirical", Cost(3, 0, 7, 0.5), ("weights",), dropped)


def test_a_model_and_a_request_are_read_from_an_outcome():
    body = json.loads(json.dumps(_outcome(("rewind_checkpoint",)).to_json()))
    result = ModelResult.from_outcome(body)
    assert (result.label, result.role, result.guarantee) == ("GA", "unlearned", "empirical")
    assert result.passes == pytest.approx(3 / 7)
    assert result.seconds == 0.5
    assert result.state is not None
    assert result.state.rewrote == ("weights",)
    assert result.state.dropped == ("rewind_checkpoint",)
    assert set(result.state.carried) == {"batch_norm", "mask"}
    assert result.seeds == {"order": 4, "method": 0}
    assert result.hashes["mask"]
    assert (result.options, result.bound, result.relative_to, result.notes) == ({"epochs": 1}, {}, {}, ())
    assert result.history == ()
    assert result.facts == {"architecture": {"name": "tiny"}}
    request = RequestSummary.from_json(body["request"], retained=7, ids=2)
    assert (request.records, request.first_ids, request.retained) == (3, ("r0", "r1"), 7)
    assert request.hash == body["request"]["hash"]


def test_histograms_and_class_accuracies_are_read_from_their_bodies():
    body = {"edges": [0.0, 0.5, 1.0], "parts": {"forget": {"records": 3, "counts": [1, 2], "fractions": [0.3, 0.7]}}}
    assert read_histograms(body) == {"forget": Histogram((0.0, 0.5, 1.0), (1, 2))}
    rows = [{"class": "a", "test": {"records": 4, "accuracy": 75.0}}, {"class": "b", "test": {"accuracy": None}}, {}]
    assert read_class_accuracy(rows) == (75.0, None, None)


def test_the_noise_floor_is_that_of_the_reference():
    reference = ModelResult(
        "Retrain",
        "retrained",
        {"UA": ReportScore("UA", 1.0, spread=0.9, noise_floor=0.3), "RA": ReportScore("RA", 1.0)},
    )
    assert Comparison("dense", (reference,)).noise_floors() == {"UA": 0.3}
    assert Comparison("dense", (reference,), {"Disparity average": 0.2}).noise_floors() == {
        "UA": 0.3,
        "Disparity average": 0.2,
    }
    assert Comparison("dense", (dataclasses.replace(reference, role="unlearned"),)).noise_floors() == {}


def test_contradictory_content_is_refused():
    model = ModelResult("Retrain", "retrained", class_accuracy=(1.0, math.nan))
    assert model.class_accuracy == (1.0, None)
    with pytest.raises(DataError, match="one retrained"):
        Comparison("dense", (model, model))
    with pytest.raises(DataError, match="2 class accuracies for 3"):
        Scenario("x", RequestSummary(1), (Comparison("dense", (model,)),), ("a", "b", "c"))
    with pytest.raises(DataError, match="role"):
        ModelResult("Retrain", "reference")
    with pytest.raises(DataError, match="at least one comparison"):
        Scenario("x", RequestSummary(1), ())


def test_average_over_seeds_takes_the_noise_floor_from_distinct_models():
    runs = [
        {"UA": ReportScore("UA", value), "AUC": ReportScore("AUC", value if value else None)}
        for value in (0.0, 3.0, 3.0)
    ]
    assert average_over_seeds(runs)["UA"].noise_floor == pytest.approx(2.0)
    assert average_over_seeds(runs, ["a", "b", "b"])["UA"].noise_floor == 3.0
    assert average_over_seeds(runs, ["a", "a", "a"])["UA"].noise_floor is None
    assert average_over_seeds(runs)["AUC"].value is None
    assert average_over_seeds(runs[:1], ["a"])["UA"].noise_floor is None


def test_a_cost_that_is_not_finite_is_not_measured():
    model = ModelResult("FT", "unlearned", passes=math.nan, seconds=math.inf)
    assert (model.passes, model.seconds) == (None, None)
    assert (ModelResult("FT", "unlearned", passes=0.5, seconds=2.0).passes) == 0.5
