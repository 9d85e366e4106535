"""A small synthetic world with known logits, without training: every score can be recomputed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Records
from expunge.evaluation import Parts, Predictions, predict_parts


def predictions(logits, labels, prefix="r") -> Predictions:
    """Predictions with ids `prefix-0`, `prefix-1`, ..."""
    ids = np.asarray([f"{prefix}-{i}" for i in range(len(labels))], dtype=np.str_)
    return Predictions(np.asarray(logits), np.asarray(labels, dtype=np.int64), ids)


@dataclasses.dataclass
class World:
    """Records whose logits are looked up in a table, so that `predict` needs no model."""

    records: Records
    split: Split
    request: ForgetRequest
    table: np.ndarray

    def predict(self, model, records, rows, *, runtime=None) -> torch.Tensor:
        return torch.as_tensor(self.table[rows] + next(model.parameters()).item())

    def trained(self, split: Split | None = None, weight: float = 0.0) -> Trained:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, weight)
        return Trained(model, None, split or self.split, Provenance({}))

    def parts(self, request: ForgetRequest | None = None) -> Parts:
        return predict_parts(self.trained(), request or self.request, self.records, predict=self.predict)


def build(seed=0, size=500, classes=4, forget=40, retain=260, test=90, non_members=80, easy=1.5) -> World:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    ids = np.asarray([f"id{i:05d}" for i in rng.permutation(size)], dtype=np.str_)
    table = rng.normal(0.0, 1.0, (size, classes)).astype(np.float32)
    order = rng.permutation(size)
    cuts = np.cumsum([forget, retain, test, non_members])
    f, r, t, u, v = np.split(order, cuts)
    table[np.arange(size), labels] += np.float32(easy)
    for rows in (f, r):
        table[rows, labels[rows]] += np.float32(1.0)
    records = Records("world", ids, labels, tuple("abcdefgh"[:classes]), features=np.zeros((size, 1), np.float32))
    split = Split(ids[np.concatenate([f, r])], (), ids[v], ids[t], ids[u])
    return World(records, split, ForgetRequest(ids[f]), table)


@pytest.fixture
def world() -> World:
    return build()


@pytest.fixture
def class_request(world) -> ForgetRequest:
    """All training records of class 1."""
    train = world.records.rows(world.split.retain)
    rows = train[world.records.labels[train] == 1]
    return ForgetRequest(world.records.record_ids[rows], {"by": "class", "index": 1}, forgotten_class=1)


@pytest.fixture
def make_predictions():
    return predictions


@pytest.fixture
def make_world():
    return build
