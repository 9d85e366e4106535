"""RL: the wrong labels, and one step against a direct computation."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.random_label import relabel
from expunge.training import Runtime


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def many(classes: int, count: int = 9000) -> Records:
    """Records with constant features and labels 0, 1, ..., K - 1, 0, ..."""
    return Records(
        name="many",
        record_ids=np.array([f"r{i}" for i in range(count)]),
        labels=np.arange(count) % classes,
        class_names=tuple(map(str, range(classes))),
        features=np.zeros((count, 1), dtype=np.float32),
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", [0, 5])
def test_no_record_has_its_true_label_and_the_other_classes_are_equally_likely(classes: int, seed: int) -> None:
    records = many(classes)
    labels = relabel(records, records.record_ids, seed).labels
    assert (labels != records.labels).all()
    assert labels.min() >= 0
    assert labels.max() < classes
    counts = np.zeros((classes, classes))
    np.add.at(counts, (records.labels, labels), 1)
    for true in range(classes):
        others = np.delete(counts[true], true)
        assert classes == 2 or stats.chisquare(others).pvalue > 1e-4


def test_a_label_depends_only_on_the_seed_and_the_record(digits: Records) -> None:
    """It does not depend on the other forgotten records, their order, or the row of the record."""
    ids = digits.record_ids
    all_labels = relabel(digits, ids, 4).labels
    few = relabel(digits, ids[100:50:-7], 4)
    forgotten = digits.rows(ids[100:50:-7])
    assert np.array_equal(few.labels[forgotten], all_labels[forgotten])
    rest = np.setdiff1d(np.arange(len(ids)), forgotten)
    assert np.array_equal(few.labels[rest], digits.labels[rest])
    reversed_records = dataclasses.replace(
        digits, record_ids=ids[::-1], labels=digits.labels[::-1], features=np.ascontiguousarray(digits.features[::-1])
    )
    assert np.array_equal(relabel(reversed_records, ids, 4).labels[::-1], all_labels)
    assert not np.array_equal(relabel(digits, ids, 5).labels, all_labels)


def test_one_class_has_no_wrong_label() -> None:
    with pytest.raises(MethodError, match="at least two classes"):
        relabel(many(1), ["r0"], 0)


@pytest.mark.parametrize("model_name", ["dense", "sparse"])
def test_a_step_is_one_step_on_both_sets(
    model_name: str, request: pytest.FixtureRequest, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """theta - rate * m * grad of the mean cross-entropy over D_r with true and D_f with wrong labels, in float64."""
    trained: Trained = request.getfixturevalue(model_name)
    options = {"epochs": 1, "batch_size": 512, "momentum": 0.0, "weight_decay": 0.0, "batch_norm": "frozen"}
    outcome = get_method("RL", learning_rate=0.1, **options).forget(trained, request_20, context)
    rows = digits.rows(trained.split.retain)  # before the request: D_r and D_f
    assert digits.features is not None
    x = torch.from_numpy(np.array(digits.features)[rows]).double() / 255
    y = torch.from_numpy(relabel(digits, request_20.record_ids, context.seed).labels[rows])
    model = copy.deepcopy(trained.model).double().eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(functional.cross_entropy(model(x), y), parameters), strict=True))
    after = dict(outcome.trained.model.named_parameters())
    for name, before in trained.model.named_parameters():
        step = 0.1 * gradient[name]
        if trained.mask is not None and name in trained.mask.kept:
            step = step * trained.mask.kept[name]
        torch.testing.assert_close(after[name].detach().double(), before.detach().double() - step, rtol=1e-4, atol=1e-6)
    assert outcome.cost.trained_records == len(rows)


def test_the_wrong_labels_are_learned(dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    """After long training, the model predicts the wrong labels for much of D_f; the original does for hardly any."""
    context = Context(digits, cpu, seed=2)
    outcome = get_method("RL", epochs=60, batch_size=32, learning_rate=0.05).forget(dense, request_20, context)
    rows = digits.rows(request_20.record_ids)
    wrong = relabel(digits, request_20.record_ids, 2).labels[rows]
    assert digits.features is not None
    x = torch.from_numpy(np.array(digits.features)[rows]).float() / 255
    for trained, low, high in ((dense, 0.0, 0.1), (outcome.trained, 0.3, 1.0)):
        with torch.no_grad():
            predicted = copy.deepcopy(trained.model).eval()(x).argmax(1).numpy()
        assert low <= (predicted == wrong).mean() <= high


def test_the_callers_labels_do_not_change(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    before = digits.labels.copy()
    get_method("RL", epochs=1).forget(dense, request_20, Context(digits, cpu))
    assert np.array_equal(digits.labels, before)
