"""Methods that correct records: Retrain and FT on the corrected data, sequences of requests, and refusals."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from expunge.core.errors import DataError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.split import Correction, Split
from expunge.core.trained import Trained
from expunge.data import blank_columns, correct_labels, correct_records, load_records, make_split
from expunge.data.records import Records
from expunge.evaluation import evaluate, predict_parts
from expunge.methods import Context, Task, get_method, method_class, method_names
from expunge.models import architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, Runtime, train

RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=0.05)
SUPPORTED = [name for name in method_names() if method_class(name).corrects]
OTHERS = [name for name in method_names() if name not in SUPPORTED]


@pytest.fixture(scope="module")
def cancer() -> tuple[Records, Split]:
    records = load_records("breast-cancer")
    return records, make_split(records, seed=0, limit=260)


def train_on(records: Records, split: Split, cpu: Runtime) -> Trained:
    network = architecture("mlp", records, split, widths=(6,), normalise="training")
    return train(records, split, network, recipe=RECIPE, seed=2, runtime=cpu)


def flip(records: Records, split: Split, ids: np.ndarray) -> ForgetRequest:
    return correct_labels(records, split, {str(i): 1 - int(records.labels[records.rows([i])[0]]) for i in ids})


def test_who_supports_corrections() -> None:
    assert SUPPORTED == ["Retrain", "FT", "mixed-privacy", "Warnecke-1", "Warnecke-2"]


@pytest.mark.parametrize("kind", ["labels", "columns"])
def test_retrain_trains_on_the_corrected_records(kind: str, cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """Bit for bit, with the normalisation statistics of the corrected records; then without a forgotten one."""
    records, split = cancer
    ids = split.retain[:12]
    request = flip(records, split, ids) if kind == "labels" else blank_columns(records, split, ids, [0, 7])
    original, context = train_on(records, split, cpu), Context(records, cpu)
    outcome = get_method("Retrain").forget(original, request, context)
    assert request.correction is not None
    corrected = correct_records(records, [request.correction])
    assert outcome.trained.hash == train_on(corrected, split, cpu).hash != original.hash
    assert outcome.guarantee == "exact"
    assert outcome.carried == ()
    assert outcome.trained.split.counts() == split.counts()
    assert outcome.cost.retain_records == len(split.retain)
    assert "12 records corrected" in repr(outcome)
    later = get_method("Retrain").forget(outcome.trained, ForgetRequest(ids[:3]), context)
    never = dataclasses.replace(split, retain=split.retain[3:])
    assert later.trained.hash == train_on(corrected, never, cpu).hash


def test_a_second_correction_starts_from_the_first(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = cancer
    ids, context = split.retain[:4], Context(records, cpu)
    first = flip(records, split, ids)
    once = get_method("Retrain").forget(train_on(records, split, cpu), first, context).trained
    with pytest.raises(RequestError, match="already"):
        flip(records, once.split, ids)
    back = correct_labels(records, once.split, {str(ids[0]): int(records.labels[records.rows(ids[:1])[0]])})
    twice = get_method("Retrain").forget(once, back, context).trained
    corrected = correct_records(
        records, [Correction(ids[1:], tuple(1 - records.labels[records.rows(np.sort(ids[1:]))]))]
    )
    assert twice.hash == train_on(corrected, split, cpu).hash


def test_ft_fine_tunes_on_the_corrected_records(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """As the same training on records that always had these values."""
    records, split = cancer
    request, original = flip(records, split, split.retain[:12]), train_on(records, split, cpu)
    method = get_method("FT", epochs=2)
    outcome = method.forget(original, request, Context(records, cpu, seed=4))
    assert request.correction is not None
    corrected = correct_records(records, [request.correction])
    task = Task(original, ForgetRequest([]), Context(corrected, cpu, seed=4), "FT", {}, "empirical")
    task.fit(corrected.rows(split.retain), method.make_recipe(original))
    assert outcome.trained.hash == dataclasses.replace(original, model=task.model).hash


def test_pruning_a_corrected_model_reads_the_corrected_values(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = cancer
    request = blank_columns(records, split, split.retain[:100], list(range(10)))
    corrected = get_method("Retrain").forget(train_on(records, split, cpu), request, Context(records, cpu)).trained
    pruning = Pruning(0.5, layers=("linear",), criterion="SNIP", schedule="one-shot", score_records=64)
    found = prune(corrected, pruning, Context(records, cpu))
    assert request.correction is not None
    expected = prune(
        dataclasses.replace(corrected, split=split),
        pruning,
        Context(correct_records(records, [request.correction]), cpu),
    )
    other = prune(dataclasses.replace(corrected, split=split), pruning, Context(records, cpu))
    assert found.mask.hash() == expected.mask.hash() != other.mask.hash()


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_refuse_corrections(
    name: str, dense: Trained, digits: Records, digits_split: Split, cpu: Runtime
) -> None:
    first = str(digits_split.retain[0])
    request = correct_labels(digits, digits_split, {first: (int(digits.labels[digits.rows([first])[0]]) + 1) % 10})
    with pytest.raises(
        RequestError, match=re.escape(f"method {name}: this method removes records; it cannot correct them")
    ):
        get_method(name).forget(dense, request, Context(digits, cpu))


@pytest.mark.parametrize("name", [name for name in SUPPORTED if not method_class(name).trains])
def test_what_changes_nothing_or_does_not_exist_is_refused(
    name: str, dense: Trained, digits: Records, cpu: Runtime
) -> None:
    ids = dense.split.retain[:1]
    same = Correction(ids, labels=(int(digits.labels[digits.rows(ids)[0]]),))
    wrong, pixels = Correction(ids, labels=(10,)), Correction(ids, blank=(3,))
    for correction, message in ((same, "changes nothing"), (wrong, "new label 10"), (pixels, "in tables only")):
        request = ForgetRequest(ids, correction=correction)
        with pytest.raises(RequestError, match=message):
            get_method(name).forget(dense, request, Context(digits, cpu))


def test_training_from_scratch_on_a_corrected_split_is_refused(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = cancer
    after = flip(records, split, split.retain[:2]).apply(split)
    with pytest.raises(DataError, match="corrections of 2 records"):
        train_on(records, after, cpu)


# ---- scores


@pytest.mark.parametrize("kind", ["labels", "columns"])
def test_scores_of_a_correction(kind: str, cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """UA on the old values, Corrected on the new ones, RA without the corrected records; from a model's own outputs."""
    records, split = cancer
    ids = split.retain[:40]
    request = flip(records, split, ids) if kind == "labels" else blank_columns(records, split, ids, list(range(30)))
    original = train_on(records, split, cpu)
    after = get_method("Retrain").forget(original, request, Context(records, cpu)).trained
    assert request.correction is not None
    corrected = correct_records(records, [request.correction])
    for model in (original, after):
        scores = {score.name: score for score in evaluate(model, request, records, runtime=cpu)}
        wide = dataclasses.replace(model, split=split)  # plain accuracies, as if nothing had been requested

        def percent(with_values: Records, which: np.ndarray, wide: Trained = wide) -> float:
            parts = predict_parts(wide, ForgetRequest(which), with_values, runtime=cpu)
            return 100.0 * float(parts.forget.correct.mean())

        assert scores["UA"].value == pytest.approx(100 - percent(records, ids))
        assert scores["Corrected"].value == pytest.approx(percent(corrected, ids))
        assert scores["RA"].value == pytest.approx(percent(records, split.retain[40:]))
        assert "old values" in scores["UA"].definition
        if kind == "labels":  # two classes: right before is wrong after
            assert scores["Corrected"].value == pytest.approx(scores["UA"].value)
    reference = evaluate(after, request, records, runtime=cpu)
    assert any("which stay in training" in note for note in reference.notes)
    gaps = evaluate(original, request, records, reference=reference, runtime=cpu)
    assert {score.name for score in gaps if score.reference is not None} >= {"UA", "Corrected", "RA", "MIA-Efficacy"}
    with pytest.raises(RequestError, match="another forget request"):
        evaluate(original, ForgetRequest(ids), records, reference=reference, runtime=cpu)
    not_made = evaluate(original, request, records, runtime=cpu)
    with pytest.raises(RequestError, match="was trained on D_f"):
        evaluate(after, request, records, reference=not_made, runtime=cpu)


def test_scores_of_a_later_removal_use_the_corrected_values(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    records, split = cancer
    ids = split.retain[:40]
    after = (
        get_method("Retrain")
        .forget(train_on(records, split, cpu), flip(records, split, ids), Context(records, cpu))
        .trained
    )
    removal = ForgetRequest(ids[:20])
    parts = predict_parts(after, removal, records, runtime=cpu)
    assert parts.corrected is None
    assert (parts.forget.labels == 1 - records.labels[records.rows(parts.forget.record_ids)]).all()
    assert "Corrected" not in {score.name for score in evaluate(after, removal, records, runtime=cpu)}
