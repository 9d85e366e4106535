from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.special
from torch import nn

from expunge.core.errors import DataError, ModelError, RequestError
from expunge.core.request import ForgetRequest
from expunge.evaluation.predictions import predict_parts, select_scored_ids


def test_confidence_is_the_float64_softmax_of_scipy(make_predictions):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 30, (200, 7)).astype(np.float32), rng.integers(0, 7, 200)
    found = make_predictions(logits, labels).confidence
    assert found.dtype == np.float64
    truth = scipy.special.softmax(logits.astype(np.float64), axis=1)[np.arange(200), labels]
    np.testing.assert_allclose(found, truth, rtol=1e-13)


def test_confidence_of_huge_logits_does_not_overflow(make_predictions):
    found = make_predictions([[1e4, -1e4], [3e38, 0.0]], [0, 1]).confidence
    assert found.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 4, 1)])
def test_wrong_shape_is_a_model_error(make_predictions, shape):
    with pytest.raises(ModelError, match="3 records"):
        make_predictions(np.zeros(shape), [0, 1, 2])


def test_too_few_outputs_and_nan_are_refused(make_predictions):
    with pytest.raises(ModelError, match="2 outputs, but a record has label 2"):
        make_predictions(np.zeros((3, 2)), [0, 1, 2])
    logits = np.zeros((3, 3))
    logits[1, 0] = np.nan
    with pytest.raises(ModelError, match="r-1: the model returns NaN"):
        make_predictions(logits, [0, 1, 2])


def test_parts_are_the_same_before_and_after_the_request(world):
    before = select_scored_ids(world.split, world.request)
    after = select_scored_ids(world.request.apply(world.split), world.request)
    for part in ("forget", "retain", "test", "non_members", "validation"):
        assert sorted(before[part]) == sorted(after[part])
    assert not set(before["retain"]) & set(world.request.record_ids)


def test_earlier_requests_belong_to_no_part(world):
    first = ForgetRequest(world.split.retain[:10])
    second = ForgetRequest(world.split.retain[10:30])
    split = second.apply(first.apply(world.split))
    ids = select_scored_ids(split, second)
    assert set(ids["forget"]) == set(second.record_ids)
    assert not set(ids["retain"]) & set(first.record_ids)


def test_bad_requests(world):
    with pytest.raises(RequestError, match="nothing to score"):
        select_scored_ids(world.split, ForgetRequest(()))
    with pytest.raises(RequestError, match="never trained on"):
        select_scored_ids(world.split, ForgetRequest(world.split.test[:3]))
    half = ForgetRequest(world.split.retain[:4]).apply(world.split)
    with pytest.raises(RequestError, match="forgotten before"):
        select_scored_ids(half, ForgetRequest(world.split.retain[2:8]))


def test_each_part_has_its_own_records_in_source_order_from_one_call(world):
    calls = []

    def predict(model, records, rows, *, runtime=None):
        calls.append(rows)
        return world.predict(model, records, rows)

    parts = predict_parts(world.trained(), world.request, world.records, predict=predict)
    assert len(calls) == 1
    for name in ("forget", "retain", "validation", "test", "non_members"):
        part = getattr(parts, name)
        rows = world.records.rows(part.record_ids)
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(part.logits, world.table[rows])
        np.testing.assert_array_equal(part.labels, world.records.labels[rows])
    assert parts.counts() == {"retain": 260, "forget": 40, "validation": 30, "test": 90, "non_members": 80}


def test_the_default_is_the_predict_logits_of_training(world):
    trained = dataclasses.replace(world.trained(), model=nn.Linear(1, 4))
    parts = predict_parts(trained, world.request, world.records)
    bias = trained.model.bias.detach().numpy()  # the features of this world are zero
    for name, count in parts.counts().items():
        np.testing.assert_allclose(getattr(parts, name).logits, np.tile(bias, (count, 1)), rtol=1e-6)


def test_legacy_test_leaves_out_the_forgotten_class_only(world, class_request):
    assert len(world.parts().legacy_test) == 90
    parts = world.parts(class_request)
    assert (parts.test.labels == 1).any()
    assert not (parts.legacy_test.labels == 1).any()
    assert len(parts.legacy_test) == int((parts.test.labels != 1).sum())


def test_no_test_records_is_an_error(make_world):
    with pytest.raises(DataError, match="no test records"):
        _ = make_world(test=0).parts().legacy_test
