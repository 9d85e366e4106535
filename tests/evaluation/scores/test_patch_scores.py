"""Scores of a patched model, by hand: one hidden layer, so patterns, faces and predictions are a few lines of numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from measured import measure, names_with
from sparse_toys import CPU, toy_trained

from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.evaluation import Score
from expunge.methods import Context, get_method
from expunge.patches.network.regions import Box, measure_regions
from expunge.patches.network.trace import trace

REQUEST = np.arange(20, 40)


@pytest.fixture(scope="module")
def world() -> tuple[Trained, Records, ForgetRequest, Outcome]:
    trained, records = toy_trained("mlp", (6,), widths=(8,))
    request = ForgetRequest(records.record_ids[REQUEST])
    return trained, records, request, get_method("patch").forget(trained, request, Context(records, CPU))


def scores(world: tuple[Trained, Records, ForgetRequest, Outcome], **changes: Any) -> dict[str, Score]:
    trained, records, request, outcome = world
    given = {
        "trained": outcome.trained, "original": trained, "request": request, "records": records,
        "outcome": outcome.to_json(), "cost": outcome.cost,
    }  # fmt: skip
    return measure(names_with("patches"), **{**given, **changes})


class ByHand:
    """The perceptron: hidden activations, patterns and classes of any inputs."""

    def __init__(self, trained: Trained, records: Records) -> None:
        first, last = (m for m in trained.model.modules() if isinstance(m, torch.nn.Linear))
        self.w, self.b = first.weight.detach().double().numpy(), first.bias.detach().double().numpy()
        self.last = last
        self.x = np.asarray(records.features, dtype=np.float64)
        self.y = np.asarray(records.labels)

    def bits(self, x: np.ndarray) -> list[bytes]:
        return [row.tobytes() for row in x @ self.w.T + self.b > 0]

    def classes(self, x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(x @ self.w.T + self.b, 0)
        logits = hidden @ self.last.weight.detach().double().numpy().T + self.last.bias.detach().double().numpy()
        return logits.argmax(1)


def test_scores_of_patches_by_hand(world: tuple[Trained, Records, ForgetRequest, Outcome]) -> None:
    trained, records, _, outcome = world
    found, hand, state = scores(world), ByHand(trained, records), outcome.trained.state["patches"]
    value = {name: score.value for name, score in found.items()}
    assert set(value) == set(names_with("patches"))
    with torch.no_grad():
        patched = outcome.trained.model(torch.from_numpy(records.features)).argmax(1).numpy()
    base = hand.classes(hand.x)
    known = [row for row in REQUEST if base[row] == hand.y[row]]
    assert 3 < len(known) < len(REQUEST), "the base misses some"
    flipped = [row for row in known if patched[row] != hand.y[row]]
    assert value["Forgotten"] == pytest.approx(100 * len(flipped) / len(known))
    patterns = {
        row[:8].astype(bool).tobytes() for row in np.unpackbits(state["pattern"].numpy(), axis=1, bitorder="little")
    }
    assert value["Patches"] == len(patterns) == len(state["pattern"])

    rows = {part: records.rows(getattr(outcome.trained.split, part)) for part in ("retain", "test")}
    assert not set(rows["retain"]) & set(REQUEST)
    for part, own in rows.items():
        opened = [bits in patterns for bits in hand.bits(hand.x[own])]
        assert value[f"Gates {part}"] == pytest.approx(100 * np.mean(opened))
    assert 0 < value["Gates retain"] < 100
    low, high = (state[f"box.{end}"].numpy().reshape(-1) for end in ("low", "high"))
    draws = np.random.default_rng(0).uniform(low, high, (20_000, 6))
    expected = 100 * np.mean([bits in patterns for bits in hand.bits(draws)])
    assert value["Gates random"] == pytest.approx(expected, abs=4 * 100 * np.sqrt(0.25 / 2000))
    assert abs(expected - value["Gates retain"]) > 1

    for name, part in (("RA before", "retain"), ("TA before", "test")):
        assert value[name] == pytest.approx(100 * np.mean(base[rows[part]] == hand.y[rows[part]]))
        assert isinstance(value[name], float)
    margins = np.abs(hand.x[flipped] @ hand.w.T + hand.b) / np.linalg.norm(hand.w, axis=1)
    assert value["Region radius"] == pytest.approx(np.median(margins.min(1)), rel=1e-5)
    box = Box(state["box.low"], state["box.high"])
    sizes = measure_regions(trace(trained.model, (6,)), torch.from_numpy(records.features)[flipped], box)
    assert value["Region nearby"] == pytest.approx(100 * np.mean([size.nearby for size in sizes]))
    assert value["Region flips"] == pytest.approx(100 * np.mean([size.flips for size in sizes]))
    assert value["Point only"] == pytest.approx(100 * np.mean([size.point_only for size in sizes]))
    assert value["Seconds per point"] == pytest.approx(outcome.cost.seconds / len(REQUEST))
    assert value["Patch bytes"] * len(known) >= state["pattern"].numel() + state["shift"].numel() * 4
    assert value["Proof bytes"] > 0
    assert value["Latency factor"] > 0.2


def test_no_record_is_certified_with_a_margin_that_the_proofs_do_not_reach(
    world: tuple[Trained, Records, ForgetRequest, Outcome],
) -> None:
    """All are misclassified all the same."""
    _, _, _, outcome = world
    state = outcome.trained.state["patches"]
    strict = dataclasses.replace(outcome.trained, state={"patches": {**state, "epsilon": torch.tensor(1e6).double()}})
    for trained, certified in ((outcome.trained, 100), (strict, 0)):
        found = scores(world, trained=trained)
        assert (found["Certified"].value, found["Forgotten"].value) == (certified, 100)


def test_a_model_without_patches_has_none_of_these_scores(
    world: tuple[Trained, Records, ForgetRequest, Outcome],
) -> None:
    trained, *_ = world
    assert scores(world, trained=trained) == {}


def test_without_test_records_there_is_no_accuracy_of_them(
    world: tuple[Trained, Records, ForgetRequest, Outcome],
) -> None:
    """Nor a fraction of open gates. The test records of a forgotten class do not count in TA."""
    trained, records, request, outcome = world
    split = outcome.trained.split
    empty = dataclasses.replace(outcome.trained, split=dataclasses.replace(split, test=split.test[:0]))
    found = scores(world, trained=empty)
    assert {"Gates retain", "RA before"} <= set(found)
    assert not {"Gates test", "TA before"} & set(found)
    hand = ByHand(trained, records)
    rows = records.rows(split.test)
    rows = rows[hand.y[rows] != 2]
    of_class = ForgetRequest(request.record_ids, forgotten_class=2)
    expected = 100 * np.mean(hand.classes(hand.x[rows]) == hand.y[rows])
    assert scores(world, request=of_class)["TA before"].value == pytest.approx(expected)
