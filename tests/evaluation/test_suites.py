from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, RequestError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import Cost
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.evaluation import Scores, evaluate, predict_parts
from expunge.evaluation.facts import built_in_facts
from expunge.evaluation.scores.disparity import TERMS, disparity_average


def run(world, trained=None, request=None, **options):
    return evaluate(
        trained or world.trained(), request or world.request, world.records, predict=world.predict, **options
    )


def retrained(world, weight=1.0):
    return world.trained(world.request.apply(world.split), weight)


def shifted(world):
    """A predictor for which the retrained model (weight 1) has lower confidence on D_f."""
    rows_f = world.records.rows(world.request.record_ids)

    def predict(model, records, rows, *, runtime=None):
        table = world.table.copy()
        if next(model.parameters()).item() == 1.0:
            table[rows_f, records.labels[rows_f]] -= np.float32(1.0)
        return torch.as_tensor(table[rows])

    return predict


def test_all_scores_in_the_order_of_the_tables(world):
    cost = Cost(trained_records=520, forward_records=300, retain_records=260, seconds=1.25)
    scores = run(world, reference=retrained(world), cost=cost)
    assert scores.names == tuple(name for name in built_in_facts() if name in scores)
    legacy = {"UA", "100-RA", "RA", "TA", "MIA-Efficacy", "MIA-Privacy", "Disparity average", "RTE", "Passes"}
    assert set(scores.names) >= {*legacy, "AUC", "TPR at 1% FPR"}
    assert scores["RTE"].value == 1.25
    assert scores["Passes"].value == pytest.approx((520 + 100) / 260)
    assert all(score.definition for score in scores)


def test_reference_gives_gaps_and_disparity(world):
    predict = shifted(world)
    scores = evaluate(world.trained(), world.request, world.records, reference=retrained(world), predict=predict)
    truth = evaluate(retrained(world), world.request, world.records, predict=predict)
    for score in truth:
        assert scores[score.name].reference == score.value
    assert scores["UA"].gap < 0
    assert scores["AUC"].gap > 0
    expected = disparity_average({t: scores[t].value for t in TERMS}, {t: truth[t].value for t in TERMS})
    assert scores["Disparity average"].value == pytest.approx(expected)
    assert scores["Disparity average"].value > 0
    same = evaluate(world.trained(), world.request, world.records, reference=truth, predict=predict)
    assert same == scores


def test_the_reference_has_no_disparity_with_itself(world):
    assert run(world, retrained(world), reference=retrained(world))["Disparity average"].value == 0.0


def test_without_reference_there_is_a_note(world):
    scores = run(world)
    assert "Disparity average" not in scores
    assert "RTE" not in scores
    assert any("no retrained reference" in note for note in scores.notes)


def test_split_before_or_after_the_request_gives_the_same_numbers(world):
    before, after = run(world), run(world, world.trained(world.request.apply(world.split)))
    assert before.scores == after.scores
    assert (before.about["forgotten"], after.about["forgotten"]) == (False, True)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
def test_the_order_of_ids_in_the_split_does_not_matter(world, order):
    def shuffle(ids):
        return order.sample(ids.tolist(), len(ids))

    split = world.split
    mixed = Split(*(shuffle(getattr(split, p)) for p in ("retain", "forget", "validation", "test", "non_members")))
    request = ForgetRequest(shuffle(world.request.record_ids))
    assert run(world, world.trained(mixed), request) == run(world)


def test_same_seed_same_scores_other_seed_other_draw(world):
    assert run(world, seed=3) == run(world, seed=3)
    assert run(world, seed=3)["AUC"].value != run(world, seed=4)["AUC"].value
    assert run(world, seed=3)["MIA-Efficacy"] == run(world, seed=4)["MIA-Efficacy"]


def test_predictions_can_be_shared(world):
    parts = predict_parts(world.trained(), world.request, world.records, predict=world.predict)

    def never(*args, **options):
        raise AssertionError("predicted again")

    assert evaluate(world.trained(), world.request, world.records, predict=never, parts=parts) == run(world)


def test_a_reference_trained_on_the_forget_set_is_refused(world):
    with pytest.raises(RequestError, match="trained on D_f"):
        run(world, reference=world.trained())


