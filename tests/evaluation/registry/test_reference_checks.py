"""Warnings about a whole comparison: a collapsed reference, declared training, classes in another order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge.core.trained import Provenance
from expunge.evaluation import Scores, evaluate
from expunge.evaluation.registry.reference_checks import check_training_accuracy, is_far_below
from expunge.experiments.config.run_config import check_config
from expunge.workflow import check_run, forget

ORIGINAL, RETRAINED, OTHER = 0.0, 1.0, 2.0


class Predictors:
    """Logits by model (its weight): the original and others are right on their records, Retrain on a fraction."""

    def __init__(self, world: Any, retain: float, test: float) -> None:
        self.world = world
        right = np.full(world.table.shape, -5.0, dtype=np.float32)
        right[np.arange(len(right)), world.records.labels] = 5.0
        rows = {name: world.records.rows(getattr(world.split, name)) for name in ("retain", "test")}
        self.tables = {weight: right.copy() for weight in (ORIGINAL, RETRAINED, OTHER)}
        for name, fraction in (("retain", retain), ("test", test)):
            wrong = rows[name][round(fraction * len(rows[name])) :]
            self.tables[RETRAINED][wrong] = np.roll(right[wrong], 1, axis=1)

    def __call__(self, model: Any, records: Any, rows: Any, *, runtime: Any = None) -> torch.Tensor:
        return torch.as_tensor(self.tables[round(next(model.parameters()).item(), 1)][rows])


def compare(world: Any, retain: float, test: float) -> Scores:
    """The scores of the original beside a reference of these accuracies."""
    predict = Predictors(world, retain, test)
    reference = evaluate(
        world.trained(world.request.apply(world.split), RETRAINED), world.request, world.records, predict=predict
    )
    return evaluate(world.trained(), world.request, world.records, reference=reference, predict=predict)


def codes(scores: Scores) -> list[tuple[str, str]]:
    return [(warning.code, warning.values.get("score", "")) for warning in scores.warnings]


def test_a_collapsed_reference_is_a_warning_with_its_numbers(make_world: Any) -> None:
    world = make_world(size=900, retain=400, test=300)
    assert codes(compare(world, 1.0, 0.97)) == []
    assert codes(compare(world, 1.0, 0.6)) == [("reference-collapsed", "TA")]
    scores = compare(world, 0.6, 0.7)
    assert codes(scores)[:2] == [("reference-collapsed", "RA"), ("reference-collapsed", "TA")]
    values = scores.warnings[1].values
    assert (values["original"], values["reference"]) == (scores["TA"].value, scores["TA"].reference)
    assert values["gap"] == pytest.approx(scores["TA"].reference - scores["TA"].value)
    assert "no gap to the reference" in scores.warnings[0].message
    assert scores.text().startswith("WARNING: the retrained reference has")


def test_far_is_ten_points_and_twice_the_noise_floor(make_world: Any) -> None:
    assert [is_far_below(100.0 - gap, 100.0) for gap in (2, 9.9, 10.1)] == [False, False, True]
    assert [is_far_below(80.0, 100.0, floor=floor) for floor in (9.9, 10.1)] == [True, False]
    # 12 points on 8 test records are one record, on 300 they are not a matter of chance
    assert codes(compare(make_world(test=8), 1.0, 0.875)) == []
    assert codes(compare(make_world(size=900, test=300), 1.0, 0.875)) == [("reference-collapsed", "TA")]


def test_warnings_are_saved_and_read(make_world: Any, tmp_path: Path) -> None:
    scores = compare(make_world(size=900, retain=400, test=300), 1.0, 0.6)
    scores.save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == scores
    body = {key: value for key, value in scores.to_json().items() if key != "warnings"}
    assert Scores.from_json(body).warnings == ()  # a file of an earlier version


def make_confusion(make_predictions: Any, accuracy: float, classes: int, order: Any = None) -> Any:
    labels = np.arange(1000) % classes
    answers = np.where(np.arange(1000) < accuracy * 1000, labels, (labels + 1 + np.arange(1000) // classes) % classes)
    if order is not None:
        answers = np.asarray(order)[answers]
    return make_predictions(np.eye(classes)[answers], labels)


@pytest.mark.parametrize(
    ("accuracy", "order", "code"),
    [
        (0.95, None, []),
        (0.5, None, []),
        (0.0, None, ["near-chance"]),
        (0.95, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0], ["classes-reordered"]),
        (0.95, [1, 0, 3, 2, 5, 4, 6, 7, 8, 9], ["classes-reordered"]),  # 6 of 10 classes, far above chance
    ],
)
def test_accuracy_on_the_own_training_records(
    make_predictions: Any, accuracy: float, order: Any, code: list[str]
) -> None:
    found = check_training_accuracy(make_confusion(make_predictions, accuracy, 10, order), "the model")
    assert [warning.code for warning in found] == code


def test_always_one_answer_is_chance_however_frequent(make_predictions: Any) -> None:
    labels = np.arange(1000) % 10 == 0
    logits = np.tile([1.0, 0.0], (1000, 1))
    (warning,) = check_training_accuracy(make_predictions(logits, labels.astype(int)), "the model")
    assert (warning.code, warning.values["accuracy"], warning.values["chance"]) == ("near-chance", 90.0, 90.0)
    assert check_training_accuracy(make_predictions(np.zeros((0, 2)), np.zeros(0, dtype=int)), "the model") == []


def test_imported_weights_are_a_fact_and_no_warning(make_world: Any) -> None:
    """The normal case of an adopted model is above no table; if the reference collapsed, it is a likely cause."""
    world = make_world(size=900, retain=400, test=300)
    provenance = Provenance({}, weights_from="a" * 64)
    imported = dataclasses.replace(world.trained(), provenance=provenance)
    after = world.trained(world.request.apply(world.split), RETRAINED)
    cause = "The weights were imported: compare the declared recipe and split"
    for test, collapsed in ((1.0, 0), (0.6, 1)):
        predict = Predictors(world, 1.0, test)
        reference = evaluate(after, world.request, world.records, predict=predict)
        scores = evaluate(imported, world.request, world.records, reference=reference, predict=predict)
        assert scores.about["imported"] == "a" * 64
        assert [code for code, _ in codes(scores)] == ["reference-collapsed"] * collapsed
        assert not any("imported" in note for note in scores.notes)
        assert scores.text().count(cause) == collapsed
        trained = evaluate(world.trained(), world.request, world.records, reference=reference, predict=predict)
        assert "imported" not in trained.about
        assert cause not in trained.text()


def test_the_warning_of_earlier_files_is_read_as_the_fact(make_world: Any) -> None:
    scores = compare(make_world(), 1.0, 1.0)
    warning = {"code": "declared-training", "message": "imported", "values": {"weights": "b" * 64}}
    found = Scores.from_json({**scores.to_json(), "warnings": [warning]})
    assert found.warnings == ()
    assert found.about == {**scores.about, "imported": "b" * 64}


# ---- a run: the scores of the unlearned model have the warning


def make_config(tmp_path: Path, training: dict[str, Any], weights: str | None = None) -> Any:
    return check_config(
        {
            "data": {"source": "digits"},
            "split": {"limit": 400},
            "model": {"name": "mlp", "options": {"widths": [16]}, "weights": weights},
            "training": training,
            "forget": {"by": "random", "count": 10},
            "method": {"name": "FT", "options": {"epochs": 1}},
            "evaluation": {"svc_records": 30},
            "runtime": {"device": "cpu"},
        }
    )


def test_a_run_with_a_recipe_that_cannot_retrain_the_model(tmp_path: Path) -> None:
    """An imported model whose declared recipe does not learn: Retrain is at chance, and every gap looks good or bad."""
    records = expunge.load_records("digits")
    split = expunge.make_split(records, limit=400)
    network = expunge.architecture("mlp", records, split, widths=(16,))
    recipe = expunge.get_recipe("one-cycle", epochs=15, batch_size=16)
    trained = expunge.train(records, split, network, recipe=recipe, runtime=expunge.Runtime("cpu"))
    expunge.save_trained(trained, tmp_path / "model")
    weights = str(tmp_path / "model" / "model.safetensors")
    useless = {"recipe": "one-cycle", "epochs": 1, "learning_rate": 1e-6}
    config = make_config(tmp_path, useless, weights)
    findings = [f for f in check_run(config).findings if f.subject == "model"]
    assert [f.level for f in findings if "declared, not recorded" in f.message] == ["ok"]
    check = [f.message for f in findings if f.level == "warning"]
    assert not any("training records" in message for message in check)
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    found = Scores.from_json(result.scores)
    assert ("reference-collapsed", "RA") in codes(found)
    assert ("reference-collapsed", "TA") in codes(found)
    assert set(codes(found)) == {("reference-collapsed", "RA"), ("reference-collapsed", "TA"), ("near-chance", "")}
    assert len(found.about["imported"]) == 64
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no gap to the reference" in page
    assert "Recipe and split of the original were declared, not recorded." in page
    assert page.count(found.about["imported"]) >= 2

    with torch.no_grad():  # the same model with its outputs in another order
        last = [module for module in trained.model.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    expunge.save_trained(trained, tmp_path / "rolled")
    config = make_config(tmp_path, useless, str(tmp_path / "rolled" / "model.safetensors"))
    check = [f.message for f in check_run(config).findings if f.subject == "model" and f.level == "warning"]
    assert any("the order of the classes differs" in message for message in check)


def test_a_sound_run_has_no_warning(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"recipe": "one-cycle", "epochs": 15, "batch_size": 16})
    result = forget(config, tmp_path / "out", store=tmp_path / "store")
    assert result.scores["warnings"] == []
    assert result.reference["warnings"] == []
    assert set(result.reference["about"]["original"]) == {"RA", "TA"}
