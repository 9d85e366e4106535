"""Held-out losses: planted records come first, and every loss is what models trained one by one give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from expunge.core.errors import ConfigError
from expunge.core.seeds import derive
from expunge.core.split import Split, as_ids
from expunge.data import Records
from expunge.models import architecture
from expunge.training import Recipe, Runtime, predict_logits, train
from expunge.training.ensemble.memorised import halves, held_out_losses

RECIPE = Recipe(name="short", epochs=6, batch_size=32, learning_rate=0.1, schedule="constant")
WRONG = np.arange(0, 400, 40)


@pytest.fixture(scope="module")
def records() -> Records:
    """400 digits, of which 10 carry a wrong label."""
    bunch = load_digits()
    labels = bunch.target[:400].copy()
    labels[WRONG] = (labels[WRONG] + 5) % 10
    features = (bunch.images[:400, None] / 16).astype(np.float32)
    names = np.asarray([f"r{i:03d}" for i in range(400)])
    return Records("planted", names, labels, tuple("0123456789"), features=features)


def test_wrong_labels_have_the_largest_held_out_loss(records: Records) -> None:
    blueprint = architecture("mlp", records, normalise="none", widths=(32,))
    found = held_out_losses(records, np.arange(400), blueprint, recipe=RECIPE, models=12, runtime=Runtime("cpu"))
    first = found.largest_first()[:20]
    assert len(np.intersect1d(first, WRONG)) >= 9
    assert (found.models == 6).all()


def test_losses_are_those_of_models_trained_one_by_one(records: Records) -> None:
    blueprint = architecture("mlp", records, normalise="none", widths=(16,))
    rows = np.arange(0, 120)
    found = held_out_losses(records, rows, blueprint, recipe=RECIPE, models=4, seed=9, runtime=Runtime("cpu"))
    total, count = np.zeros(120), np.zeros(120)
    for number, inside in enumerate(halves(records, rows, 4, 9)):
        assert inside.sum() == 60
        split = Split(records.record_ids[rows[inside]], *(as_ids(()) for _ in range(4)))
        seed = derive(9, "held out model", number) % 2**31
        model = train(records, split, blueprint, recipe=RECIPE, seed=seed, runtime=Runtime("cpu")).model
        logits = predict_logits(model, records, rows).double()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(records.labels[rows]), reduction="none")
        total += np.where(inside, 0, loss.numpy())
        count += ~inside
    assert np.array_equal(found.models, count)
    np.testing.assert_allclose(found.losses, total / count, atol=1e-4)


def test_refusals(records: Records) -> None:
    blueprint = architecture("mlp", records, normalise="none", widths=(4,))
    short = dataclasses.replace(RECIPE, epochs=1)
    with pytest.raises(ConfigError, match="1 models"):
        held_out_losses(records, np.arange(9), blueprint, recipe=short, models=1)
    with pytest.raises(ConfigError, match="5 models"):
        held_out_losses(records, np.arange(9), blueprint, recipe=short, models=5)
    assert (held_out_losses(records, np.arange(9), blueprint, recipe=short, models=2).models == 1).all()
