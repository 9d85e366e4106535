"""Warnings about the models that scores compare: a reference that was not retrained or that collapsed, an assumed
recipe, classes out of order. A warning changes how the numbers are read; a mere fact is in `Scores.about`.

Each is a `ScoreWarning` with the numbers it was decided by; `scores.json` has them under `warnings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import RequestError
from expunge.core.outcome import describe_nothing_changed
from expunge.core.show import plural, shorten_names
from expunge.evaluation.score import Score, Scores, ScoreWarning

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.trained import Trained
    from expunge.data.records import Records
    from expunge.evaluation.predictions import Parts, Predictions
    from expunge.training import Runtime

#: The hint where a reference was retrained on other records.
SAME_RECORDS = "retrain the reference without the records of all requests so far, and of no others"

#: Retrain is far below the original from so many points on. Without D_f and with other seeds, RA and TA of a sound
#: reference differ from the original's by a few points.
FAR_POINTS = 10.0

#: An accuracy is near chance if it is at most this fraction of the way from chance to 100 %.
NEAR_CHANCE = 0.1

#: `check` runs an imported model on at most so many training records.
SAMPLE = 2_000

#: Classes are in another order if another order has an accuracy that is higher by so many points.
REORDER_POINTS = 20.0


def is_far_below(value: float, original: float, *, floor: float = 0.0) -> bool:
    """Whether an accuracy of the reference is far below that of the original, both in %.

    The difference has to exceed `FAR_POINTS` and twice the noise floor: with a large floor, 10 points can be the
    difference of two references that differ in their seed only.

    Args:
        value: of the reference.
        original: of the original model.
        floor: noise floor of the score, in points; with one seed, the half-width of the interval of the difference.

    Example:
        >>> is_far_below(60.0, 95.0), is_far_below(92.0, 95.0), is_far_below(80.0, 95.0, floor=9.0)
        (True, False, False)
    """
    return original - value > max(FAR_POINTS, 2 * floor)


def measure_original(parts: Parts) -> dict[str, Any]:
    """RA and TA of the original model, in %, and the number of records of each: what a reference is compared with."""
    return {
        name: {"value": 100.0 * float(part.correct.mean()), "records": len(part)}
        for name, part in (("RA", parts.retain), *((("TA", parts.legacy_test),) if parts.has_test else ()))
        if len(part)
    }


def check_training_accuracy(predictions: Predictions, whose: str) -> list[ScoreWarning]:
    """Warn if a model's accuracy on its own training records is near chance, or better with reordered classes.

    Chance is the accuracy of always answering the most frequent class.

    Args:
        predictions: on training records of the model.
        whose: the model, in words.
    """
    from scipy.optimize import linear_sum_assignment

    if len(predictions) == 0:
        return []
    labels, answers = predictions.labels, predictions.logits.argmax(axis=1)
    classes = predictions.logits.shape[1]
    accuracy = 100.0 * float(predictions.correct.mean())
    chance = 100.0 * float(np.bincount(labels).max()) / len(labels)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    best = 100.0 * float(confusion[linear_sum_assignment(confusion, maximize=True)].sum()) / len(labels)
    values = {"accuracy": accuracy, "chance": chance, "reordered": best, "records": len(labels)}
    text = f"{whose} has {accuracy:.1f} % accuracy on {len(labels):,} of its own training records"
    if best - accuracy > REORDER_POINTS and best > chance + NEAR_CHANCE * (100.0 - chance):
        text += f"; with its outputs in another order it would be {best:.1f} %"
        message = f"{text}: the order of the classes differs between the model and the records"
        return [ScoreWarning("classes-reordered", message, values)]
    if len(np.unique(labels)) > 1 and accuracy <= chance + NEAR_CHANCE * (100.0 - chance):
        message = (
            f"{text}, near the {chance:.1f} % of always answering the most frequent class: it learned nothing, or the "
            "records, their preparation or the order of the classes are not those of its training"
        )
        return [ScoreWarning("near-chance", message, values)]
    return []


def sample_training_accuracy(
    trained: Trained, records: Records, runtime: Runtime, *, most: int = SAMPLE
) -> list[ScoreWarning]:
    """Check an imported model as `check_training_accuracy` does, on at most `most` records of its retain set."""
    from expunge.data.corrections.values import correct_records
    from expunge.evaluation.predictions import Predictions
    from expunge.training import predict_logits

    if trained.split.retain_absent:
        return []
    records = correct_records(records, trained.split.corrections)
    rows = np.sort(records.rows(trained.split.retain))
    rows = rows[np.arange(min(most, len(rows))) * len(rows) // min(most, max(1, len(rows)))]
    logits = predict_logits(trained.model, records, rows, runtime=runtime).detach().float().cpu().numpy()
    return check_training_accuracy(Predictions(logits, records.labels[rows], records.record_ids[rows]), "the model")


def find_import(trained: Trained) -> str:
    """The hash of the imported weights of a model; empty: there are none."""
    found = trained.provenance.weights_from
    return "" if found == "training" else found


def is_declared(trained: Trained) -> bool:
    """Whether weights were imported whose recipe or split somebody declared, and no recording says."""
    return bool(find_import(trained)) and not {"recipe", "split"} <= set(trained.provenance.recorded)


def check_assumed(trained: Trained) -> list[ScoreWarning]:
    """Warn if a model was made with a recipe that nobody declared."""
    if "recipe" not in trained.provenance.assumed:
        return []
    name = trained.provenance.recipe.get("name", "")
    message = (
        f"the recipe of the original is not known: the recipe {name} is assumed. A model that is retrained with it may "
        "differ from the original in more than the forgotten records"
    )
    return [ScoreWarning("recipe-assumed", message, {"recipe": name})]


def check_collapse(
    original: Mapping[str, Any], reference: Mapping[str, Score], *, imported: bool = False
) -> list[ScoreWarning]:
    """Warn if RA or TA of the reference is far below that of the original.

    Args:
        original: what `measure_original` found.
        reference: scores of the reference by name.
        imported: whether recipe or split of the original are declared, so that they may be wrong.
    """
    found = []
    cause = ". The weights were imported: compare the declared recipe and split with those of their training"
    for name, part in (("RA", "retain set"), ("TA", "test set")):
        if name not in original or name not in reference:
            continue
        before, after = float(original[name]["value"]), reference[name].value
        records = max(1, int(original[name]["records"]))
        floor = 0.5 * sum(1.96 * (p * (100.0 - p) / records) ** 0.5 for p in (before, after))
        if is_far_below(after, before, floor=floor):
            values = {"score": name, "original": before, "reference": after, "gap": after - before, "floor": floor}
            message = (
                f"the retrained reference has {after:.1f} % accuracy on the {part} ({name}), the original "
                f"{before:.1f} %: retraining with this recipe does not give a model of its quality, so no gap to the "
                f"reference says that something was forgotten{cause if imported else ''}"
            )
            found.append(ScoreWarning("reference-collapsed", message, values))
    return found


def check_retrained(about: Mapping[str, Any]) -> list[ScoreWarning]:
    """Warn if a model that serves as the reference is known not to be a retrained one.

    Args:
        about: what its scores describe (`Scores.about`); `retrained` is there if a method made the model.
    """
    if about.get("retrained", True):
        return []
    made = str(about.get("made", "")) or "an unlearning method"
    message = (
        f"the reference was not retrained: its weights come from a training that read the records to forget ({made}). "
        "A gap to it does not say what was forgotten; retrain the reference without them (method Retrain)"
    )
    return [ScoreWarning("reference-not-retrained", message, {"made": made})]


def check_same_retain(trained: Trained, retrained: Trained, request: ForgetRequest) -> None:
    """Raise RequestError, with the ids that differ, if a reference was trained on other records than D_r.

    A reference that was trained on all of D_f, and corrections, are left to the checks of `evaluate`.

    Args:
        trained: the model that is scored.
        retrained: its reference, which has forgotten the request.
        request: D_f.
    """
    if trained.split.base_hash != retrained.split.base_hash or request.correction is not None:
        return  # `evaluate` compares their hashes
    learned = np.intersect1d(request.record_ids, retrained.split.retain)
    if 0 < len(learned) < len(request.record_ids):
        what = f"the reference was trained on {len(learned):,} of the {len(request.record_ids):,} records of D_f"
        names = shorten_names(str(name)[:60] for name in learned.tolist())
        raise RequestError(f"{what} ({names})", where="reference", hint=SAME_RECORDS)
    own, other = (np.setdiff1d(model.split.retain, request.record_ids) for model in (trained, retrained))
    found = describe_differing_ids(own, other, "that of this model", "that of the reference")
    if found:
        raise RequestError(f"the reference has another retain set: {found}", where="reference", hint=SAME_RECORDS)


def describe_differing_ids(own: NDArray[np.str_], other: NDArray[np.str_], first: str, second: str) -> str:
    """The ids that only one of two sets has, in words; empty if the sets are equal.

    Args:
        own: ids of the first set.
        other: ids of the second set.
        first: the first set, in words.
        second: the second set, in words.

    Example:
        >>> import numpy as np
        >>> describe_differing_ids(np.array(["a", "b"]), np.array(["a"]), "the first", "the second")
        '1 record is only in the first (b)'
    """
    sides = ((np.setdiff1d(own, other), first), (np.setdiff1d(other, own), second))
    return " and ".join(
        f"{plural(len(ids), 'record')} {'is' if len(ids) == 1 else 'are'} only in {whose} "
        f"({shorten_names([str(name)[:60] for name in ids.tolist()])})"
        for ids, whose in sides
        if len(ids)
    )


def check_unchanged(outcome: Mapping[str, Any]) -> list[ScoreWarning]:
    """Warn if a method changed nothing: its scores are those of the original.

    Args:
        outcome: the body of outcome.json.
    """
    state = outcome.get("state", {})
    changes = state.get("changes", ())
    if not changes or state.get("rewrote") or any(change["status"] != "unchanged" for change in changes):
        return []
    name = outcome.get("method", {}).get("name", "the method")
    found = describe_nothing_changed(name, len(changes))
    message = f"{found}, so these are the scores of the original, and nothing was forgotten"
    return [ScoreWarning("nothing-changed", message, {"tensors": len(changes)})]


def list_warnings(
    trained: Trained,
    parts: Parts,
    about: dict[str, Any],
    scores: Mapping[str, Score],
    reference: Scores | None,
    original: tuple[Trained, Parts] | None,
) -> tuple[ScoreWarning, ...]:
    """List the warnings about a scored model and its reference; adds `original` to `about` where it is known.

    Args:
        trained: the scored model.
        parts: its predictions.
        about: what was scored.
        scores: its scores by name.
        reference: the scores of the reference; None: the scored model may be the reference.
        original: the original model and its predictions, if the scored model is the reference of a run.
    """
    found = check_assumed(trained)
    if original is not None:
        about["original"] = measure_original(original[1])
        found += check_retrained(about)
        found += check_training_accuracy(original[1].retain, "the original model")
        found += check_collapse(about["original"], scores, imported=is_declared(original[0]))
        found += check_training_accuracy(parts.retain, "the retrained reference")
    elif reference is None:
        found += check_training_accuracy(parts.retain, "the model")
    else:
        found += check_retrained(reference.about)
        original_scores = reference.about.get("original")
        if original_scores is None and not about["forgotten"]:
            original_scores = measure_original(parts)
            found += check_training_accuracy(parts.retain, "the original model")
            by_name = {score.name: score for score in reference}
            found += check_collapse(original_scores, by_name, imported=is_declared(trained))
        found += reference.warnings
    return tuple({warning.message: warning for warning in found}.values())
