"""Small edits of every JSON file of a model directory: an error that names the file, or a file that is read."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from json_edits import edit

from expunge.core.errors import ExpungeError, FileError
from expunge.core.files import read_run_file, read_tensors, write_json, write_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data.records import Normalisation
from expunge.evaluation.score import Interval, Score, Scores, ScoreWarning
from expunge.models import Architecture, load_trained, save_trained
from expunge.report.read import read_class_accuracy, read_histograms, read_scores
from expunge.workflow.evaluate import read_outcome

#: Edits of each file: EXPUNGE_JSON_EDITS=2000 runs the count that SECURITY.md names.
COUNT = int(os.environ.get("EXPUNGE_JSON_EDITS", "200"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a mask, a state, an outcome, scores and details."""
    at = tmp_path_factory.mktemp("run") / "run"
    network = Architecture("mlp", {"widths": [6]}, (4,), 3, Normalisation((0.5,) * 4, (1.0,) * 4, "training records"))
    model = network.build(0).eval()
    kept = {"hidden.0.weight": torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.5}
    mask = Mask(kept, MaskProvenance("magnitude", layers=("linear",), details={"left_out": []}))
    mask.apply_(model)
    split = Split(*(np.asarray([f"{part}{i}" for i in range(2)]) for part in "rfvtu"), origin={"seed": 0})
    provenance = Provenance(
        network.to_json(), {"name": "digits", "hash": "0"}, {"epochs": 1}, {"initial": 0}, history=("a",)
    )
    trained = Trained(model, mask, split, provenance, {"momentum": {"a": torch.zeros(2)}})
    save_trained(trained, at)
    request = ForgetRequest(np.asarray(["f0", "f1"]), selection={"by": "random"})
    outcome = Outcome(trained, request, "ft", {"epochs": 1}, "empirical", Cost(1, 2, 3, 4.0), ("weights",))
    write_json(at / "outcome.json", "expunge.outcome", 2, outcome.to_json())
    score = Score("UA", 1.0, "%", "reference", "d", "c", 2.0, Interval(0.0, 2.0))
    warning = ScoreWarning("near-chance", "m", {"accuracy": 1.0})
    scores = Scores((score, Score("RA", 3.0, "%", "higher", "d")), {"seed": 0}, ("note",), (warning,))
    scores.save(at / "scores.json")
    parts = {"forget": {"counts": [1, 3]}}
    classes = [
        {"class": "a", "test": {"records": 3, "accuracy": 75.0}},
        {"class": "b", "test": {"records": 0, "accuracy": None}},
    ]
    details = {"confidence": {"edges": [0.0, 0.5, 1.0], "parts": parts}, "classes": classes, "density": {"a": 0.5}}
    write_json(at / "details.json", "expunge.details", 2, details)
    return at


def read_details(at: Path) -> object:
    body = read_run_file(at / "details.json", "expunge.details", 2)
    if body.get("confidence") is not None:
        read_histograms(body["confidence"])
    return read_class_accuracy(body.get("classes") or ())


def report_scores(at: Path) -> object:
    found = Scores.load(at / "scores.json")
    return found.text(), read_scores(read_run_file(at / "scores.json", "expunge.scores", 2))


READERS: dict[str, Callable[[Path], object]] = {
    "trained.json": load_trained,
    "outcome.json": lambda at: read_outcome(at / "outcome.json"),
    "scores.json": report_scores,
    "details.json": read_details,
    "split.json": lambda at: Split.load(at / "split.json"),
}


@pytest.mark.parametrize("name", READERS)
def test_an_edited_file(run: Path, tmp_path: Path, name: str) -> None:
    at = tmp_path / "run"
    shutil.copytree(run, at)
    READERS[name](at)
    document = json.loads((at / name).read_text())
    broken = []
    for number in range(COUNT):
        what, changed = edit(document, random.Random(f"{name}/{number}"))
        (at / name).write_text(json.dumps(changed))
        try:
            READERS[name](at)
        except ExpungeError:
            pass
        except Exception as error:
            broken.append(f"{number}: {what}: {error!r}"[:300])
    assert broken == []


def test_edited_metadata_of_a_mask(run: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(run / "mask.safetensors")
    path = tmp_path / "mask.safetensors"
    broken = []
    for number in range(COUNT):
        what, changed = edit(metadata, random.Random(f"mask/{number}"))
        write_tensors(path, tensors, changed)
        try:
            Mask.load(path)
        except ExpungeError:
            pass
        except Exception as error:
            broken.append(f"{number}: {what}: {error!r}"[:300])
    assert broken == []


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        at: Any = body
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("trained.json", put("provenance", value=None), "provenance"),
        ("trained.json", put("provenance", "architecture", value=[]), "provenance.architecture"),
        ("trained.json", put("provenance", "architecture", "classes", value="3"), "provenance.architecture.classes"),
        ("trained.json", put("provenance", "seeds", "initial", value="0"), "provenance.seeds.initial"),
        ("trained.json", put("hashes", "state", value=[]), "hashes.state"),
        ("outcome.json", put("cost", "seconds", value=None), "cost.seconds"),
        ("outcome.json", put("request", "record_ids", value=[1]), "request.record_ids.0"),
        ("scores.json", put("scores", 0, "name", value=5), "scores.0.name"),
        ("scores.json", put("scores", 0, "reference", value="2"), "scores.0.reference"),
        ("scores.json", put("scores", 0, "interval", value={"low": "0", "high": 1}), "scores.0.interval.low"),
        ("scores.json", put("scores", 0, "value", value=True), "scores.0.value"),
        ("scores.json", put("notes", value="note"), "notes"),
        ("details.json", put("confidence", "parts", "forget", value=[]), "confidence.parts.forget"),
    ],
)
def test_the_error_names_file_and_key(
    run: Path, tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None], key: str
) -> None:
    at = tmp_path / "run"
    shutil.copytree(run, at)
    body = json.loads((at / name).read_text())
    change(body)
    (at / name).write_text(json.dumps(body))
    with pytest.raises(FileError) as caught:
        READERS[name](at)
    assert str(caught.value).startswith(f"{at / name}: {key}: is ")
