"""L2-regularised logistic regression: fine-tuning reaches the optimum that other solvers find on D_r."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.training import Recipe, Runtime, train


@pytest.fixture(scope="module")
def cancer() -> tuple[Records, Split]:
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    ids = np.array([f"p{i:03d}" for i in range(len(x))])
    records = Records("cancer", ids, data.target, ("malignant", "benign"), features=x.astype(np.float32))
    return records, Split(retain=ids[:400], forget=(), validation=(), test=ids[400:500], non_members=ids[500:])


def sklearn_optimum(x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    """Binary logistic regression with the penalty that corresponds to weight decay on a softmax with two rows.

    For two rows w1 = -w0 = v / 2, the penalty decay / 2 * (|w0|^2 + |w1|^2) on the mean loss over n records is
    decay / 4 * |v|^2, so C = 2 / (n decay). The bias is a feature of ones, because weight decay covers all parameters.
    """
    ones = np.hstack([x, np.ones((len(x), 1))])
    model = LogisticRegression(C=2 / (len(x) * decay), fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(ones, y).coef_[0]


def scipy_optimum(x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    """The same optimum by L-BFGS on the softmax with two rows: w1 - w0."""
    ones = np.hstack([x, np.ones((len(x), 1))])
    hot = np.eye(2)[y]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(2, -1)
        z = ones @ w.T
        top = z.max(1, keepdims=True)
        log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
        loss = -(hot * log_p).sum(1).mean() + decay / 2 * (w**2).sum()
        return loss, (((np.exp(log_p) - hot).T @ ones) / len(x) + decay * w).ravel()

    found = minimize(
        value, np.zeros(2 * ones.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}
    )
    w = found.x.reshape(2, -1)
    return w[1] - w[0]


def margin(trained: Trained) -> np.ndarray:
    layer = trained.model.classifier
    joined = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy()
    return joined[1] - joined[0]


def test_ft_reaches_the_retrained_optimum(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """L2-regularised logistic regression has one optimum, so the start does not matter."""
    records, split = cancer
    decay = 0.05
    plan = Recipe(epochs=300, batch_size=400, learning_rate=0.5, momentum=0.9, weight_decay=decay)
    network = Architecture("mlp", {"widths": ()}, records.input_shape, 2)
    original = train(records, split, network, recipe=plan, seed=0, runtime=cpu)

    def optimum(ids: Any) -> np.ndarray:
        rows = records.rows(ids)
        x, y = np.asarray(records.features, dtype=np.float64)[rows], records.labels[rows]
        solution = sklearn_optimum(x, y, decay)
        np.testing.assert_allclose(solution, scipy_optimum(x, y, decay), atol=1e-5)
        return solution

    full = optimum(split.train)
    np.testing.assert_allclose(margin(original), full, atol=1e-4)
    request = ForgetRequest(split.retain[:60])
    context = Context(records, cpu, seed=3)
    options = {"epochs": 300, "batch_size": 400, "learning_rate": 0.5, "weight_decay": decay}
    outcome = get_method("FT", **options).forget(original, request, context)
    retained = optimum(outcome.trained.split.retain)
    np.testing.assert_allclose(margin(outcome.trained), retained, atol=1e-4)
    retrained = get_method("Retrain").forget(original, request, context)
    np.testing.assert_allclose(margin(retrained.trained), retained, atol=1e-4)
    assert np.abs(retained - full).max() > 1e-2, "the two optima must differ, or the test shows nothing"
    short = get_method("FT", **{**options, "epochs": 2}).forget(original, request, context)
    assert np.abs(margin(short.trained) - retained).max() > 1e-3, (
        "two epochs must not suffice, or the test shows nothing"
    )


def test_masked_ft_reaches_the_optimum_of_the_kept_features(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """Masking features gives logistic regression without them."""
    records, split = cancer
    decay = 0.05
    plan = Recipe(epochs=3, batch_size=400, learning_rate=0.5, weight_decay=decay)
    network = Architecture("mlp", {"widths": ()}, records.input_shape, 2)
    kept = torch.zeros(2, 30, dtype=torch.bool)
    kept[:, ::3] = True
    original = train(records, split, network, recipe=plan, seed=0, runtime=cpu)
    mask = Mask({"classifier.weight": kept}, MaskProvenance("by hand"))
    mask.apply_(original.model)
    masked = dataclasses.replace(original, mask=mask)
    request = ForgetRequest(split.retain[:60])
    options = {"epochs": 300, "batch_size": 400, "learning_rate": 0.5, "weight_decay": decay}
    outcome = get_method("FT", **options).forget(masked, request, Context(records, cpu))
    rows = records.rows(outcome.trained.split.retain)
    x = np.asarray(records.features, dtype=np.float64)[rows][:, ::3]
    found = margin(outcome.trained)
    np.testing.assert_allclose(
        found[[*range(0, 30, 3), 30]], sklearn_optimum(x, records.labels[rows], decay), atol=1e-4
    )
    assert (np.delete(found, [*range(0, 30, 3), 30]) == 0).all()
