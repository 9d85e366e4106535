from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from expunge.core.errors import ConfigError
from expunge.evaluation.score import Score, Scores
from expunge.evaluation.scores.disparity import NAME, TERMS, disparity_average
from expunge.evaluation.seeds import disparity_of_means, format_summaries, summarise


def seed_scores(values, reference=None, weights=None):
    rows = [
        Score(name, float(v), "%", "reference", "d.", reference=None if reference is None else float(reference[i]))
        for i, (name, v) in enumerate(zip(TERMS, values, strict=True))
    ]
    scores = Scores(tuple(rows), {} if weights is None else {"reference": {"weights": weights}})
    if reference is None:
        return scores
    average = disparity_average(*(dict(zip(TERMS, map(float, row), strict=True)) for row in (values, reference)))
    return scores.with_scores([Score(NAME, average, "points", "lower", "d.")])


def several(n=5, same_reference=False, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 3, (n, 4))
    values, truths = 50 + shared + rng.normal(0, 0.1, (n, 4)), 48 + shared
    if same_reference:
        truths = np.repeat(truths[:1], n, axis=0)
    tags = ["w0"] * n if same_reference else [f"w{i}" for i in range(n)]
    return values, truths, [seed_scores(v, t, w) for v, t, w in zip(values, truths, tags, strict=True)]


def test_mean_std_and_interval_equal_scipy():
    values, _, scores = several()
    found = summarise(scores)["RA"].value
    column = values[:, TERMS.index("RA")]
    low, high = scipy.stats.t.interval(0.95, 4, column.mean(), scipy.stats.sem(column))
    assert (found.mean, found.std, found.n) == pytest.approx((column.mean(), column.std(ddof=1), 5))
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_gap_is_paired_by_seed():
    values, truths, scores = several()
    found = summarise(scores)["UA"]
    a, b = values[:, 0], truths[:, 0]
    interval = scipy.stats.ttest_rel(a, b).confidence_interval()
    assert found.gap.mean == pytest.approx((a - b).mean())
    assert (found.gap.interval.low, found.gap.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.gap.std < 0.3 < found.value.std  # variation that model and reference share cancels
    assert found.noise_floor == pytest.approx(np.mean([abs(p - q) for p, q in itertools.combinations(b, 2)]))


def test_one_reference_for_all_seeds_gives_no_noise_floor():
    _, _, scores = several(same_reference=True)
    found = summarise(scores)
    assert found["UA"].noise_floor is None
    assert found["UA"].reference.n == 1
    assert found["Disparity average"].noise_floor is None


def test_a_reference_that_two_of_three_seeds_share_counts_once():
    values, truths, _ = several(n=3)
    truths[1] = truths[0]
    scores = [seed_scores(v, t, w) for v, t, w in zip(values, truths, ("w0", "w0", "w2"), strict=True)]
    found = summarise(scores)
    assert found["TA"].noise_floor == pytest.approx(abs(truths[0, 3] - truths[2, 3]))
    assert found["Disparity average"].noise_floor == pytest.approx(np.abs(truths[0] - truths[2]).mean())


def test_disparity_noise_floor_is_the_mean_over_pairs_of_references():
    _, truths, scores = several(n=3)
    pairs = [np.abs(truths[i] - truths[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert summarise(scores)["Disparity average"].noise_floor == pytest.approx(np.mean(pairs))


def test_disparity_of_means_is_that_of_the_paper_and_never_larger():
    values, truths, scores = several()
    found = summarise(scores)
    assert disparity_of_means(found) == pytest.approx(np.abs(values.mean(0) - truths.mean(0)).mean())
    assert disparity_of_means(found) <= found["Disparity average"].value.mean + 1e-12
    assert disparity_of_means(summarise([seed_scores([1, 2, 3, 4])])) is None


def test_one_seed_has_no_spread():
    found = summarise([seed_scores([1, 2, 3, 4], [0, 0, 0, 0], "w")])["UA"]
    assert found.value.std is None
    assert found.value.interval is None
    assert "(one seed)" in found.row()["mean +- std"]


def test_without_references_there_is_no_gap():
    found = summarise([seed_scores([1, 2, 3, 4]), seed_scores([2, 3, 4, 5])])["UA"]
    assert found.gap is None
    assert found.reference is None
    assert found.noise_floor is None


def test_a_gap_needs_every_seed():
    found = summarise([seed_scores([1, 2, 3, 4], [0, 0, 0, 0], "w"), seed_scores([2, 3, 4, 5])])
    assert found["UA"].gap is None
    assert "Disparity average" not in found


def test_order_of_seeds_does_not_change_a_summary():
    _, _, scores = several()
    forward, backward = summarise(scores), summarise(scores[::-1])
    for name in forward:
        assert forward[name].value.mean == pytest.approx(backward[name].value.mean)
        assert forward[name].gap is None or forward[name].gap.std == pytest.approx(backward[name].gap.std)


def test_text_and_json():
    _, _, scores = several()
    found = summarise(scores)
    text = format_summaries(found)
    assert "+-" in text
    assert "noise floor" in text.splitlines()[0]
    json.dumps({name: summary.to_json() for name, summary in found.items()}, allow_nan=False)


def test_bad_input():
    with pytest.raises(ConfigError, match="nothing to summarise"):
        summarise([])
    other = Scores((Score("UA", 1.0, "s", "lower", "d."),))
    with pytest.raises(ConfigError, match="disagree"):
        summarise([seed_scores([1, 2, 3, 4]), other])