def test_a_reference_of_another_request_split_or_option_is_refused(world):
    other = ForgetRequest(world.split.retain[:7])
    reference = run(world, world.trained(other.apply(world.split)), other)
    with pytest.raises(RequestError, match="another forget request"):
        run(world, reference=reference)
    truth = run(world, retrained(world))
    moved = dataclasses.replace(truth, about={**truth.about, "base_split": "x"})
    with pytest.raises(RequestError, match="another split"):
        run(world, reference=moved)
    with pytest.raises(ConfigError, match="svc_records = None, not 20"):
        run(world, reference=truth, svc_records=20)
    assert (
        run(world, reference=Scores.from_json(truth.to_json())).about["reference"]["weights"] == truth.about["weights"]
    )


def test_another_sparsity_of_the_reference_is_noted(world):
    mask = Mask({"weight": torch.zeros(1, 1, dtype=torch.bool)}, MaskProvenance("magnitude"))
    sparse = dataclasses.replace(retrained(world), mask=mask)
    assert any("sparsity" in note for note in run(world, reference=sparse).notes)
    assert not any("sparsity" in note for note in run(world, reference=retrained(world)).notes)


def test_other_subjects_as_non_members_are_noted(world):
    train = set(world.split.retain.tolist())
    subjects = np.asarray(["p1" if i in train else "p2" for i in world.records.record_ids.tolist()])
    world.records = dataclasses.replace(world.records, subject_ids=subjects)
    assert any("other subjects" in note for note in run(world).notes)
    world.records = dataclasses.replace(world.records, subject_ids=np.full(len(subjects), "p1"))
    assert not any("other subjects" in note for note in run(world).notes)


def test_records_of_forgotten_subjects_outside_of_training_are_noted(world):
    request = dataclasses.replace(world.request, selection={"by": "subjects", "subjects": ["p1"]})
    forgotten = {*request.record_ids.tolist(), *world.split.non_members[:2].tolist(), world.split.test[0]}
    subjects = np.asarray(["p1" if i in forgotten else f"of {i}" for i in world.records.record_ids.tolist()])
    world.records = dataclasses.replace(world.records, subject_ids=subjects)
    scores = run(world, request=request)
    assert scores.about["shared_subjects"] == {"test": 1, "non_members": 2}
    assert any("was not trained on 2 non-members and 1 test record" in note for note in scores.notes)
    assert not any("other subjects" in note for note in scores.notes)
    assert not any("was not trained on" in note for note in run(world).notes)


def test_without_test_records_and_non_members_nothing_is_said_of_their_subjects(make_world):
    world = make_world(test=0, non_members=0)
    names = np.asarray([f"of {i}" for i in world.records.record_ids.tolist()])
    world.records = dataclasses.replace(world.records, subject_ids=names)
    assert not any("subjects" in note for note in run(world).notes)


def test_an_empty_non_member_pool_is_noted_and_no_error(make_world):
    scores = run(make_world(non_members=0))
    assert "AUC" not in scores
    assert any("AUC was not computed" in note for note in scores.notes)


def test_saved_scores_and_summaries_need_no_torch(world, tmp_path):
    run(world, reference=retrained(world)).save(tmp_path / "scores.json")
    code = (
        "import sys; from expunge.evaluation import Scores, summarise, format_summaries; "
        f"print(format_summaries(summarise([Scores.load({str(tmp_path / 'scores.json')!r})]))); "
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MIA-Efficacy" in done.stdout


def test_peak_memory_is_not_measured_and_old_files_are_read(world, tmp_path):
    """The growth of a process depends on what ran before in it, so it says nothing about the method."""
    body = {"trained_records": 5, "forward_records": 3, "retain_records": 260, "seconds": 1.0, "passes": 0.02}
    old = Cost.from_json({**body, "memory_mib": 12.5})
    assert old == Cost(trained_records=5, forward_records=3, retain_records=260, seconds=1.0)
    scores = run(world, cost=old)
    assert "Peak memory" not in scores
    assert "RTE" in scores
    assert not any("memory" in note for note in scores.notes)
    score = dataclasses.replace(scores["RTE"], name="Peak memory", unit="MiB", value=12.5)
    dataclasses.replace(scores, scores=(*scores.scores, score)).save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json")["Peak memory"].value == 12.5
