"""The attacks where D_r is smaller than the test set: [Jia2023]'s sizes with len(D_r) in place of len(test)."""

from __future__ import annotations

import numpy as np
import pytest
from measured import measure
from scipy.special import softmax
from sklearn.svm import SVC

SCORES = ("MIA-Efficacy", "MIA-Privacy")


def attack(members: np.ndarray, non_members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    labels = np.r_[np.ones(len(members)), np.zeros(len(non_members))]
    fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(np.r_[members, non_members][:, None], labels)
    return fitted.predict(targets[:, None]) == 1


@pytest.mark.parametrize(("retain", "test"), [(61, 200), (60, 130), (90, 91), (91, 90)])
def test_half_of_the_smaller_set_is_used_of_both(make_world, retain, test):
    world = make_world(seed=3, size=600, forget=40, retain=retain, test=test, non_members=50, easy=0.5)
    labels, ids = world.records.labels, world.records.record_ids
    values = softmax(world.table.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    forgotten = np.isin(ids, world.request.record_ids)
    members = values[np.isin(ids, world.split.retain) & ~forgotten]
    others = values[np.isin(ids, world.split.test)]
    assert (len(members), len(others)) == (retain, test)
    half = min(retain // 2, test // 2)
    rest_members, rest_others = members[half:], others[half:]
    right = (
        attack(members[:half], others[:half], rest_members).mean(),
        (~attack(members[:half], others[:half], rest_others)).mean(),
    )
    efficacy, privacy = measure(SCORES, parts=world.parts()).values()
    assert privacy.value == pytest.approx(50 * sum(right), abs=1e-9)
    assert 0 < privacy.value < 100
    size = min(retain, test)
    assert efficacy.value == pytest.approx(100 * (~attack(members[:size], others, values[forgotten])).mean(), abs=1e-9)
    assert f"fitted on {half} retain and {half} test records" in privacy.definition


def test_a_limit_of_records_is_spread_over_the_halves(make_world):
    world = make_world(seed=3, size=600, forget=40, retain=61, test=200, non_members=50, easy=0.5)
    privacy = measure(SCORES, parts=world.parts(), svc_records=10)["MIA-Privacy"]
    assert "fitted on 10 retain and 10 test records" in privacy.definition
