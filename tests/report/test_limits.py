import dataclasses

import pytest
from sample_report import sample

from expunge.report import Comparison, InfluenceState, ModelResult, ReportContent, ReportScore, RequestSummary, Scenario
from expunge.report.formatting import describe_content
from expunge.report.limits import list_limits


def _content(*models, selection=None, forgotten=None, records=1000, **more):
    request = RequestSummary(records, selection or {"by": "ids"}, forgotten_class=forgotten)
    return ReportContent("t", (Scenario("s", request, (Comparison("dense", models),)),), **more)


def _text(content) -> str:
    return "\n".join(f"{limit.statement} {limit.explanation}" for limit in list_limits(content))


def _model(label="FT", role="unlearned", dependent=(), **scores):
    made = {name: ReportScore(name, unit="" if name == "AUC" else "%", **values) for name, values in scores.items()}
    return ModelResult(label, role, made, state=InfluenceState(carried=dependent))


def test_the_limits_of_every_report_are_always_there():
    text = _text(_content(_model()))
    for words in ("cannot prove", "attack is weak", "One split", "Only these models"):
        assert words in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mask", "The mask is unchanged since training on D_f."),
        ("batch_norm", "The BatchNorm statistics are unchanged since training on D_f."),
        ("normalisation", "The normalisation statistics are unchanged since training on D_f."),
        ("pruning_scores", "Other state is unchanged since training on D_f: pruning scores."),
    ],
)
def test_state_that_depends_on_forgotten_records_is_listed_with_its_models(name, words):
    assert words not in _text(_content(_model()))
    text = _text(_content(_model(dependent=(name,)), _model("GA")))
    assert words in text
    assert "Models: FT." in text


def test_a_reference_with_the_mask_of_the_original_is_a_limit():
    text = "The reference has the original's mask."
    assert text in _text(_content(_model("Retrain", "retrained", ("mask",))))
    assert text not in _text(_content(_model("FT", dependent=("mask",)), _model("Retrain", "retrained")))


def test_models_are_grouped_by_comparison():
    text = _text(sample())
    assert "Models: Retrain, FT, GA and l1-sparse (90 % sparse)." in text
    assert "including the forgotten ones. Models: GA." in text


def test_one_seed_and_a_missing_reference_are_limits():
    assert "There is only one seed, so no noise floor." in _text(sample(1))
    assert "There is only one seed" not in _text(sample(3))
    assert "no retrained model" in _text(_content(_model()))
    assert "no retrained model" not in _text(sample(1))


@pytest.mark.parametrize(("options", "there"), [({"seeds": "new"}, True), ({"seeds": "original"}, False), ({}, False)])
def test_a_reference_with_new_seeds_is_a_limit(options, there):
    reference = dataclasses.replace(_model("Retrain", "retrained"), options=options)
    text = _text(_content(_model(), reference))
    assert ("Retrain has other initial weights and another order of records than the original." in text) == there


def test_the_words_fit_one_model_and_several():
    one, two = (dataclasses.replace(_model(label), guarantee="empirical") for label in ("FT", "GA"))
    reference = _model("Retrain", "retrained")
    assert "FT has no guarantee. Its outcome is empirical: only the measurements on this page describe this model." in (
        _text(_content(one, reference))
    )
    assert "FT and GA have no guarantee. Their outcome is empirical" in _text(_content(one, two, reference))
    assert "; the result is compared with a model retrained without" in describe_content(_content(one, reference))
    assert "; the results are compared with a model retrained" in describe_content(_content(one, two, reference))
    assert "; the results are compared with models retrained without" in describe_content(sample(3))


def test_gaps_within_the_noise_floor_are_counted():
    reference = _model("Retrain", "retrained", UA={"value": 5.0, "noise_floor": 0.5}, RA={"value": 99.0})
    near = _model("FT", UA={"value": 5.5, "reference": 5.0}, RA={"value": 99.0, "reference": 99.0})
    far = _model("GA", UA={"value": 5.51, "reference": 5.0})
    assert "1 of 2 gaps lie within the noise floor." in _text(_content(near, far, reference))


def test_damage_is_a_limit_only_beyond_threshold_and_noise_floor():
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


def test_class_and_subject_requests_have_further_limits():
    assert "Forgetting a class is easy to imitate." in _text(_content(_model(), forgotten=3))
    partly = {"by": "subjects", "subjects": ["a"], "outside": {"test": 2, "validation": 1}}
    text = _text(_content(_model(), selection=partly))
    assert "Not every record of the subjects was forgotten." in text
    assert "3 more records of the named subjects are outside the retain set" in text
    assert "by 2.00 points (s)" in _text(_content(_model(), records=50))
    plain = _text(_content(_model()))
    assert not any(
        words in plain for words in ("easy to imitate", "other subjects", "Not every record", "set is small")
    )


