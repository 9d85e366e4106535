import dataclasses

import pytest
from sample_report import sample

from expunge.report import Comparison, ModelResult, ReportContent, Request, Scenario, Score, State
from expunge.report.limits import limits


def _content(*models, selection=None, forgotten=None, records=1000, **more):
    request = Request(records, selection or {"by": "ids"}, forgotten_class=forgotten)
    return ReportContent("t", (Scenario("s", request, (Comparison("dense", models),)),), **more)


def _text(content) -> str:
    return "\n".join(f"{limit.statement} {limit.explanation}" for limit in limits(content))


def _model(label="FT", role="unlearned", remembers=(), **scores):
    made = {name: Score(name, unit="" if name == "AUC" else "%", **values) for name, values in scores.items()}
    return ModelResult(label, role, made, state=State(still_remembers=remembers))


def test_the_standing_limits_are_always_there():
    text = _text(_content(_model()))
    for words in ("cannot prove", "attack is a weak one", "One split", "Only these models"):
        assert words in text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mask", "The mask still remembers."),
        ("batch_norm", "BatchNorm statistics still remember."),
        ("normalisation", "The input constants still remember."),
        ("pruning_scores", "State that still remembers: pruning scores."),
    ],
)
def test_state_that_remembers_is_named_with_its_models_and_only_then(kind, words):
    assert words not in _text(_content(_model()))
    text = _text(_content(_model(remembers=(kind,)), _model("GA")))
    assert words in text
    assert "Models: FT." in text


def test_a_reference_with_the_mask_of_the_original_is_named():
    text = "The reference keeps the original's mask."
    assert text in _text(_content(_model("Retrain", "retrained", ("mask",))))
    assert text not in _text(_content(_model("FT", remembers=("mask",)), _model("Retrain", "retrained")))


def test_models_are_grouped_by_where_they_remember():
    text = _text(sample())
    assert "Models: Retrain, FT, GA and l1-sparse (90 % sparse)." in text
    assert "forgotten ones included. Models: GA." in text


def test_one_seed_and_no_reference_are_said():
    assert "One seed has no spread." in _text(sample(1))
    assert "One seed has no spread" not in _text(sample(3))
    assert "no retrained model" in _text(_content(_model()))
    assert "no retrained model" not in _text(sample(1))


def test_gaps_within_the_noise_floor_are_counted():
    reference = _model("Retrain", "retrained", UA={"value": 5.0, "noise_floor": 0.5}, RA={"value": 99.0})
    near = _model("FT", UA={"value": 5.5, "reference": 5.0}, RA={"value": 99.0, "reference": 99.0})
    far = _model("GA", UA={"value": 5.51, "reference": 5.0})
    assert "1 of 2 gaps lie within the noise floor." in _text(_content(near, far, reference))


def test_damage_is_named_only_beyond_points_and_noise():
    def text(ra, floor=0.1):
        reference = _model("Retrain", "retrained", RA={"value": 99.0, "noise_floor": floor})
        return _text(_content(_model(RA={"value": ra, "reference": 99.0}), reference))

    assert "general damage" in text(96.9)
    assert "general damage" not in text(97.1)
    assert "general damage" not in text(95.0, floor=5.0)


def test_an_auc_around_and_below_one_half():
    def text(low, high, reference=0.5):
        auc = {"value": (low + high) / 2, "interval": (low, high)}
        return _text(_content(_model(AUC=auc), _model("Retrain", "retrained", AUC={"value": reference})))

    assert "1 of 1 interval of the AUC includes 0.5." in text(0.45, 0.55)
    assert "include" not in text(0.6, 0.7).split("AUC")[-1]
    assert "below 0.5 is not better" in text(0.3, 0.4)
    assert "below 0.5 is not better" not in text(0.3, 0.4, reference=0.05)


def test_requests_bring_their_own_limits():
    assert "Forgetting a class is easy to fake." in _text(_content(_model(), forgotten=3))
    assert "Non-members are other persons." in _text(
        _content(_model(), selection={"by": "subjects", "subjects": ["a"]})
    )
    assert "by 2.00 points (s)" in _text(_content(_model(), records=50))
    plain = _text(_content(_model()))
    assert not any(words in plain for words in ("easy to fake", "other persons", "set is small"))


def test_guarantees_missing_scores_and_further_lines():
    empirical = dataclasses.replace(_model(UA={"value": None}), guarantee="empirical")
    conditional = dataclasses.replace(_model("CR"), guarantee="conditional")
    text = _text(_content(empirical, conditional, limits=("The clinic's own line.",)))
    assert "FT promises nothing." in text
    assert "assumptions behind CR were not checked" in text
    assert "UA of FT (s, dense) and CR (s, dense)" in text
    assert text.endswith("The clinic's own line. ")
    assert "Some scores are missing" not in _text(sample())


def test_what_a_certificate_is_not_is_said_of_patched_models_only():
    words = "speaks of answers, not of information"
    assert words not in _text(_content(_model(), _model("Retrain", "retrained")))
    patched = dataclasses.replace(_model("patch", **{"MIA-Efficacy": {"value": 97.5}}), guarantee="behavioural")
    retrained = _model("Retrain", "retrained", **{"MIA-Efficacy": {"value": 12.25}})
    text = _text(_content(patched, retrained))
    for part in (words, "No information is removed", "over-forgetting", "activation patterns"):
        assert part in text
    assert "patch (s, dense) 97.50 %, of the retrained model 12.25 %" in text.replace(" ", " ")
