"""`train`: provenance, seeds, records that are used, edge cases."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import pytest
import torch

from expunge.core.errors import DataError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import epoch_order, record_keys
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.models import Architecture
from expunge.training import Context, Progress, ProgressBar, Recipe, Runtime, accuracy, fit, train
from expunge.training.loop import order_seed


def test_training_reaches_a_high_accuracy(dense: Trained, digits: Records, cpu: Runtime) -> None:
    assert accuracy(dense.model, digits, digits.rows(dense.split.train), runtime=cpu) > 80
    assert accuracy(dense.model, digits, digits.rows(dense.split.test), runtime=cpu) > 60


def test_provenance_is_complete(dense: Trained, digits: Records, digits_split: Split) -> None:
    p = dense.provenance
    assert p.data == {"name": digits.name, "hash": digits.hash}
    assert p.seeds == {"initial": 3, "order": order_seed(3), "training": 3}
    assert Recipe(**p.recipe).epochs == 12
    assert Architecture.from_json(p.architecture).input_shape == (1, 8, 8)
    assert "290 records for 12 epochs" in p.history[0]
    json.dumps(p.to_json())
    assert dense.split.hash == digits_split.hash
    assert (dense.mask, set(dense.state)) == (None, {"rewind_checkpoint"})


def test_provenance_is_enough_to_train_again(dense: Trained, digits: Records, cpu: Runtime) -> None:
    """`fit` with the recorded recipe and seeds gives the same bits, and the same rewind checkpoint."""
    p = dense.provenance
    model = Architecture.from_json(p.architecture).build(p.seeds["initial"])
    rows = digits.rows(dense.split.train)
    plan = Recipe(**p.recipe)
    result = fit(model, rows, plan, Context(digits, cpu, p.seeds["order"]), snapshots={2})
    assert hash_tensors(model.state_dict()) == dense.hash
    assert hash_tensors(result.snapshots[2]) == hash_tensors(dense.state["rewind_checkpoint"])


@pytest.mark.parametrize(
    ("changes", "same"),
    [({}, True), ({"seed": 9}, False), ({"initial_seed": 9}, False), ({"seed": 9, "initial_seed": 3}, False)],
)
def test_seeds(
    digits: Records, digits_split: Split, cpu: Runtime, dense: Trained, changes: dict[str, Any], same: bool
) -> None:
    network = Architecture.from_json(dense.provenance.architecture)
    plan = Recipe(**dense.provenance.recipe)
    other = train(digits, digits_split, network, recipe=plan, runtime=cpu, **{"seed": 3, **changes})
    assert (other.hash == dense.hash) == same


def test_all_training_records_are_trained_on_and_no_others(
    digits: Records, digits_split: Split, cpu: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation, test and non-member records do not enter the loss; forgotten ones are refused."""
    seen: list[int] = []
    real = Batches.epoch

    def spy(self: Batches, seed: int, epoch: int) -> Any:
        seen.extend(self.rows[epoch_order(record_keys(self.records.record_ids[self.rows]), seed, epoch)].tolist())
        return real(self, seed, epoch)

    monkeypatch.setattr(Batches, "epoch", spy)
    network = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    train(digits, digits_split, network, recipe=Recipe(epochs=1, select="best"), runtime=cpu)
    assert sorted(seen) == sorted(digits.rows(digits_split.retain).tolist())
    with pytest.raises(DataError, match="5 records as forgotten"):
        train(digits, digits_split.move_to_forget(digits_split.retain[:5]), network, runtime=cpu)


def test_no_training_records(digits: Records, cpu: Runtime) -> None:
    split = Split(retain=[], forget=[], validation=digits.record_ids[:3], test=[], non_members=[])
    network = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    with pytest.raises(DataError, match="no training records"):
        train(digits, split, network, runtime=cpu)


def test_no_epochs(digits: Records, digits_split: Split, cpu: Runtime) -> None:
    network = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    found = train(digits, digits_split, network, recipe=Recipe(epochs=0), seed=2, runtime=cpu)
    assert found.hash == hash_tensors(network.build(2).state_dict())
    assert found.state == {}


def test_best_without_validation_selects_the_last(digits: Records, digits_split: Split, cpu: Runtime) -> None:
    split = dataclasses.replace(digits_split, validation=())
    network = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    plans = [Recipe(epochs=2, select=s) for s in ("best", "last")]
    a, b = (train(digits, split, network, recipe=p, runtime=cpu) for p in plans)
    assert a.hash == b.hash


def test_the_progress_bar_accepts_what_the_loop_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        report: Progress = bar
        report("train", 10, 100, {"epoch": 1, "loss": 0.5})
        report("train", 100, 100, {"epoch": 1, "loss": 0.25})
        report("other", 1, 2, {})
    out = capsys.readouterr()
    assert out.out == "", "progress was written to standard output"


def test_training_does_not_change_the_global_generator(digits: Records, digits_split: Split, cpu: Runtime) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    network = Architecture("mlp", {"widths": (4,)}, digits.input_shape, digits.classes)
    train(digits, digits_split, network, recipe=Recipe(epochs=1), runtime=cpu)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_counts_the_records_of_all_epochs(digits: Records, digits_split: Split, cpu: Runtime) -> None:
    reports: list[tuple[int, int]] = []
    network = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    train(
        digits, digits_split, network, recipe=Recipe(epochs=2), runtime=cpu,
        progress=lambda label, done, total, facts: reports.append((done, total)),
    )  # fmt: skip
    records = 2 * len(digits_split.train)
    assert reports[-1] == (records, records)


def test_the_seed_of_a_context_is_that_of_train_unless_it_is_given(digits: Records) -> None:
    assert Context(digits).seed == inspect.signature(train).parameters["seed"].default == 0
