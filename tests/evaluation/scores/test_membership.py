"""The SVC attack against a direct scikit-learn computation that shares no code with the package."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from measured import measure
from scipy.special import expit
from sklearn.svm import SVC

from expunge.core.errors import ConfigError, DataError
from expunge.evaluation import evaluate
from expunge.evaluation.facts import list_ratios
from expunge.evaluation.scores import membership
from expunge.evaluation.scores.membership import run_svc_attack

SCORES = ("MIA-Efficacy", "MIA-Privacy")


def measure_ratios(world, *ratios, **options):
    names = [f"MIA-Efficacy {ratio}" for ratio in list_ratios()]
    return measure(names, parts=world.parts(), svc_ratios=ratios, **options)


def direct(members, non_members, targets):
    """The attack of [Jia2023] with scikit-learn alone."""
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(np.r_[members, non_members].reshape(-1, 1), np.r_[np.ones(len(members)), np.zeros(len(non_members))])
    return attack, attack.predict(np.reshape(targets, (-1, 1))) == 1


def confidences(rng, count, ease):
    return expit(rng.normal(ease, 3.0, count))


def plain(world, request):
    """Confidences of D_f, D_r and test, in source order, computed without the package's classes."""
    labels, ids = world.records.labels, world.records.record_ids
    conf = torch.softmax(torch.tensor(world.table), dim=1).numpy()[np.arange(len(labels)), labels].astype(np.float64)
    forget = np.isin(ids, request.record_ids)
    retain = np.isin(ids, world.split.retain) & ~forget
    test = np.isin(ids, world.split.test)
    if request.forgotten_class is not None:
        test &= labels != request.forgotten_class
    return conf[forget], conf[retain], conf[test]


def expected(world, request):
    forget, retain, test = plain(world, request)
    n = len(test)
    efficacy = 100 * np.mean(~direct(retain[:n], test, forget)[1])
    h = n // 2
    on_retain = direct(retain[:h], test[:h], retain[h:])[1]
    on_test = direct(retain[:h], test[:h], test[h:])[1]
    return efficacy, 100 * (np.mean(on_retain) + np.mean(~on_test)) / 2


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_direct_computation(make_world, seed):
    world = make_world(seed=seed)
    efficacy, privacy = measure(SCORES, parts=world.parts()).values()
    assert (efficacy.value, privacy.value) == pytest.approx(expected(world, world.request), abs=1e-12)
    assert 0 < efficacy.value < 100


def test_class_wise_scores_equal_the_direct_computation(world, class_request):
    efficacy, privacy = measure(SCORES, parts=world.parts(class_request)).values()
    assert (efficacy.value, privacy.value) == pytest.approx(expected(world, class_request), abs=1e-12)


@pytest.mark.parametrize("eases", [(9, 5, 6), (2, 1, 1), (1, 1, 1), (5, -5, 0), (60, 40, 50)])
def test_attack_predicts_what_scikit_learn_predicts(eases):
    rng = np.random.default_rng(sum(eases))
    members, non_members = confidences(rng, 700, eases[0]), confidences(rng, 500, eases[1])
    targets = np.concatenate([confidences(rng, 3000, eases[2]), np.linspace(0, 1, 2001)])
    np.testing.assert_array_equal(
        run_svc_attack(members, non_members, targets), direct(members, non_members, targets)[1]
    )


def test_attack_agrees_on_the_boundary_itself():
    """Targets within a few ulps of f(x) = 0, where interpolation alone would guess."""
    rng = np.random.default_rng(3)
    members, non_members = confidences(rng, 400, 6), confidences(rng, 400, 3)
    attack, _ = direct(members, non_members, [0.5])
    grid = np.linspace(0, 1, 4001)
    sides = attack.decision_function(grid[:, None]) > 0
    flips = np.flatnonzero(sides[1:] != sides[:-1])
    assert len(flips)
    for flip in flips:
        low, high = grid[flip], grid[flip + 1]
        while np.nextafter(low, high) < high:
            middle = (low + high) / 2
            same = (attack.decision_function([[middle]])[0] > 0) == sides[flip]
            low, high = (middle, high) if same else (low, middle)
        targets = low + np.arange(-400, 401) * np.spacing(low)
        truth = direct(members, non_members, targets)[1]
        assert truth.any()
        assert not truth.all()
        np.testing.assert_array_equal(run_svc_attack(members, non_members, targets), truth)


def test_features_outside_the_unit_interval_are_predicted_directly():
    rng = np.random.default_rng(5)
    members, non_members, targets = rng.normal(9, 4, 200), rng.normal(-2, 4, 200), rng.normal(3, 9, 500)
    np.testing.assert_array_equal(
        run_svc_attack(members, non_members, targets), direct(members, non_members, targets)[1]
    )


def test_the_cap_is_used_and_in_the_definition(world):
    free, capped, same = (list(measure(SCORES, parts=world.parts(), svc_records=n).values()) for n in (None, 25, 90))
    assert "25" not in free[0].definition
    assert "at most 25 of each" in capped[0].definition
    assert "fitted on 25 retain and 25 test records" in capped[0].definition
    forget, retain, test = plain(world, world.request)
    pick = (np.arange(25) * 90) // 25
    assert capped[0].value == pytest.approx(100 * np.mean(~direct(retain[:90][pick], test[pick], forget)[1]))
    assert [s.value for s in same] == [s.value for s in free]