def test_guarantees_missing_scores_and_further_lines():
    empirical = dataclasses.replace(_model(UA={"value": None}), guarantee="empirical")
    conditional = dataclasses.replace(_model("CR"), guarantee="conditional")
    text = _text(_content(empirical, conditional, limits=("The clinic's own line.",)))
    assert "FT has no guarantee." in text
    assert "assumptions behind CR were not checked" in text
    assert "UA of FT (s, dense) and CR (s, dense)" in text
    assert text.endswith("The clinic's own line. ")
    assert "Some scores are missing" not in _text(sample())


def test_limits_of_certificates_are_listed_for_patched_models_only():
    words = "covers predictions, not information"
    assert words not in _text(_content(_model(), _model("Retrain", "retrained")))
    patched = dataclasses.replace(_model("patch", **{"MIA-Efficacy": {"value": 97.5}}), guarantee="behavioural")
    retrained = _model("Retrain", "retrained", **{"MIA-Efficacy": {"value": 12.25}})
    text = _text(_content(patched, retrained))
    for part in (words, "No information is removed", "over-forgetting", "activation patterns"):
        assert part in text
    assert "patch (s, dense) 97.50 %, of the retrained model 12.25 %" in text.replace(" ", " ")


def _patched(**scores):
    model = _model("patch", **{name.replace("_", " "): {"value": value} for name, value in scores.items()})
    return dataclasses.replace(model, guarantee="behavioural")


CHANGED_COPY = "A slightly changed copy of a forgotten record may still get its old label."


def test_the_reach_of_patches_is_said_with_what_the_run_measured_of_it():
    found = list_limits(_content(_patched(Region_nearby=15.5, Region_flips=0.25, Point_only=47.0, Gates_retain=0.5)))
    (limit,) = [limit for limit in found if limit.statement == CHANGED_COPY]
    for words in (
        "patch (s, dense): 15.50 % of random small changes of a forgotten record stay in its region, "
        "0.25 % of one-feature changes do, 47.00 % of the regions measured contain no tried change and "
        "0.50 % of the retained records open a gate.",
        "any other record with the same pattern is changed along with it",
        "another batch size, compiler or runtime can round to other bits",
    ):
        assert words in limit.explanation
    assert "test records" not in limit.explanation  # not measured, so not mentioned
    assert "Not measured" not in limit.explanation


def test_the_reach_of_patches_without_scores_has_no_number():
    (limit,) = [limit for limit in list_limits(_content(_patched())) if limit.statement == CHANGED_COPY]
    assert "Not measured in this run: the regions of patch (s, dense)." in limit.explanation
    assert "Measured in this run" not in limit.explanation
    assert "%" not in limit.explanation
    assert not any(character.isdigit() for character in limit.explanation)


def test_the_reach_of_patches_is_said_of_patched_models_only():
    scores = {"Region nearby": {"value": 1.0}}
    empirical = dataclasses.replace(_model("mask-logit", **scores), guarantee="empirical")
    assert CHANGED_COPY not in _text(_content(empirical, _model("Retrain", "retrained")))


def test_the_number_of_forget_sets_is_that_of_the_report():
    one = _content(_model())
    assert "One split of the data, one forget set." in _text(one)
    two = dataclasses.replace(one, scenarios=(one.scenarios[0], dataclasses.replace(one.scenarios[0], title="t")))
    assert "One split of the data, a few forget sets." in _text(two)


def test_the_limit_on_subjects_is_what_was_counted():
    def text(shared, by="subjects"):
        content = _content(_model(), selection={"by": by})
        scenarios = tuple(dataclasses.replace(scenario, shared_subjects=shared) for scenario in content.scenarios)
        return _text(dataclasses.replace(content, scenarios=scenarios))

    assert "Non-members are other subjects." in text({"test": 0, "non_members": 0})
    assert "Non-members are other subjects." in text({"test": 0, "non_members": 0}, "ids")
    some = text({"test": 1, "non_members": 2})
    assert "other subjects." not in some
    assert "The model was not trained on 2 non-members and 1 test record (s)" in some
    assert "subjects" not in text({"test": 1, "non_members": 2}, "ids")
    assert "Non-members may be other subjects." in text(None)


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("class", "Forgetting a class is easy to imitate."),
        ("correct", "Corrected records stay in the training set."),
        ("subjects", "Non-members may be other subjects."),
    ],
)
def test_the_limit_of_a_kind_of_request_is_only_there_for_it(kind, statement):
    for other in ("ids", "random", "class", "correct", "column", "subjects"):
        text = _text(_content(_model(), selection={"by": other}))
        assert (statement in text) == (other == kind), other
