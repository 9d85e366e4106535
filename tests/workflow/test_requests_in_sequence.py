"""Requests in sequence: weights with the split of another request are refused wherever a hash beside them shows it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.core.errors import DataError, ExpungeError, FileError, RequestError
from expunge.core.files import write_json
from expunge.experiments.config.run_config import check_config
from expunge.workflow import certify, check_inputs, check_run, forget, rescore

RUNTIME = expunge.Runtime("cpu")
SPLIT = {"limit": 200}


@dataclasses.dataclass
class Case:
    """An original model, the same after one request and after two, each saved in a directory."""

    folder: Path
    records: Any
    requests: tuple[Any, Any]

    def config(self, weights: str, split: str | None, **changes: Any) -> Any:
        values = {
            "data": {"source": "digits"},
            "split": SPLIT if split is None else {"file": str(self.folder / split / "split.json")},
            "model": {
                "name": "mlp", "options": {"widths": [6]},
                "weights": str(self.folder / weights) if weights else None,
            },
            "training": {"recipe": "one-cycle", "epochs": 1},
            "forget": {"by": "random", "count": 5},
            "method": {"name": "FT", "options": {"epochs": 1}},
            "runtime": {"device": "cpu"},
        }  # fmt: skip
        return check_config({**values, **changes})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("sequence")
    records = expunge.load_records("digits")
    split = expunge.make_split(records, **SPLIT)
    network = expunge.architecture("mlp", records, split, widths=(6,))
    recipe = expunge.get_recipe("one-cycle", epochs=1)
    trained = expunge.train(records, split, network, recipe=recipe, runtime=RUNTIME)
    expunge.save_trained(trained, folder / "original")
    requests = []
    for number in (1, 2):
        request = expunge.forget_random(records, trained.split, count=10, seed=number)
        outcome = expunge.get_method("FT", epochs=1).forget(trained, request, expunge.Context(records, RUNTIME))
        trained = outcome.trained
        expunge.save_trained(trained, folder / f"after{number}")
        write_json(folder / f"after{number}" / "outcome.json", "expunge.outcome", 2, outcome.to_json())
        requests.append(request)
    return Case(folder, records, (requests[0], requests[1]))


@pytest.mark.parametrize(
    ("weights", "split"),
    [
        ("after1/model.safetensors", "original"),  # would train on forgotten records again
        ("after1/model.safetensors", None),  # the configured split equals that of the original
        ("after2/model.safetensors", "after1"),
        ("original/model.safetensors", "after1"),  # would claim to have forgotten what it never forgot
        ("after1/model.safetensors", "after2"),
    ],
)
def test_weights_with_the_split_of_another_request_are_refused(case: Case, weights: str, split: str | None) -> None:
    config = case.config(weights, split)
    with pytest.raises(FileError, match="another split") as raised:
        check_inputs(config)
    assert "split.json" in (raised.value.hint or "")
    errors = [finding for finding in check_run(config).findings if finding.level == "error"]
    assert [(finding.subject, "another split" in finding.message) for finding in errors] == [("model", True)]


def test_a_run_stops_before_anything_is_computed(case: Case, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="another split"):
        forget(case.config("original/model.safetensors", "after1"), tmp_path / "out", store=tmp_path / "store")
    assert not (tmp_path / "out").exists()


def test_the_python_import_refuses_too(case: Case) -> None:
    split = expunge.Split.load(case.folder / "original" / "split.json")
    network = expunge.architecture("mlp", case.records, split, widths=(6,))
    weights = case.folder / "after1" / "model.safetensors"
    with pytest.raises(FileError, match="another split"):
        expunge.adopt_weights(network, weights, case.records, split)


@pytest.mark.parametrize("name", ["model.safetensors", "copy.safetensors"])
def test_copied_weights_are_compared_with_the_record_beside_the_split(case: Case, tmp_path: Path, name: str) -> None:
    shutil.copy(case.folder / "original" / "model.safetensors", tmp_path / name)
    with pytest.raises(FileError, match=r"records 10 records as forgotten by the model beside it"):
        check_inputs(case.config(str(tmp_path / name), "after1"))
    check_inputs(case.config(str(tmp_path / name), "original"))
    shutil.copy(case.folder / "after1" / "model.safetensors", tmp_path / name)
    check_inputs(case.config(str(tmp_path / name), "after1"))


def test_weights_that_replaced_the_recorded_ones_are_refused(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.folder / "original", tmp_path / "mixed")
    shutil.copy(case.folder / "after1" / "model.safetensors", tmp_path / "mixed")
    with pytest.raises(FileError, match="belongs to another model"):
        check_inputs(case.config(str(tmp_path / "mixed" / "model.safetensors"), None))
    (tmp_path / "mixed" / "trained.json").write_text("{")
    with pytest.raises(FileError, match=r"trained\.json"):
        check_inputs(case.config(str(tmp_path / "mixed" / "model.safetensors"), None))


@pytest.mark.parametrize("name", ["original", "after1", "after2"])
def test_weights_and_split_of_one_directory_are_accepted(case: Case, name: str) -> None:
    check_inputs(case.config(f"{name}/model.safetensors", name))


def test_a_swapped_split_or_model_is_not_loaded(case: Case, tmp_path: Path) -> None:
    for number, (file, of) in enumerate(
        [("split.json", "original"), ("split.json", "after2"), ("model.safetensors", "original")]
    ):
        mixed = tmp_path / str(number)
        shutil.copytree(case.folder / "after1", mixed)
        shutil.copy(case.folder / of / file, mixed / file)
        with pytest.raises(FileError, match=r"hash recorded in trained\.json"):
            expunge.load_trained(mixed)


def test_training_on_a_split_with_forgotten_records_is_refused(case: Case) -> None:
    config = case.config("", "after1")
    with pytest.raises(DataError, match="10 records as forgotten"):
        check_inputs(config)
    assert not check_run(config).usable
    check_inputs(case.config("", "original"))
    split = expunge.Split.load(case.folder / "after1" / "split.json")
    network = expunge.architecture("mlp", case.records, split, widths=(6,))
    with pytest.raises(DataError, match="train on them again"):
        expunge.train(case.records, split, network, recipe="one-cycle", runtime=RUNTIME)


@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_an_outcome_of_another_run_is_refused(case: Case, tmp_path: Path, command: str) -> None:
    mixed, config = tmp_path / "mixed", case.config("", None)
    shutil.copytree(case.folder / "after1", mixed)
    run = {
        "evaluate": lambda: rescore(mixed, config),
        "certify": lambda: certify(mixed, config, tmp_path / "certificate"),
    }[command]
    shutil.copy(case.folder / "after2" / "outcome.json", mixed)
    with pytest.raises(FileError, match="outcome of another model or request"):
        run()
    shutil.copy(case.folder / "after1" / "outcome.json", mixed)
    if command == "evaluate":
        assert len(run())
    else:
        with pytest.raises(ExpungeError, match="no patches"):
            run()


def test_a_reference_with_another_retain_set_is_refused(case: Case) -> None:
    """The model has forgotten the first request, the reference was retrained without the second only."""
    unlearned = expunge.load_trained(case.folder / "after2")
    second = case.requests[1]
    base = expunge.Split.load(case.folder / "original" / "split.json")
    reference = dataclasses.replace(unlearned, split=second.apply(base))
    with pytest.raises(RequestError, match="10 records are only in that of the reference"):
        expunge.evaluate(unlearned, second, case.records, reference=reference, runtime=RUNTIME)
    scores = expunge.evaluate(reference, second, case.records, runtime=RUNTIME)
    old = dataclasses.replace(scores, about={k: v for k, v in scores.about.items() if k != "retain"})
    for given in (scores, old):  # files of earlier versions have the count only
        with pytest.raises(RequestError, match="another retain set"):
            expunge.evaluate(unlearned, second, case.records, reference=given, runtime=RUNTIME)
    right = expunge.evaluate(unlearned, second, case.records, runtime=RUNTIME)
    assert expunge.evaluate(unlearned, second, case.records, reference=right, runtime=RUNTIME)["UA"].gap == 0.0


def test_equal_counts_of_other_records_are_refused(case: Case) -> None:
    unlearned = expunge.load_trained(case.folder / "after2")
    base = expunge.Split.load(case.folder / "original" / "split.json")
    second = case.requests[1]
    others = [i for i in base.retain.tolist() if i not in {*second.record_ids, *case.requests[0].record_ids}][:10]
    split = second.apply(base.move_to_forget(others))
    assert len(split.retain) == len(unlearned.split.retain)
    reference = dataclasses.replace(unlearned, split=split)
    with pytest.raises(RequestError, match="another retain set"):
        expunge.evaluate(unlearned, second, case.records, reference=reference, runtime=RUNTIME)
