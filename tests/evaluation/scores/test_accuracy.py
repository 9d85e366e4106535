from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from measured import measure
from torchmetrics.functional.classification import multiclass_accuracy

from expunge.core.errors import DataError
from expunge.evaluation.scores.accuracy import accuracy, class_accuracy, wilson_interval

SCORES = ("UA", "100-RA", "RA", "TA")


def torchmetrics_accuracy(part, average="micro"):
    logits, labels = torch.as_tensor(part.logits), torch.as_tensor(part.labels)
    return 100 * multiclass_accuracy(logits, labels, num_classes=part.logits.shape[1], average=average).numpy()


def test_scores_equal_torchmetrics(world):
    parts = world.parts()
    scores = measure(SCORES, parts=parts)
    assert scores["UA"].value == pytest.approx(100 - torchmetrics_accuracy(parts.forget), abs=1e-4)
    assert scores["RA"].value == pytest.approx(torchmetrics_accuracy(parts.retain), abs=1e-4)
    assert scores["100-RA"].value == pytest.approx(100 - torchmetrics_accuracy(parts.retain), abs=1e-4)
    assert scores["TA"].value == pytest.approx(torchmetrics_accuracy(parts.test), abs=1e-4)
    assert 1 < scores["UA"].value < 99  # a world without errors would test nothing


def test_class_wise_test_accuracy_is_over_the_other_classes(world, class_request):
    parts = world.parts(class_request)
    ta = measure(SCORES, parts=parts)["TA"]
    hits = (parts.test.logits.argmax(1) == parts.test.labels)[parts.test.labels != 1]
    assert ta.name == "TA"
    assert ta.value == pytest.approx(100 * hits.mean())
    assert ta.value != pytest.approx(accuracy(parts.test))
    assert "'b'" in ta.definition


def test_class_accuracy_equals_torchmetrics_and_marks_absent_classes(world, make_predictions):
    test = world.parts().test
    found, counts = class_accuracy(test, 4)
    np.testing.assert_allclose(found, torchmetrics_accuracy(test, "none"), atol=1e-4)
    assert counts.sum() == len(test)
    found, counts = class_accuracy(make_predictions([[1.0, 0.0, 0.0]], [0]), 3)
    assert counts.tolist() == [1, 0, 0]
    assert found[0] == 100.0
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (1, 7), (4321, 5000), (30, 60)])
def test_wilson_equals_scipy(hits, total):
    truth = scipy.stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = wilson_interval(hits, total)
    assert (found.low, found.high) == pytest.approx((100 * truth.low, 100 * truth.high), abs=1e-9)


def test_intervals_are_around_their_values(world):
    for score in measure(SCORES, parts=world.parts()).values():
        assert score.interval.low <= score.value <= score.interval.high


def test_accuracy_of_nothing_is_an_error(make_predictions):
    with pytest.raises(DataError, match="no records"):
        accuracy(make_predictions(np.zeros((0, 3)), []))
