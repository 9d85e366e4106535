"""KL divergence from the retrained model's outputs and disagreement with its classes, against hand calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax
from scipy.stats import ttest_1samp

from expunge.core.errors import ConfigError, DataError
from expunge.core.registry import SCORES
from expunge.evaluation import disagreement, evaluate, kl_to_retrained, noise_floors, register_score, summarise
from expunge.evaluation.facts import built_in_facts

NAMES = ["KL on D_f", "KL on test", "Disagreement on D_f", "Disagreement on test"]


def test_three_records_by_hand(make_predictions):
    """Probabilities with known logarithms: KL(p || q) = sum p log(p / q), with p of the retrained model."""
    retrained = make_predictions(np.log([[0.5, 0.5], [0.25, 0.75], [1.0, 1e-300]]), [0, 1, 0])
    model = make_predictions(np.log([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]), [0, 1, 0])
    by_hand = [math.log(2) - math.log(3) / 2, 0.0, math.log(2)]
    assert kl_to_retrained(model, retrained) == pytest.approx(by_hand, abs=1e-15)
    other_way = kl_to_retrained(retrained, model)
    assert other_way[0] == pytest.approx(0.75 * math.log(3) - math.log(2))
    assert other_way[0] != pytest.approx(by_hand[0], abs=0.01), "the direction matters"
    assert other_way[2] > 300, "a class that the retrained model expects and the model calls impossible"
    assert disagreement(model, retrained) == pytest.approx(100 / 3), "ties: the first class"


def test_kl_is_that_of_scipy_and_ignores_constants(make_predictions):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 4, (2, 50, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 50)
    found = kl_to_retrained(make_predictions(a, labels), make_predictions(b, labels))
    p, q = (scipy_softmax(logits.astype(np.float64), axis=1) for logits in (b, a))
    assert found == pytest.approx(rel_entr(p, q).sum(axis=1), rel=1e-9)
    shift = rng.normal(0, 1, (50, 1))
    shifted = kl_to_retrained(make_predictions(a + 100 * shift, labels), make_predictions(b - shift, labels))
    assert shifted == pytest.approx(found, rel=1e-5)


def test_a_permutation_of_records_changes_nothing_and_large_logits_stay_finite(make_predictions):
    rng = np.random.default_rng(1)
    a, b = 1e4 * rng.normal(0, 1, (2, 40, 5))
    labels, order = rng.integers(0, 5, 40), rng.permutation(40)
    one, two = make_predictions(a, labels), make_predictions(b, labels)
    assert np.isfinite(kl_to_retrained(one, two)).all()
    assert kl_to_retrained(one.take(order), two.take(order)).tolist() == kl_to_retrained(one, two)[order].tolist()
    assert disagreement(one.take(order), two.take(order)) == disagreement(one, two)
    assert kl_to_retrained(one, one).tolist() == [0.0] * 40
    assert disagreement(one, one) == 0.0
    with pytest.raises(DataError, match="others"):
        kl_to_retrained(one.take(order), two)
    with pytest.raises(DataError, match="4 outputs, the retrained model 5"):
        disagreement(make_predictions(a[:, :4], labels % 4), two)


class Tilted:
    """Predicts the logits of a world; those of the retrained model (weight 1) have more of the first class."""

    def __init__(self, world) -> None:
        self.world, self.calls = world, []

    def __call__(self, model, records, rows, *, runtime=None):
        logits = self.world.predict(model, records, rows)
        weight = next(model.parameters()).item()
        self.calls.append(weight)
        logits[:, 0] += weight
        return logits


def score(world, request, **options):
    retrained = world.trained(request.apply(world.split), weight=1.0)
    return evaluate(world.trained(), request, world.records, reference=retrained, **options)


@pytest.mark.parametrize("whole_class", [False, True])
def test_scores_are_the_means_over_the_records(world, class_request, whole_class):
    request = class_request if whole_class else world.request
    scores = score(world, request, predict=Tilted(world), scores=NAMES)
    split = request.apply(world.split)
    test_ids = world.records.record_ids[np.sort(world.records.rows(split.test))]
    rows = {"D_f": world.records.rows(request.record_ids), "test": world.records.rows(test_ids)}
    if whole_class:
        rows["test"] = rows["test"][world.records.labels[rows["test"]] != 1]
    for part, where in rows.items():
        logits = world.table[where].astype(np.float64)
        tilted = logits + np.eye(4)[0]
        kl = rel_entr(scipy_softmax(tilted, axis=1), scipy_softmax(logits, axis=1)).sum(axis=1)
        found = scores[f"KL on {part}"]
        assert found.value == pytest.approx(kl.mean(), rel=1e-6)
        interval = ttest_1samp(kl, 0.0).confidence_interval()
        assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
        differ = 100 * np.mean(tilted.argmax(axis=1) != logits.argmax(axis=1))
        assert scores[f"Disagreement on {part}"].value == pytest.approx(differ)
        assert scores[f"Disagreement on {part}"].interval.low < differ < scores[f"Disagreement on {part}"].interval.high
        assert f"over {len(where)} " in found.definition
    assert {(s.unit, s.direction, s.reference) for s in (scores["KL on D_f"], scores["KL on test"])} == {
        ("nats", "lower", None)
    }


def test_measured_on_request_only_and_the_retrained_model_predicts_once(world):
    plain = score(world, world.request, predict=Tilted(world))
    assert not set(NAMES) & set(plain.names)
    predict = Tilted(world)
    asked = score(world, world.request, predict=predict, scores=NAMES)
    after = plain.names.index("Disparity average") + 1
    assert asked.names == (*plain.names[:after], *NAMES, *plain.names[after:])
    assert {name: asked[name].value for name in plain.names} == {s.name: s.value for s in plain}
    assert sorted(predict.calls) == [0.0, 1.0]


def test_scores_of_a_reference_are_not_enough(world):
    retrained = world.trained(world.request.apply(world.split), weight=1.0)
    reference = evaluate(retrained, world.request, world.records, predict=world.predict)
    scores = evaluate(
        world.trained(), world.request, world.records, predict=world.predict, reference=reference, scores=NAMES
    )
    assert not set(NAMES) & set(scores.names)
    assert "KL on D_f was not computed: it needs predictions of the retrained model" in " ".join(scores.notes)


def test_a_custom_score_reads_the_predictions_of_the_retrained_model(world):
    with SCORES.temporary():

        @register_score("Mean confidence of Retrain", needs=("retrained",))
        def measure(inputs):
            """Mean probability of the true label on D_f, of the retrained model."""
            return float(inputs.retrained_parts.forget.confidence.mean())

        scores = score(world, world.request, predict=Tilted(world), scores=["Mean confidence of Retrain"])
    rows = world.records.rows(world.request.record_ids)
    tilted = world.table[rows] + np.eye(4)[0]
    confidence = scipy_softmax(tilted, axis=1)[np.arange(len(rows)), world.records.labels[rows]]
    assert scores["Mean confidence of Retrain"].value == pytest.approx(confidence.mean(), rel=1e-6)


def test_a_distance_to_the_reference_has_no_floor_of_references():
    runs = [{"KL on D_f": 0.0, "UA": 1.0}, {"KL on D_f": 0.0, "UA": 3.0}]
    assert noise_floors(runs) == {"UA": 2.0}
    assert {name for name, facts in built_in_facts().items() if facts.rerun_floor} == {*NAMES, "IoU gain"}


def test_over_seeds(make_world):
    seeds = []
    for seed in (0, 1):
        world = make_world(seed=seed)
        seeds.append(score(world, world.request, predict=Tilted(world), scores=NAMES))
    summary = summarise(seeds)["KL on D_f"]
    assert summary.value.mean == pytest.approx(np.mean([scores["KL on D_f"].value for scores in seeds]))
    assert (summary.noise_floor, summary.gap) == (None, None)


def test_an_unknown_name_is_still_an_error(world):
    with pytest.raises(ConfigError, match="KL on D"):
        score(world, world.request, predict=Tilted(world), scores=["KL on D"])
