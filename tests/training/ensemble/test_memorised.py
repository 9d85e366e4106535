"""Held-out losses: mislabelled records have the largest ones; all losses equal those of models trained one by one."""

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
from expunge.training.ensemble.memorised import assign_halves, measure_held_out_losses

RECIPE = Recipe(name="short", epochs=6, batch_size=32, learning_rate=0.1, lr_schedule="constant")
MISLABELLED = np.arange(0, 400, 40)


@pytest.fixture(scope="module")
def records() -> Records:
    """400 digits, 10 of them with a wrong label."""
    bunch = load_digits()
    labels = bunch.target[:400].copy()
    labels[MISLABELLED] = (labels[MISLABELLED] + 5) % 10
    features = (bunch.images[:400, None] / 16).astype(np.float32)
    names = np.asarray([f"r{i:03d}" for i in range(400)])
    return Records("planted", names, labels, tuple("0123456789"), features=features)


def test_wrong_labels_have_the_largest_held_out_loss(records: Records) -> None:
    network = architecture("mlp", records, normalise="none", widths=(32,))
    found = measure_held_out_losses(records, np.arange(400), network, recipe=RECIPE, models=12, runtime=Runtime("cpu"))
    first = found.largest_first()[:20]
    assert len(np.intersect1d(first, MISLABELLED)) >= 9
    assert (found.models == 6).all()


def test_losses_are_those_of_models_trained_one_by_one(records: Records) -> None:
    network = architecture("mlp", records, normalise="none", widths=(16,))
    rows = np.arange(0, 120)
    found = measure_held_out_losses(records, rows, network, recipe=RECIPE, models=4, seed=9, runtime=Runtime("cpu"))
    total, count = np.zeros(120), np.zeros(120)
    for number, is_trained_on in enumerate(assign_halves(records, rows, 4, 9)):
        assert is_trained_on.sum() == 60
        split = Split(records.record_ids[rows[is_trained_on]], *(as_ids(()) for _ in range(4)))
        seed = derive(9, "held out model", number) % 2**31
        model = train(records, split, network, recipe=RECIPE, seed=seed, runtime=Runtime("cpu")).model
        logits = predict_logits(model, records, rows).double()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(records.labels[rows]), reduction="none")
        total += np.where(is_trained_on, 0, loss.numpy())
        count += ~is_trained_on
    assert np.array_equal(found.models, count)
    np.testing.assert_allclose(found.losses, total / count, atol=1e-4)


def test_invalid_numbers_of_models(records: Records) -> None:
    network = architecture("mlp", records, normalise="none", widths=(4,))
    short = dataclasses.replace(RECIPE, epochs=1)
    with pytest.raises(ConfigError, match="even and at most 4,096, not 1"):
        measure_held_out_losses(records, np.arange(9), network, recipe=short, models=1)
    with pytest.raises(ConfigError, match="even and at most 4,096, not 5"):
        measure_held_out_losses(records, np.arange(9), network, recipe=short, models=5)
    assert (measure_held_out_losses(records, np.arange(9), network, recipe=short, models=2).models == 1).all()


def test_the_models_are_trained_with_the_given_runtime(records: Records) -> None:
    network = architecture("mlp", records, normalise="none", widths=(4,))
    recipe = Recipe(epochs=1)
    losses = {
        precision: measure_held_out_losses(
            records, np.arange(40), network, recipe=recipe, models=2, runtime=Runtime("cpu", precision=precision)
        ).losses
        for precision in ("float32", "bf16")
    }
    assert np.allclose(losses["float32"], losses["bf16"], rtol=0.05)
    assert not np.array_equal(losses["float32"], losses["bf16"])
