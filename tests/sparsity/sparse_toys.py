"""Small records, splits and trained models for the tests of this room."""

from __future__ import annotations

import numpy as np

from expunge.core.split import Split, as_ids
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.models import architecture
from expunge.training import Runtime, recipe, train

CPU = Runtime("cpu")


def toy_records(shape: tuple[int, ...], count: int = 240, classes: int = 4, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, *shape)).astype(np.float32)
    features = centres[labels] + 0.7 * rng.normal(size=(count, *shape)).astype(np.float32)
    ids = np.array([f"r{i:04d}" for i in range(count)])
    return Records("toy", ids, labels, tuple("abcdefgh"[:classes]), features=features)


def toy_split(records: Records) -> Split:
    ids, n = records.record_ids, len(records)
    return Split(
        retain=ids[: n // 2],
        forget=as_ids(()),
        validation=ids[n // 2 : 5 * n // 8],
        test=ids[5 * n // 8 : 7 * n // 8],
        unseen=ids[7 * n // 8 :],
    )


def toy_trained(
    name: str, shape: tuple[int, ...], *, epochs: int = 6, seed: int = 0, **options
) -> tuple[Trained, Records]:
    records = toy_records(shape)
    blueprint = architecture(name, records, normalise="none", **options)
    how = recipe("one-cycle", epochs=epochs, batch_size=40, rewind=0.2)
    return train(records, toy_split(records), blueprint, recipe=how, seed=seed, runtime=CPU), records
