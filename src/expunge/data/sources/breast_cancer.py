"""Breast cancer measurements from scikit-learn."""

from __future__ import annotations

import numpy as np

from expunge.data.data_dir import DataDir
from expunge.data.reading.readers import read_scikit_learn_table
from expunge.data.records import Records
from expunge.data.registry import register_source


@register_source("breast-cancer", title="Breast Cancer Wisconsin", package="scikit-learn")
def breast_cancer(directory: DataDir) -> Records:
    """Breast cancer Wisconsin (diagnostic): 569 records of 30 numbers, 2 classes; no official split.

    The features are the raw measurements as float32, of magnitudes from 1e-3 to 1e3; the model should normalise them.
    Ids: `case-000` to `case-568`, in scikit-learn's order.
    """
    table = read_scikit_learn_table("breast_cancer.csv", skip_lines=1)  # 30 measurements and the class
    if table is None:
        from sklearn.datasets import load_breast_cancer

        bunch = load_breast_cancer()
        table = np.column_stack([bunch.data, bunch.target])
    return Records(
        name="breast-cancer",
        record_ids=np.asarray([f"case-{i:03d}" for i in range(len(table))]),
        labels=table[:, -1].astype(np.int64),
        class_names=("malignant", "benign"),
        features=table[:, :-1].astype(np.float32),
    )
