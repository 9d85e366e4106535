"""Distance of the outputs from those of the retrained model, record by record: KL divergence and disagreement."""

from __future__ import annotations

import numpy as np

from expunge.core.errors import DataError
from expunge.evaluation.predictions import Floats, Predictions
from expunge.evaluation.registry.definition import Measurement, Missing, register_score, without_test
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval
from expunge.evaluation.seeds import LEVEL, t_interval

from .accuracy import wilson_interval


def kl_to_retrained(predictions: Predictions, retrained: Predictions) -> Floats:
    """KL(retrained || model) of the softmax outputs for each record, in nats: `N` numbers, at least 0.

    KL = sum_k p_k (log p_k - log q_k), with p the probabilities of the retrained model and q those of the model, from
    the logits in float64. The retrained model comes first because it is the truth here: KL is what the model loses in
    expected log-likelihood if classes are drawn as the retrained model predicts them. It is large where the model calls
    impossible what the retrained model expects. The other direction weighs by what the model itself predicts.

    Args:
        predictions: of the model.
        retrained: of the retrained model, for the same records in the same order.

    Raises:
        DataError: the two are of other records, or of other numbers of classes.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Predictions, kl_to_retrained
        >>> def predict(*probabilities):
        ...     return Predictions(np.log([probabilities]), np.array([0]), np.array(["a"]))
        >>> print(kl_to_retrained(predict(0.25, 0.75), predict(0.5, 0.5)))  # log(2) - log(3) / 2
        [0.14384104]
    """
    _check_pair(predictions, retrained)
    log_q, log_p = _log_softmax(predictions.logits), _log_softmax(retrained.logits)
    return np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=1))


def disagreement(predictions: Predictions, retrained: Predictions) -> float:
    """Fraction of records whose predicted class differs from that of the retrained model, in %; NaN without records.

    The predicted class has the largest logit; the first of several wins.

    Args:
        predictions: of the model.
        retrained: of the retrained model, for the same records in the same order.

    Raises:
        DataError: the two are of other records, or of other numbers of classes.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import Predictions, disagreement
        >>> def predict(*classes):
        ...     ids = np.array([str(i) for i in range(len(classes))])
        ...     return Predictions(np.eye(3)[list(classes)], np.zeros(len(classes), dtype=int), ids)
        >>> disagreement(predict(0, 1, 2, 2), predict(0, 1, 2, 1))
        25.0
    """
    _check_pair(predictions, retrained)
    if len(predictions) == 0:
        return float("nan")
    return 100.0 * float((predictions.logits.argmax(axis=1) != retrained.logits.argmax(axis=1)).mean())


def _log_softmax(logits: np.ndarray) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _check_pair(predictions: Predictions, retrained: Predictions) -> None:
    if not np.array_equal(predictions.record_ids, retrained.record_ids):
        raise DataError(
            f"the model has predictions for {len(predictions)} records, the retrained model for "
            f"{len(retrained)} others",
            hint="predict the same records with both, in the same order",
        )
    if predictions.logits.shape != retrained.logits.shape:
        classes = [len(logits[0]) for logits in (predictions.logits, retrained.logits)]
        raise DataError(f"the model has {classes[0]} outputs, the retrained model {classes[1]}")


def _measure_kl(predictions: Predictions, retrained: Predictions, where: str) -> Measurement:
    values = kl_to_retrained(predictions, retrained).tolist()
    ends = t_interval(values)
    interval = None if ends is None else Interval(max(0.0, ends[0]), ends[1], LEVEL)
    text = f"Mean over {len(values)} {where} of KL(retrained || model) of the softmax outputs, in nats."
    return Measurement(float(np.mean(values)), text, interval)


def _measure_disagreement(predictions: Predictions, retrained: Predictions, where: str) -> Measurement:
    percent, total = disagreement(predictions, retrained), len(predictions)
    text = f"Fraction of {total} {where} whose predicted class differs from that of the retrained model."
    return Measurement(percent, text, wilson_interval(round(total * percent / 100), total))


def _describe_test(inputs: ScoreInputs) -> str:
    forgotten = inputs.parts.forgotten_class
    return "test records" if forgotten is None else "test records outside the forgotten class"


@register_score(
    "KL on D_f", unit="nats", direction="lower", needs=("predictions", "retrained"), position=192, compared=False,
    decimals=4, on_request=True, rerun_floor=True, citation="this project; docs/scores.md",
)  # fmt: skip
def measure_kl_forget(inputs: ScoreInputs) -> Measurement:
    """Mean over D_f of KL(retrained || model), the divergence of the softmax outputs from the retrained model's."""
    return _measure_kl(inputs.parts.forget, inputs.retrained_parts.forget, "records of D_f")


@register_score(
    "KL on test", unit="nats", direction="lower", needs=("predictions", "retrained"), position=194, compared=False,
    decimals=4, on_request=True, rerun_floor=True, citation="this project; docs/scores.md",
)  # fmt: skip
def measure_kl_test(inputs: ScoreInputs) -> Measurement | Missing:
    """The same over the test records; if a whole class is forgotten, without that class."""
    if not inputs.parts.has_test:
        return without_test("KL on test")
    return _measure_kl(inputs.parts.legacy_test, inputs.retrained_parts.legacy_test, _describe_test(inputs))


@register_score(
    "Disagreement on D_f", unit="%", direction="lower", needs=("predictions", "retrained"), position=196,
    compared=False, decimals=2, on_request=True, rerun_floor=True, citation="this project; docs/scores.md",
)  # fmt: skip
def measure_disagreement_forget(inputs: ScoreInputs) -> Measurement:
    """Fraction of D_f whose predicted class differs from that of the retrained model."""
    return _measure_disagreement(inputs.parts.forget, inputs.retrained_parts.forget, "records of D_f")


@register_score(
    "Disagreement on test", unit="%", direction="lower", needs=("predictions", "retrained"), position=198,
    compared=False, decimals=2, on_request=True, rerun_floor=True, citation="this project; docs/scores.md",
)  # fmt: skip
def measure_disagreement_test(inputs: ScoreInputs) -> Measurement | Missing:
    """The same over the test records; if a whole class is forgotten, without that class."""
    if not inputs.parts.has_test:
        return without_test("Disagreement on test")
    return _measure_disagreement(inputs.parts.legacy_test, inputs.retrained_parts.legacy_test, _describe_test(inputs))
