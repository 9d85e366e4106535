"""The function of a score: what it may return, how its faults are reported, which facts are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.core.registry import SCORES
from expunge.evaluation import Measurement, Missing, ScoreInputs, evaluate, register_score
from expunge.evaluation.facts import BEFORE_THE_COSTS, built_in_facts, score_facts
from expunge.evaluation.registry.docs_page import list_scores
from expunge.evaluation.registry.measure import measure_scores


def run(world, **options):
    return evaluate(world.trained(), world.request, world.records, predict=world.predict, **options)


def strange(**facts):
    """Register a function with these facts under a name of its own."""
    return register_score("Strange", **facts)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan, not a finite number"),
        ("12", "of type str, not a number"),
        (True, "of type bool, not a number"),
        (np.ones(2), "of type ndarray, not a number"),
        (Measurement(float("inf")), "inf, not a finite number"),
    ],
)
def test_a_value_that_is_no_number_is_an_error_that_names_the_score(world, value, message):
    with SCORES.temporary():
        strange()(lambda inputs: value)
        with pytest.raises(ConfigError, match=message) as failure:
            run(world, scores=["Strange"])
    assert failure.value.where == "score Strange"


def test_a_function_that_raises_is_named(world):
    def fail(inputs):
        return 1 / 0

    def forgetful(inputs):
        return inputs.cost.seconds

    for function, message in ((fail, "raised ZeroDivisionError: division by zero"), (forgetful, r"needs=\('cost',\)")):
        with SCORES.temporary():
            strange()(function)
            with pytest.raises(ConfigError, match=message) as failure:
                run(world, scores=["Strange"])
        assert str(failure.value.where).startswith("score Strange")


@pytest.mark.parametrize(
    ("facts", "value", "note"),
    [
        ({"needs": ("reference",)}, 1.0, "Strange was not computed: it needs the scores of the retrained reference"),
        ({}, None, "Strange was not computed: its function returned None"),
        ({}, Missing("Strange has nothing to measure"), "Strange has nothing to measure"),
    ],
)
def test_a_missing_score_has_a_note(world, facts, value, note):
    with SCORES.temporary():
        strange(**facts)(lambda inputs: value)
        scores = run(world, scores=["strange"])
    assert "Strange" not in scores
    assert note in scores.notes


def test_a_named_score_of_the_package_that_is_missing_has_a_note(world):
    assert "IoU was not computed: it needs the masks" in " ".join(run(world, scores=["IoU"]).notes)
    assert not any("IoU" in note for note in run(world).notes)


def test_one_function_under_several_names_is_called_once(world):
    calls = []

    def both(inputs):
        calls.append(1)
        return {"One": 1.0, "Two": 2.0}

    with SCORES.temporary():
        register_score("One")(register_score("Two", position=105)(both))
        scores = run(world, scores=["One", "Two"])
    assert (scores["One"].value, scores["Two"].value, len(calls)) == (1.0, 2.0, 1)
    assert scores.names.index("Two") == 1, "right after UA, by its position"
    others = [name for name in scores.names if score_facts(name).position < BEFORE_THE_COSTS]
    assert scores.names.index("One") > max(map(scores.names.index, others)), "after the others"


def test_a_name_has_one_meaning():
    with pytest.raises(ConfigError, match=r"registered already, by expunge\.evaluation\.scores\.accuracy"):
        register_score("ua")(lambda inputs: 0.0)
    with SCORES.temporary():
        strange()(lambda inputs: 0.0)

        def other(inputs):
            return 1.0

        with pytest.raises(ConfigError, match="registered already"):
            strange()(other)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"units": "%"}, "did you mean 'unit'"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"needs": ("prediction",)}, "did you mean 'predictions'"),
        ({"needs": "predictions"}, "not of type a tuple of strings"),
        ({"table": "first"}, "unknown table"),
        ({"table": "cost"}, "Passes and Time only"),
        ({"position": "last"}, "not of type int"),
        ({"unit": 3}, "not of type str"),
        ({"gap": 1}, "not of type bool"),
    ],
)
def test_a_wrong_fact_is_refused(facts, message):
    with SCORES.temporary(), pytest.raises(ConfigError, match=message):
        strange(**facts)(lambda inputs: 0.0)
    assert "Strange" not in SCORES


def test_scores_are_listed_with_those_of_this_process():
    with SCORES.temporary():
        strange(unit="s")(lambda inputs: 0.0)
        rows = {row["name"]: row for row in list_scores()}
    assert (rows["Strange"]["unit"], rows["Strange"]["built_in"]) == ("s", False)
    assert [name for name, row in rows.items() if row["built_in"]] == list(built_in_facts())


def test_models_are_loaded_only_for_a_score_that_reads_them(world):
    loaded = []

    def load():
        loaded.append(1)
        return world.trained()

    inputs = ScoreInputs(
        trained=world.trained(), request=world.request, records=world.records, parts=world.parts, original=load,
        retrained=load, outcome={},
    )  # fmt: skip
    measure_scores(inputs)
    assert loaded == []
    with SCORES.temporary():
        strange(needs=("models",))(lambda inputs: float(inputs.original is inputs.original is not inputs.retrained))
        found, _ = measure_scores(inputs, ["Strange"])
    assert {score.name: score.value for score in found}["Strange"] == 1.0
    assert len(loaded) == 2


def test_the_value_of_a_score_is_a_python_number(world):
    """A function may return a number of NumPy, which JSON cannot hold."""
    with SCORES.temporary():
        strange()(lambda inputs: np.float32(0.25))
        scores = run(world, scores=["strange"])
    assert scores["Strange"].value == 0.25
    json.dumps(scores.to_json())
