"""The stopping rule stops where it says and never reads test records; a divergence keeps the last good state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plain_training as plain
import pytest
import torch

from expunge.core.errors import Interrupted, MethodError, ModelError, TrainingError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.composition.stopping import ForgetErrors
from expunge.methods.task import Task
from expunge.training import Runtime, loop
from expunge.training.epochs import epoch
from expunge.training.epochs.steps import EpochCheck
from expunge.training.predict import predict_logits


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def reference_of(model: Any, trained: Trained, digits: Records, ids: list[str]) -> float:
    """The error on validation records of the same classes, weighted as in the forget set, record by record."""
    labels = dict(zip(digits.record_ids.tolist(), digits.labels.tolist(), strict=True))
    by_class = {
        k: plain.error_of(model, digits, [i for i in trained.split.validation.tolist() if labels[i] == k])
        for k in {labels[i] for i in ids}
    }
    return sum(by_class[labels[i]] for i in ids) / len(ids)


ASCENDING: list[tuple[str, dict[str, Any]]] = [
    ("GA", {"learning_rate": 0.02}),
    ("NegGrad+", {"learning_rate": 0.005, "alpha": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), ASCENDING, ids=[n for n, _ in ASCENDING])
def test_it_stops_after_the_first_epoch_that_reaches_the_reference(
    name: str, options: dict[str, Any], dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    options = {"batch_size": 16, "batch_norm": "frozen", **options}
    ids = request_20.record_ids.tolist()
    expected = 0
    for epochs in range(1, 13):  # without the rule
        state = get_method(name, epochs=epochs, **options).forget(dense, request_20, context).trained.model
        if plain.error_of(state, digits, ids) >= reference_of(state, dense, digits, ids):
            expected = epochs
            break
    assert 1 < expected < 12, "the rule should neither hold at once nor never"
    outcome = get_method(name, epochs=12, stop="validation", **options).forget(dense, request_20, context)
    assert len(outcome.history) == expected
    plain.assert_same(outcome.trained.model, state, 0.0)
    assert f"in epoch {expected}" in outcome.trained.provenance.history[-1]
    assert "reached that of validation records" in outcome.trained.provenance.history[-1]
    last = outcome.history[-1]
    assert last["forget_error"] >= last["reference_error"]
    assert all(e["forget_error"] < e["reference_error"] for e in outcome.history[:-1])
    same = set(digits.labels[digits.rows(ids)].tolist())
    seen = sum(int(digits.labels[row]) in same for row in digits.rows(dense.split.validation))
    assert outcome.cost.forward_records == expected * (len(ids) + seen)


class Watched:
    """A stream that notes which records are read, and refuses some."""

    def __init__(self, records: Records, forbidden: list[str] = ()) -> None:  # type: ignore[assignment]
        self.records, self.seen, self.reads = records, set(), 0  # type: ignore[var-annotated]
        self.forbidden = set(forbidden)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record_id = str(self.records.record_ids[index])
        if record_id in self.forbidden:
            raise AssertionError(f"{record_id} was read")
        self.seen.add(record_id)
        self.reads += 1
        assert self.records.features is not None
        return np.array(self.records.features[index]), int(self.records.labels[index])


def test_no_test_record_is_read(dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    stream = Watched(digits, dense.split.test.tolist())
    records = dataclasses.replace(digits, features=None, stream=stream)
    context = Context(records, cpu, seed=1)
    for name in ("GA", "NegGrad+", "SCRUB"):
        get_method(name, epochs=2, batch_size=64, stop="validation").forget(dense, request_20, context)
    assert stream.seen & set(dense.split.validation.tolist())
    assert not stream.seen & set(dense.split.non_members.tolist())


def test_the_reference_is_weighted_as_the_forget_set(dense: Trained, digits: Records, cpu: Runtime) -> None:
    """Nine records of one class and one of another: the second counts a tenth."""
    labels = digits.labels[digits.rows(dense.split.retain)]
    ids = [*dense.split.retain[labels == 3][:9].tolist(), *dense.split.retain[labels == 8][:1].tolist()]
    task = Task(dense, ForgetRequest(ids), Context(digits, cpu), name="GA", options={}, guarantee="empirical")
    errors = ForgetErrors.make(task, "stop")
    network = plain.copy_of(dense)
    with torch.no_grad():
        network.classifier.bias[3] -= 100  # no record is predicted as a 3, so that the classes have different errors
    expected = reference_of(network, dense, digits, ids)
    assert 90 < expected < 95, "without weights, about 60"
    assert errors.measure_reference(network) == pytest.approx(expected)
    assert errors.measure_forget(network) == pytest.approx(plain.error_of(network, digits, ids))


def test_no_validation_records_of_a_class(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    present = digits.labels[digits.rows(dense.split.validation)]
    split = dataclasses.replace(dense.split, validation=dense.split.validation[present != 4])
    trained = dataclasses.replace(dense, split=split)
    ids = split.retain[digits.labels[digits.rows(split.retain)] == 4][:3]
    for name, options in (("GA", {"stop": "validation"}), ("SCRUB", {})):
        with pytest.raises(MethodError, match=r"no validation records of 1 class .*\(4\)"):
            get_method(name, epochs=2, **options).forget(trained, ForgetRequest(ids), context)
    get_method("SCRUB", epochs=2, rewind=False).forget(trained, ForgetRequest(ids), context)


# ---- divergence


def test_a_divergence_keeps_the_last_good_epoch(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """GA at a rate at which the loss becomes infinite after some epochs: the state is that of the epoch before."""
    options = {"learning_rate": 0.05, "batch_size": 8, "batch_norm": "frozen", "momentum": 0.0, "weight_decay": 0.0}
    outcome = get_method("GA", epochs=200, **options).forget(dense, request_20, context)
    line, finished = outcome.trained.provenance.history[-1], len(outcome.history)
    assert 0 < finished < 200
    assert "stopped: the loss of epoch" in line or "stopped: a weight" in line
    assert f"the state is that after epoch {finished}" in line
    assert "step" in line or "weight" in line
    assert all(torch.isfinite(tensor).all() for tensor in outcome.trained.model.state_dict().values())
    earlier = get_method("GA", epochs=finished, **options).forget(dense, request_20, context)
    assert earlier.trained.hash == outcome.trained.hash
    assert outcome.cost.trained_records == finished * 20


def test_a_divergence_in_the_first_epoch_is_an_error(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    for name in ("GA", "NegGrad+", "SCRUB"):
        with pytest.raises(TrainingError, match=r"(epoch|pass|weight)"):
            get_method(name, epochs=2, learning_rate=1e30, batch_size=8).forget(dense, request_20, context)
    with pytest.raises(TrainingError, match=r"the loss of epoch 1 is (nan|inf|-inf) \(from step \d+ of \d+ on\)"):
        get_method("FT", epochs=2, learning_rate=1e30, batch_size=8).forget(dense, request_20, context)


def test_outputs_that_are_not_finite_are_a_divergence(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """The weights are finite, but the rule finds that the outputs are not."""
    options = {"batch_size": 8, "batch_norm": "frozen", "momentum": 0.0, "weight_decay": 0.0}
    method = get_method("GA", epochs=60, learning_rate=0.01, **options)
    found = [0]

    def check(self: ForgetErrors, model: Any, epoch: int) -> EpochCheck:
        found[0] = epoch
        if epoch == 2:
            raise ModelError("the model returns NaN or infinite logits")
        return EpochCheck()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForgetErrors, "check", check)
        outcome = dataclasses.replace(method, stop="validation").forget(dense, request_20, context)
    assert found[0] == 2
    assert (
        "after epoch 3, the model returns NaN or infinite logits; the state is that after epoch 2"
        in (outcome.trained.provenance.history[-1])
    )
    earlier = dataclasses.replace(method, epochs=2).forget(dense, request_20, context)
    assert earlier.trained.hash == outcome.trained.hash


@pytest.mark.parametrize(("name", "rate"), [("GA", 1e12), ("JiT", 1e15), ("PBU", 1e10)])
def test_a_state_whose_outputs_are_not_finite_is_not_a_good_one(
    name: str, rate: float, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """The loss of a step is that before it, and weights of 1e12 are finite: only the outputs show it."""
    with pytest.raises(TrainingError, match="after epoch 1, the model returns NaN or infinite logits"):
        get_method(name, epochs=1, learning_rate=rate).forget(dense, request_20, context)


def test_the_state_before_the_outputs_were_infinite_is_kept(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    options = {"learning_rate": 1e6, "batch_norm": "frozen", "momentum": 0.0}
    outcome = get_method("GA", epochs=20, **options).forget(dense, request_20, context)
    assert (
        "the model returns NaN or infinite logits; the state is that after epoch"
        in (outcome.trained.provenance.history[-1])
    )
    rows = digits.rows(dense.split.retain)
    assert torch.isfinite(predict_logits(outcome.trained.model, digits, rows)).all()
    earlier = get_method("GA", epochs=len(outcome.history), **options).forget(dense, request_20, context)
    assert earlier.trained.hash == outcome.trained.hash


def test_the_records_of_the_check_are_read_once(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    stream = Watched(digits)
    records = dataclasses.replace(digits, features=None, stream=stream)
    counts = []
    assert records.input_shape == (1, 8, 8)  # reads a record
    for epochs in (1, 4):
        stream.reads = 0
        get_method("GA", epochs=epochs, batch_size=8).forget(dense, request_20, Context(records, cpu, seed=1))
        counts.append(stream.reads)
    assert counts[1] - counts[0] == 3 * 20, "three more epochs of 20 records, and nothing else"


def test_draws_during_the_check_of_outputs_are_undone(
    dense: Trained, request_20: ForgetRequest, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, drawn = get_method("GA", epochs=3, batch_size=8), []
    expected = method.forget(dense, request_20, context).trained.hash

    def draw(logits: torch.Tensor, classes: int) -> None:
        assert not logits.requires_grad
        drawn.append(float(torch.rand(1)))

    monkeypatch.setattr(epoch, "check_logits", draw)
    before = torch.get_rng_state()
    assert method.forget(dense, request_20, context).trained.hash == expected
    assert torch.equal(before, torch.get_rng_state())
    assert len(drawn) == 3


def test_finite_weights_whose_sum_is_not_finite() -> None:
    """The sum of the weights is only a short cut."""
    layer = torch.nn.BatchNorm1d(2)
    assert epoch._is_finite(layer)
    with torch.no_grad():
        layer.weight.fill_(3e38)
    assert epoch._is_finite(layer)
    for bad in (float("nan"), float("inf")):
        layer.running_var[1] = bad
        assert not epoch._is_finite(layer)
    layer.running_var[:] = torch.tensor([float("inf"), -float("inf")])
    assert not epoch._is_finite(layer)


# ---- interruption of runs with passes


class Stop:
    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, label: str, done: int, total: int, info: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Clock:
    """Advances by a second a call, so that progress is called and a checkpoint is written at each opportunity."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("at", [5, 25, 50])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SCRUB", {"epochs": 3, "forget_batch_size": 8}),
        ("SCRUB", {"epochs": 3, "forget_batch_size": 8, "optimiser": "adam", "learning_rate": 1e-3}),
        ("Fanchuan", {"epochs": 3}),
        ("NegGrad+", {"epochs": 4}),
        ("SalUn", {"epochs": 4, "saliency": 0.3}),
        ("MSG", {"epochs": 4}),
        ("Bad Teacher", {"epochs": 12}),
    ],
)
def test_resumed_equals_uninterrupted(
    name: str, options: dict[str, Any], at: int, sparse: Trained, request_20: ForgetRequest, context: Context,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each kind of momentum and of optimiser state comes back; partners and teachers are the same."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())
    method = get_method(name, batch_size=16, **options)
    expected = method.forget(sparse, request_20, context)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Interrupted):
        method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path, progress=Stop(at)))
    found = method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    assert found.trained.hash == expected.trained.hash
    assert found.history == expected.history
    assert found.trained.provenance.history[-1] == expected.trained.provenance.history[-1]
