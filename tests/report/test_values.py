import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import DataError
from expunge.report import Histogram, ReportScore


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_missing_with_a_reason(value):
    score = ReportScore("UA", value, reference=value, interval=(0.1, value))
    assert (score.value, score.reference, score.interval, score.signed_gap) == (None, None, None, None)
    assert score.missing == "not a finite number"


def test_the_gap_is_signed_and_relative_to_the_reference():
    assert ReportScore("UA", 3.0, reference=5.0, gap=2.0).signed_gap == -2.0
    assert ReportScore("UA", 3.0, gap=2.0).signed_gap == 2.0
    assert ReportScore("UA", None, gap=2.0).signed_gap is None


def test_an_unknown_direction_is_refused():
    with pytest.raises(DataError, match="direction"):
        ReportScore("UA", 1.0, direction="up")


@given(st.lists(st.floats(0, 1), max_size=50), st.integers(1, 30))
def test_a_histogram_counts_every_record_once(values, bins):
    histogram = Histogram.from_values(values, bins)
    assert histogram.total == len(values)
    assert len(histogram.counts) == bins
    assert sum(histogram.fractions) == pytest.approx(1.0 if values else 0.0)


def test_bad_histograms_are_refused():
    assert Histogram.from_values([1.0, 0.0]).counts[-1] == 1
    for edges, counts in (((0, 1), (1, 2)), ((0, 0, 1), (1, 2)), ((0, 1), (-1,))):
        with pytest.raises(DataError):
            Histogram(edges, counts)
    for values in ([math.nan], [1.5], [-0.1]):
        with pytest.raises(DataError, match="between 0 and 1"):
            Histogram.from_values(values)
