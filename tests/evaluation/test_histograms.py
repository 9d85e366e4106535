from __future__ import annotations

import json

import numpy as np
import pytest

from expunge.core.errors import ConfigError
from expunge.evaluation.histograms import compute_confidence_histogram, tabulate_classes


def test_every_record_is_in_one_bin(world):
    parts = world.parts()
    found = compute_confidence_histogram(parts, bins=10)
    assert found["edges"] == pytest.approx([i / 10 for i in range(11)])
    for name, part in found["parts"].items():
        confidence = getattr(parts, name).confidence
        assert sum(part["counts"]) == part["records"] == len(confidence)
        assert sum(part["fractions"]) == pytest.approx(1)
        brute = [int(((confidence >= i / 10) & (confidence < (i + 1) / 10)).sum()) for i in range(10)]
        assert part["counts"] == brute
    json.dumps(found, allow_nan=False)


def test_an_empty_part_has_zero_shares(make_world):
    found = compute_confidence_histogram(make_world(non_members=0).parts())["parts"]["non_members"]
    assert found["records"] == 0
    assert set(found["fractions"]) == {0.0}
    with pytest.raises(ConfigError, match="bins"):
        compute_confidence_histogram(make_world().parts(), bins=0)


def test_class_table(world, class_request):
    rows = tabulate_classes(world.parts(class_request))
    assert [row["class"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["forgotten"] for row in rows] == [False, True, False, False]
    assert rows[0]["forget"] == {"records": 0, "accuracy": None}
    assert rows[1]["retain"]["accuracy"] is None
    test = world.parts().test
    for index, row in enumerate(rows):
        mine = test.labels == index
        assert row["test"]["records"] == mine.sum()
        assert row["test"]["accuracy"] == pytest.approx(100 * np.mean(test.logits[mine].argmax(1) == index))
    json.dumps(rows, allow_nan=False)
