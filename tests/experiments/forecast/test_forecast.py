"""Forecasts of synthetic histories with known times, and of a recorded run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from expunge.experiments.forecast.features import Features, describe_cost, join_sections
from expunge.experiments.forecast.history import Estimate, History, Sample
from expunge.experiments.forecast.schedule import find_end, simulate, spread_of_total

TRAIN: dict[str, Any] = {
    "data": {"source": "digits", "options": {}},
    "split": {"seed": 0, "validation": 0.1, "non_members": 0.1, "test": 0.2, "limit": 1000},
    "model": {"name": "mlp", "options": {}},
    "training": {"recipe": "one-cycle", "epochs": 10},
    "seed": 0,
    "files": {"file": "0123"},
}


def train(**changes: Any) -> Features:
    return describe_cost("train", {**TRAIN, **changes})


def learned(*samples: Sample, machine: str = "") -> History:
    history = History(machine)
    for sample in samples:
        history.add(sample)
    return history


def test_seeds_and_files_do_not_count_and_all_else_does() -> None:
    split = {**TRAIN["split"], "seed": 5}
    assert train(seed=3, split=split, files={"file": "4567"}).alike == train().alike
    for change in ({"training": {"recipe": "one-cycle", "epochs": 11}}, {"split": {**split, "limit": 900}},
                   {"model": {"name": "mlp", "options": {"widths": [3]}}}):  # fmt: skip
        assert train(**change).alike != train().alike


def test_a_stage_goes_on_with_the_configuration_of_the_model_it_starts_from() -> None:
    forget = join_sections(
        {"method": {"name": "FT"}, "seed": 1}, {"data": {"records": 500, "seed": 9}, "trained": TRAIN}
    )
    assert forget == {**TRAIN, "records": 500, "method": {"name": "FT"}, "seed": 1}
    score = join_sections({"evaluation": {}}, {"outcome": forget, "reference": {"method": {"name": "Retrain"}}})
    assert score["method"] == {"name": "FT"}  # not that of the reference
    assert "of FT with mlp on digits" in describe_cost("forget", forget).what


def test_stages_alike_have_the_mean_of_those_that_finished() -> None:
    seconds = [9.0, 10.0, 11.0]
    found = learned(*(Sample(train(seed=i), s, 100 + i) for i, s in enumerate(seconds))).estimate(train(seed=7))
    assert found.seconds == pytest.approx(10.0)
    assert found.basis == "from 3 finished stages like it"
    assert found.memory == 102
    assert found.spread == pytest.approx(math.sqrt((0.25**2 + 0.02) / 3))
    assert found.range is not None
    assert found.range[0] < 9.0
    assert 11.0 < found.range[1] < 16.0


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"training": {"recipe": "one-cycle", "epochs": 25}}, 2.5),
        ({"split": {**TRAIN["split"], "limit": 500}}, 0.5),
        ({"split": {**TRAIN["split"], "validation": 0.4}}, 0.5),
    ],
)
def test_similar_stages_are_scaled_by_records_times_epochs(change: dict[str, Any], factor: float) -> None:
    found = learned(Sample(train(), 8.0), Sample(train(), 12.0)).estimate(train(**change))
    assert found.seconds == pytest.approx(10.0 * factor)
    assert found.basis == "scaled from 2 finished stages: train of mlp on digits"
    assert found.error > 0.3


def test_epochs_of_a_method_scale_it_and_unknown_defaults_do_not() -> None:
    def forget(name: str, **options: Any) -> Features:
        return describe_cost("forget", {**TRAIN, "method": {"name": name, "options": options}})

    history = learned(Sample(forget("FT", epochs=2), 4.0))
    assert history.estimate(forget("FT", epochs=5)).seconds == pytest.approx(10.0)
    assert history.estimate(forget("FT")).basis.startswith("a guess")  # its epochs are a default that is not known here
    assert history.estimate(forget("GA", epochs=2)).basis.startswith("a guess")
    retrained = describe_cost(
        "forget", {**TRAIN, "training": {"recipe": "one-cycle", "epochs": 20}, "method": {"name": "Retrain"}}
    )
    history.add(Sample(describe_cost("forget", {**TRAIN, "method": {"name": "Retrain"}}), 30.0))
    assert history.estimate(retrained).seconds == pytest.approx(60.0)


def test_the_order_of_what_an_estimate_rests_on() -> None:
    other = describe_cost("train", {**TRAIN, "model": {"name": "resnet20"}})
    history = History(probes={train().alike: Estimate(5.0, basis="from a probe of 2 s")})
    assert History().estimate(train()) == Estimate(None)
    assert History().estimate(train()).range is None
    assert history.estimate(train()).basis == "from a probe of 2 s"
    history.add(Sample(other, 50.0))
    assert history.estimate(train()).basis == "from a probe of 2 s"
    assert history.estimate(train(seed=1, model={"name": "lenet5"})).basis == (
        "a guess, from 1 finished stage of other kinds: train"
    )
    history.add(Sample(train(training={"recipe": "one-cycle", "epochs": 5}), 3.0))
    assert history.estimate(train()).seconds == pytest.approx(6.0)


def test_stages_of_this_machine_come_first() -> None:
    slow, fast = (Sample(train(), seconds, machine=name) for seconds, name in ((30.0, "slow"), (3.0, "fast")))
    assert learned(slow, fast, machine="fast").estimate(train()).seconds == 3.0
    elsewhere = learned(slow, machine="fast").estimate(train())
    assert elsewhere.seconds == 30.0
    assert "on another machine" in elsewhere.basis
    assert elsewhere.error > learned(slow, machine="slow").estimate(train()).error
    history = History("fast", threads=1)
    for seconds, threads in ((4.0, 1), (2.0, 2)):
        history.add(Sample(train(), seconds, machine="fast", threads=threads))
    assert history.estimate(train()).seconds == 4.0


def test_the_first_of_a_process_counts_only_where_no_other_has_finished() -> None:
    history = learned(Sample(train(), 30.0, first=True))
    assert history.estimate(train(seed=1)).seconds == 30.0
    assert history.estimate(train()).basis.endswith("with what its process loaded")
    assert history.estimate(train()).error > 1.0
    assert not history.knows(train())
    history.add(Sample(train(seed=2), 1.0))
    assert history.estimate(train(seed=1)).seconds == 1.0
    longer = train(training={"recipe": "one-cycle", "epochs": 20})
    history.add(Sample(longer, 40.0, first=True))
    assert history.estimate(longer).seconds == 2.0  # scaled from the other, not its own start


def test_workers_share_what_is_ready() -> None:
    seconds = {"data": 1.0, **{f"train{i}": 10.0 for i in range(4)}, "score": 5.0}
    inputs = {**{f"train{i}": ["data"] for i in range(4)}, "score": ["train0", "gone"]}
    assert simulate(seconds, inputs, 1) == 46.0
    assert simulate(seconds, inputs, 2) == 26.0  # the score follows after two pairs, in the order of the plan
    assert simulate(seconds, inputs, 100) == 16.0  # the longest chain
    assert simulate({}, {}, 3) == 0.0


def test_the_range_of_a_sum_holds_about_95_percent() -> None:
    """Durations are drawn as assumed: log-normal, with a mean that is known from a few of them only."""
    draw, inside, runs = random.Random(0), 0, 400
    for _ in range(runs):
        history, true = History(), 0.0
        for group in range(3):
            scale = draw.lognormvariate(0, 1)
            features = train(model={"name": f"m{group}"})
            for _ in range(4):
                history.add(Sample(features, scale * draw.lognormvariate(0, 0.25)))
            true += sum(scale * draw.lognormvariate(0, 0.25) for _ in range(8))
        names = {f"{g}-{i}": train(model={"name": f"m{g}"}) for g in range(3) for i in range(8)}
        _, low, high = find_end({name: history.estimate(found) for name, found in names.items()}, {}, 1)
        inside += low <= true <= high
    assert 0.9 < inside / runs <= 1.0


def test_errors_of_one_basis_add_up_and_those_of_several_do_not() -> None:
    same = [Estimate(1.0, error=0.2, group="a")] * 16
    several = [Estimate(1.0, error=0.2, group=str(i)) for i in range(16)]
    assert spread_of_total(same) == pytest.approx(0.2)
    assert spread_of_total(several) == pytest.approx(0.05)


def _recorded() -> list[dict[str, Any]]:
    body = json.loads((Path(__file__).parent / "recorded.json").read_text())
    return [{**stage, "sections": body["sections"][stage["sections"]]} for stage in body["stages"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recorded_run_at_30_percent(workers: int) -> None:
    """A real run of a small plan on a busy machine: when 30 % of its stages have finished, the time of the others is
    forecast to within a factor of 1.5, and the range holds it. Nothing of their sparse models had run then."""
    stages = _recorded()
    features = {s["id"]: describe_cost(s["stage"], s["sections"], tuple(s["inputs"])) for s in stages}
    seconds = {s["id"]: s["seconds"] for s in stages}
    inputs = {s["id"]: list(s["inputs"].values()) for s in stages}
    history, left, names = History(), dict(seconds), set()
    for stage in sorted(stages, key=lambda s: s["finished"])[: round(0.3 * len(stages))]:
        history.add(Sample(features[stage["id"]], stage["seconds"], first=stage["stage"] not in names))
        names.add(stage["stage"])
        del left[stage["id"]]
    true = simulate(left, inputs, workers)
    forecast, low, high = find_end({name: history.estimate(features[name]) for name in left}, inputs, workers)
    assert 1 / 1.5 < forecast / true < 1.5
    assert low < true < high