def test_unequal_shadow_sets_are_in_the_definition(make_world):
    world = make_world(retain=50, test=90, non_members=80)
    efficacy = measure(SCORES, parts=world.parts())["MIA-Efficacy"]
    assert "unequal size" in efficacy.definition
    assert "unequal size" not in measure(SCORES, parts=make_world().parts())["MIA-Efficacy"].definition


def test_the_attack_is_a_step_function_of_the_class_ratio():
    """[Xiao2025], section 5: with fewer members than non-members the same forget set is "100 % forgotten"."""
    rng = np.random.default_rng(0)
    members, non_members, unseen = confidences(rng, 1000, 7), confidences(rng, 1000, 6), confidences(rng, 800, 6)
    balanced = np.mean(~run_svc_attack(members, non_members, unseen))
    fewer_members = np.mean(~run_svc_attack(members[:600], non_members, unseen))
    assert balanced < 0.5
    assert fewer_members == 1.0


def test_bad_input():
    with pytest.raises(DataError, match="0 members"):
        run_svc_attack(np.empty(0), np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="3 members and 0 non-members"):
        run_svc_attack(np.ones(3), np.empty(0), np.ones(2))
    assert run_svc_attack(np.ones(2), np.zeros(2), np.empty(0)).shape == (0,)


def test_a_cap_below_two_is_refused(world):
    with pytest.raises(ConfigError, match="svc_records"):
        measure(SCORES, parts=world.parts(), svc_records=1)


def test_other_ratios_equal_the_direct_computation(make_world):
    world = make_world(seed=1)
    forget, retain, test = plain(world, world.request)
    n = len(test)
    found = measure_ratios(world, *list_ratios())
    assert len(found) == 10
    assert found["MIA-Efficacy 1:1"].value == measure(SCORES, parts=world.parts())["MIA-Efficacy"].value
    for ratio in list_ratios():
        a, b = map(int, ratio.split(":"))
        members = retain[:n][np.arange(round(n * min(1, a / b))) * n // round(n * min(1, a / b))]
        others = test[np.arange(round(n * min(1, b / a))) * n // round(n * min(1, b / a))]
        expected = 100 * np.mean(~direct(members, others, forget)[1])
        assert found[f"MIA-Efficacy {ratio}"].value == pytest.approx(expected, abs=1e-12), ratio


def test_the_ratio_of_members_decides_the_score(make_world):
    """[Xiao2025], section 5: the same predictions give very different scores at different ratios."""
    found = {name: score.value for name, score in measure_ratios(make_world(seed=1), "1:4", "1:1", "9:1").items()}
    assert found["MIA-Efficacy 1:4"] > found["MIA-Efficacy 1:1"] + 20
    assert found["MIA-Efficacy 9:1"] < found["MIA-Efficacy 1:1"] - 5


def test_the_cap_holds_for_every_ratio(make_world):
    (score,) = measure_ratios(make_world(seed=2), "4:1", svc_records=20).values()
    assert "on 20 retain and 5 test records" in score.definition
    world = make_world(seed=2)
    with pytest.raises(ConfigError, match="unknown ratio"):
        evaluate(world.trained(), world.request, world.records, predict=world.predict, svc_ratios=("3:1",))


def test_more_than_ten_thousand_test_records_are_limited_by_default_and_noted(make_world, monkeypatch):
    """A fit that only counts its records stands for the slow one."""
    fitted = []

    class Counting:
        def __init__(self, **options):
            pass

        def fit(self, features, labels):
            fitted.append((int(labels.sum()), int((1 - labels).sum())))
            return self

    monkeypatch.setattr("sklearn.svm.SVC", Counting)
    monkeypatch.setattr(membership, "_predict_members", lambda attack, targets: targets > 0.5)
    world = make_world(size=23_400, forget=40, retain=12_000, test=11_000, non_members=80)

    def run(**options):
        fitted.clear()
        return evaluate(world.trained(), world.request, world.records, predict=world.predict, **options)

    limited = run()
    assert fitted == [(10_000, 10_000), (5_500, 5_500)]
    assert limited.about["svc_records"] == 10_000
    assert "at most 10000 of each, the default" in limited["MIA-Efficacy"].definition
    assert "at most" not in limited["MIA-Privacy"].definition
    (note,) = [note for note in limited.notes if "svc_records" in note]
    assert "10,000 members" in note
    assert "11,000" in note
    assert "svc_records=all" in note

    full = run(svc_records="all")
    assert fitted == [(11_000, 11_000), (5_500, 5_500)]
    assert full.about["svc_records"] is None
    assert "at most" not in full["MIA-Efficacy"].definition
    assert not [note for note in full.notes if "svc_records" in note]
    with pytest.raises(ConfigError, match="svc_records = None, not 10000"):
        run(reference=dataclasses.replace(full, about={**full.about, "forgotten": True}))


def test_ten_thousand_test_records_are_the_paper_s_own_setting():
    assert [membership.choose_svc_records(None, n) for n in (90, 10_000, 10_001)] == [None, None, 10_000]
    assert [membership.choose_svc_records("all", 20_000), membership.choose_svc_records(12_000, 20_000)] == [
        None, 12_000,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="svc_records"):
        membership.choose_svc_records("every", 5)
    seconds = [membership.estimate_svc_seconds(n, n) for n in (2_000, 8_000, 16_000)]
    assert seconds == pytest.approx([0.5, 9, 44], rel=0.2)
