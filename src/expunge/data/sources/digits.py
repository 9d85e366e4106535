"""Handwritten digits, 8 x 8, from scikit-learn."""

from __future__ import annotations

import numpy as np

from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import read_scikit_learn_table
from expunge.data.records import Records
from expunge.data.registry import register_source


@register_source("digits", title="scikit-learn digits", package="scikit-learn")
def digits(directory: DataDir) -> Records:
    """Handwritten digits of scikit-learn: 1,797 records of 1 x 8 x 8, 10 classes; no official split.

    The grey values 0..16 are divided by 16, so the features are float32 in [0, 1]. Source: UCI Optical Recognition of
    Handwritten Digits (test part). Ids: `digit-0000` to `digit-1796`, in scikit-learn's order.
    """
    table = read_scikit_learn_table("digits.csv.gz")  # 64 grey values and the digit
    if table is None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        table = np.column_stack([bunch.data, bunch.target])
    return Records(
        name="digits",
        record_ids=np.asarray([f"digit-{i:04d}" for i in range(len(table))]),
        labels=table[:, -1].astype(np.int64),
        class_names=tuple(str(i) for i in range(10)),
        features=(table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32),
    )
