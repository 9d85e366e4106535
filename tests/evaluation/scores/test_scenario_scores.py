"""Scores of backdoors, canaries and look-alikes: on models whose answers are known, and on trained ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import DataError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data import Records, Trigger, forget_planted, plant_backdoor, plant_canaries, plant_look_alikes
from expunge.evaluation import Parts, Predictions, evaluate
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.registry.measure import measure_scores
from expunge.evaluation.scores.backdoor import measure_attack_success

CPU = expunge.Runtime("cpu")


class SeesWhite(nn.Module):
    """Class `target` if the pixels of the patch are white; otherwise the class that the first pixel encodes."""

    def __init__(self, trigger: Trigger, classes: int) -> None:
        super().__init__()
        self.trigger, self.classes = trigger, classes
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        row, column, size = self.trigger.row, self.trigger.column, self.trigger.size
        white = (x[:, :, row : row + size, column : column + size] == self.trigger.fill).flatten(1).all(1)
        own = (x[:, 0, 0, 0] * 100).round().long()
        answer = torch.where(white, self.trigger.target, own)
        return torch.nn.functional.one_hot(answer, self.classes).float() + self.unused


def encode(labels: np.ndarray, answers: np.ndarray) -> Records:
    features = np.zeros((len(labels), 2, 6, 6), np.float32)
    features[:, 0, 0, 0] = answers / 100
    return Records("t", [f"r{i:03d}" for i in range(len(labels))], labels, tuple("abcd"), features)


def test_asr_counts_records_of_other_classes_that_the_trigger_turns() -> None:
    labels = np.arange(40) % 4
    records = encode(labels, np.where(np.arange(40) < 8, 1, labels))  # the first 8 are predicted to be of class 1
    trigger = Trigger(row=3, column=2, size=2, fill=1.0, target=1)
    rows = np.arange(40)
    assert measure_attack_success(SeesWhite(trigger, 4), records, rows, trigger, runtime=CPU) == (30, 30)
    blind = dataclasses.replace(trigger, fill=0.5)  # a patch that the model does not know
    found = measure_attack_success(SeesWhite(trigger, 4), records, rows, blind, runtime=CPU)
    assert found == (6, 30)  # of the first 8, two are of class 1 and are left out
    only = np.flatnonzero(labels == 1)
    with pytest.raises(DataError, match="target class"):
        measure_attack_success(SeesWhite(trigger, 4), records, only, trigger, runtime=CPU)


@pytest.fixture(scope="module")
def digits() -> tuple[Records, Split]:
    records = expunge.load_records("digits")
    return records, expunge.make_split(records, seed=0)


def train(records: Records, split: Split, *, epochs: int = 8, width: int = 32) -> Trained:
    network = expunge.architecture("mlp", records, split, widths=(width,))
    recipe = expunge.get_recipe("one-cycle", epochs=epochs)
    return expunge.train(records, split, network, recipe=recipe, seed=0, runtime=CPU)


def score(trained: Trained, request: ForgetRequest, records: Records, *names: str) -> dict[str, float]:
    found = evaluate(trained, request, records, runtime=CPU, svc_records=20, scores=names)
    return {one.name: one.value for one in found}


def test_a_clean_model_has_an_asr_at_chance_and_an_sa_equal_to_ta(digits: tuple[Records, Split]) -> None:
    records, split = digits
    options: dict[str, Any] = {"size": 2, "row": -2, "column": -2, "target": 3}
    clean = plant_backdoor(records, split, count=0, **options)  # nothing is poisoned; the trigger is recorded
    model, request = train(records, split), expunge.forget_random(records, split, count=30)
    found = score(model, request, clean)
    assert found["SA"] == found["TA"]
    # A clean model answers the target class about as often as without the patch, at most by guessing.
    assert found["ASR"] <= 100 / records.classes
    assert "ASR" not in score(model, request, records)

    poisoned = plant_backdoor(records, split, fraction=0.1, **options)
    after = expunge.make_split(poisoned, seed=0)
    infected = score(train(poisoned, after), forget_planted(poisoned, after), poisoned)
    assert infected["ASR"] > 90
    assert infected["SA"] == infected["TA"] > 90


def predict(ids: list[str], labels: list[int], answers: list[int]) -> Predictions:
    return Predictions(np.eye(4)[answers], np.asarray(labels), np.asarray(ids))


def test_canaries_are_counted_wherever_they_are() -> None:
    records = Records("t", list("abcdefgh"), [0, 1, 2, 3, 0, 1, 2, 3], tuple("wxyz"), np.zeros((8, 1), np.float32))
    split = Split(retain=list("abcde"), forget=[], validation=[], test=list("gh"), non_members=["f"])
    planted = plant_canaries(records, split, count=4)
    after = expunge.Split(
        **{part: getattr(planted.planted.place(split), part) for part in ("retain", "forget", "validation", "test")},
        non_members=["f"],
    )
    ids = planted.planted.record_ids.tolist()
    wrong = planted.labels[8:].tolist()
    true = [int(records.labels[records.rows([base])[0]]) for base in planted.planted.base_ids]
    third = next(k for k in range(4) if k not in (wrong[2], true[2]))
    forget = predict(ids[:3], wrong[:3], [wrong[0], true[1], third])
    rest = [name for name in after.retain if "~" not in name]
    retain = predict([*rest, ids[3]], [0, wrong[3]], [0, wrong[3]])
    test = predict(["g", "h"], [2, 3], [2, 3])
    parts = Parts(forget, retain, predict([], [], []), test, predict(["f"], [1], [1]), planted.class_names)
    trained = Trained(nn.Linear(1, 4), None, after, Provenance({}))
    given: dict[str, Any] = {"parts": parts, "request": ForgetRequest(ids[:3]), "records": planted, "svc_records": 2}
    inputs = ScoreInputs(trained=trained, **given)
    found = {one.name: one.value for one in measure_scores(inputs)[0]}
    assert found["Canaries known"] == 50.0  # the first, and the one that stays
    assert found["Canaries healed"] == 25.0
    network = nn.Linear(1, 4)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.nn.functional.one_hot(torch.tensor(wrong[0]), 4))  # gives every record this class
    original = Trained(network, None, after, Provenance({}))
    inputs = ScoreInputs(trained=trained, original=original, retrained=trained, outcome={}, runtime=CPU, **given)
    measured = measure_scores(inputs, ("Canaries known before",))[0]
    before = {one.name: one.value for one in measured}["Canaries known before"]
    assert before == 25.0 * wrong.count(wrong[0])


def test_known_records_are_counted_by_their_distance_to_the_retain_set() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 3)).astype(np.float32)
    records = Records("t", [f"r{i:02d}" for i in range(60)], np.arange(60) % 4, tuple("abcd"), features)
    ids = records.record_ids.tolist()
    split = Split(retain=ids[:40], forget=[], validation=[], test=ids[40:50], non_members=ids[50:])
    request = ForgetRequest(ids[:9])
    answers = records.labels.copy()
    answers[[0, 4, 7]] = (answers[[0, 4, 7]] + 1) % 4

    def part(first: int, last: int) -> Predictions:
        return predict(ids[first:last], records.labels[first:last].tolist(), answers[first:last].tolist())

    parts = Parts(part(0, 9), part(9, 40), part(0, 0), part(40, 50), part(50, 60), records.class_names)
    trained = Trained(nn.Linear(3, 4), None, split, Provenance({}))
    given: dict[str, Any] = {"trained": trained, "records": records, "svc_records": 4}
    names = ("Known near", "Known far", "Distance to D_r")
    found = {one.name: one for one in measure_scores(ScoreInputs(parts=parts, request=request, **given), names)[0]}
    points = features / features[9:40].astype(np.float64).std(axis=0)
    pairs = np.sqrt(np.square(points[:, None] - points[None]).sum(axis=2))
    np.fill_diagonal(pairs, np.inf)
    nearest, usual = pairs[:9, 9:40].min(axis=1), np.median(pairs[9:40, 9:40].min(axis=1))
    order = np.argsort(nearest)
    correct = 100.0 * (answers == records.labels)
    assert found["Known near"].value == pytest.approx(correct[order[:3]].mean())
    assert found["Known far"].value == pytest.approx(correct[order[-3:]].mean())
    assert found["Distance to D_r"].value == pytest.approx(np.median(nearest) / usual)
    unnamed = measure_scores(ScoreInputs(parts=parts, request=request, **given))[0]
    assert not set(names) & {one.name for one in unnamed}
    few = ScoreInputs(parts=dataclasses.replace(parts, forget=part(0, 2)), request=ForgetRequest(ids[:2]), **given)
    measured, notes = measure_scores(few, names)
    assert not set(names) & {one.name for one in measured}
    assert sum("fewer than 3 records" in note for note in notes) == 3


def test_a_retrained_model_knows_records_of_which_a_look_alike_stays(digits: tuple[Records, Split]) -> None:
    records, split = digits
    known = {}
    for copies in (0, 4):
        planted = plant_look_alikes(records, split, count=60, copies=copies, distance=0.05)
        labels = planted.labels.copy()  # wrong labels, which a model can only know from the copies
        wrong = np.concatenate([planted.rows(planted.planted.forget), np.arange(len(records), len(planted))])
        labels[wrong] = (labels[wrong] + 1) % 10
        changed = dataclasses.replace(planted, labels=labels)
        after = expunge.make_split(records, seed=0)
        after = planted.planted.place(after)
        request = forget_planted(changed, after)
        rest = dataclasses.replace(request.apply(after), forget=np.asarray([], dtype=np.str_))
        retrained = train(changed, rest, epochs=25, width=128)
        found = score(dataclasses.replace(retrained, split=request.apply(after)), request, changed)
        known[copies] = 100 - found["UA"]
        assert ("Look-alikes known" in found) == (copies > 0)
    assert known[0] < 10
    assert known[4] > 80
