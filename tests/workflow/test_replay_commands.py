"""Replay, Rewind and MSA from configurations: what is checked before training, and what the report names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Line

from expunge.models import load_trained

CONFIG = """\
data: {{source: digits}}
split: {{limit: 300}}
model: {{name: mlp, options: {{widths: [8]}}}}
training:
  recipe: one-cycle
  epochs: 4
  batch_size: 64
{training}
forget: {{by: random, count: 10}}
method:
  name: {method}
  options: {options}
runtime: {{device: cpu}}
{more}"""


@pytest.fixture
def line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(workplace, capsys)


def write(
    line: Line, *, training: str = "", method: str = "Replay", options: str = "{epochs: 1}", more: str = ""
) -> str:
    if training:
        training = f"  {training}"
    text = CONFIG.format(training=training, method=method, options=options, more=more)
    (line.directory / "run.yaml").write_text(text)
    return "run.yaml"


@pytest.mark.parametrize(
    ("value", "epochs"), [("[1, 3]", ["1", "3"]), ("2", ["2"]), ("0.5", ["2"]), ("[0.25, 0.5, 2]", ["1", "2"])]
)
def test_kept_epochs_of_a_configuration(line: Line, value: str, epochs: list[str]) -> None:
    assert line("train", write(line, training=f"keep_epochs: {value}"), "--output", "model").code == 0
    trained = load_trained("model")
    assert sorted(trained.provenance.checkpoints) == epochs
    assert {name.partition("/")[0] for name in trained.state["early_checkpoints"]} == set(epochs)


@pytest.mark.parametrize(
    "value", ["5", "0", "-1", "[1, 1.5]", "two", "true", "[[1]]", ".nan", ".inf", "{a: 1}", "null"]
)
def test_wrong_kept_epochs_are_refused_with_their_line(line: Line, value: str) -> None:
    for command in ("check", "train"):
        arguments = ["--output", "model"] if command == "train" else []
        result = line(command, write(line, training=f"keep_epochs: {value}"), *arguments)
        assert result.code == 1 or result.code == 2, value
        assert "Traceback" not in result.err + result.out
        assert "keep_epochs" in result.err + result.out, value
        assert not Path("model").exists()


@pytest.mark.parametrize("method", ["Replay", "Rewind", "MSA"])
def test_more_epochs_than_the_recipe_are_refused_before_training(line: Line, method: str) -> None:
    path = write(line, method=method, options="{prefix_epochs: 9}")
    result = line("check", path)
    assert result.code == 1
    assert "9.0 is not a number of epochs of a recipe of 4" in result.out + result.err
    assert "prefix_epochs" in result.out + result.err
    forgotten = line("forget", path, "--output", "out")
    assert forgotten.code != 0
    assert "is not a number of epochs" in forgotten.err
    assert not list(Path().rglob("entries/train"))


def test_a_bound_is_refused_before_training(line: Line) -> None:
    options = "{prefix_epochs: 1, noise: 0.1, smoothness: 10, gradient_bound: 6}"
    result = line("check", write(line, method="Rewind", options=options))
    assert result.code == 1
    assert "the bound does not cover this model: the recipe has momentum" in result.out + result.err
    result = line("check", write(line, method="Rewind", options=options, training="momentum: 0.0"))
    assert "momentum" not in result.out
    batch_norm = write(line, method="Rewind", options=options, training="momentum: 0.0")
    text = Path(batch_norm).read_text().replace("mlp, options: {widths: [8]}", "small-cnn, normalise: none")
    Path(batch_norm).write_text(text)
    result = line("check", batch_norm)
    assert result.code == 1
    assert "forward passes change tensors of the network" in result.out + result.err
    nothing_left = line("check", write(line, method="Rewind", options="{prefix_epochs: 4}"))
    assert "no epoch of the recipe remains" in nothing_left.out + nothing_left.err


@pytest.mark.parametrize("method", ["Replay", "Rewind", "MSA"])
def test_imported_weights_without_seeds_are_refused_by_check(line: Line, method: str) -> None:
    assert line("train", write(line), "--output", "model").code == 0
    path = write(line, method=method, options="{prefix_epochs: 1}")
    text = Path(path).read_text().replace("name: mlp,", "name: mlp, weights: model/model.safetensors,")
    Path(path).write_text(text.replace("split: {limit: 300}", "split: {file: model/split.json}"))
    result = line("check", path)
    assert result.code == 1, result.out
    assert "cannot be replayed" in result.out or "cannot be repeated" in result.out
    forgotten = line("forget", path, "--output", "out")
    assert forgotten.code != 0
    assert "Traceback" not in forgotten.err
    assert not Path("out").exists()


@pytest.mark.parametrize("method", ["Replay", "FT"])
def test_the_report_names_the_entries_that_hold_the_checkpoints(line: Line, method: str) -> None:
    more = "sparsity: {sparsity: 0.5, layers: [linear], keep_weights: true}\n"
    path = write(line, method=method, training="keep_epochs: 2", more=more)
    result = line("forget", path, "--output", "out", "--store", "store")
    assert result.code == 0, result.err
    page = Path("out/report.html").read_text()
    assert "What the methods dropped is still stored with the originals." in page
    train, prune = (next(Path("store/entries").glob(f"{stage}/*")) for stage in ("train", "prune"))
    for entry, names in ((train, "rewind checkpoint"), (prune, "pruning weights")):
        place = f"entries/{entry.parent.name}/{entry.name}"
        assert f"{place} (" in page
        listed = page.split(f"{place} (")[1].split(")")[0]
        assert "early checkpoints" in listed
        assert names in listed
    outcome = json.loads(Path("out/outcome.json").read_text())
    is_kept = method == "Replay"
    assert ("early_checkpoints" in outcome["state"]["rewrote"]) == is_kept
    assert ("early_checkpoints" in outcome["state"]["dropped"]) == (not is_kept)
    saved = load_trained("out")
    assert ("early_checkpoints" in saved.state) == is_kept
    assert "pruning_weights" not in saved.state


def test_the_report_of_retraining_names_them_too(line: Line) -> None:
    """Nothing is dropped without state: then the report does not speak of it."""
    assert line("forget", write(line, method="Retrain", options="{}"), "--output", "out", "--store", "store").code == 0
    page = Path("out/report.html").read_text()
    train = next(Path("store/entries").glob("train/*"))
    assert f"entries/train/{train.name} (rewind checkpoint)" in page


def test_a_bound_is_printed_and_shown(line: Line) -> None:
    options = "{prefix_epochs: 2, noise: 5.0, smoothness: 10.2, gradient_bound: 6.4, delta: 0.001}"
    path = write(line, method="Rewind", options=options, training="momentum: 0.0")
    text = Path(path).read_text().replace("options: {widths: [8]}", "options: {widths: []}, normalise: none")
    Path(path).write_text(text)
    result = line("forget", path, "--output", "out")
    assert result.code == 0, result.err
    assert "guarantee: conditional (certified under stated assumptions that are not checked): epsilon = " in result.out
    assert "at delta = 0.001, with noise = 5, if smoothness = 10.2, gradient_bound = 6.4" in result.out
    page = Path("out/report.html").read_text()
    assert "at delta = 0.001, with noise = 5, if smoothness = 10.2, gradient_bound = 6.4" in page
    assert "whoever knows the seed of the method can subtract it" in page
