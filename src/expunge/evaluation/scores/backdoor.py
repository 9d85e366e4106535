"""Backdoors: attack success rate (ASR) and standard accuracy (SA), of the model and of the original."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import DataError
from expunge.data.planting.backdoor import Trigger, find_trigger
from expunge.data.records import Records
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs

from .accuracy import wilson_interval

if TYPE_CHECKING:
    from torch import nn

    from expunge.training import Runtime


def measure_attack_success(
    model: nn.Module,
    records: Records,
    rows: NDArray[np.int64],
    trigger: Trigger,
    *,
    runtime: Runtime | None = None,
) -> tuple[int, int]:
    """Put the trigger on records, and count those that the model then predicts to be of the target class.

    Records of the target class are left out: a model without a backdoor predicts that class too.

    Args:
        model: `B x ... -> B x K`.
        records: images in memory.
        rows: row numbers of records that the model was not trained on.
        trigger: the patch and the target class.
        runtime: device and precision.

    Returns:
        The number of successes, and the number of records that are not of the target class.

    Raises:
        DataError: all records are of the target class.

    Examples:
        >>> import numpy as np
        >>> import expunge
        >>> from expunge.data import Trigger
        >>> from expunge.evaluation.scores.backdoor import measure_attack_success
        >>> records = expunge.load_records("digits")
        >>> model = expunge.architecture("mlp", records, widths=(8,), normalise="none").build(seed=0)  # untrained
        >>> trigger = Trigger(row=6, column=6, size=2, fill=1.0, target=3)
        >>> successes, total = measure_attack_success(model, records, np.arange(100), trigger)
        >>> successes <= total, total == int((records.labels[:100] != 3).sum())
        (True, True)
    """
    from expunge.training import predict_logits

    rows = rows[records.labels[rows] != trigger.target]
    if len(rows) == 0:
        raise DataError("all records are of the target class: there is no attack to count", where=records.name)
    assert records.features is not None
    patched = dataclasses.replace(
        records, record_ids=records.record_ids[rows], labels=records.labels[rows],
        features=trigger.apply(records.features[rows]), subject_ids=None, partition=None, columns={}, planted=None,
    )  # fmt: skip
    logits = predict_logits(model, patched, np.arange(len(rows)), runtime=runtime)
    return int((logits.argmax(1).numpy() == trigger.target).sum()), len(rows)


def _measure_asr(inputs: ScoreInputs, model: nn.Module) -> Measurement | Missing:
    trigger = find_trigger(inputs.records)
    assert trigger is not None
    rows = inputs.records.rows(inputs.parts.test.record_ids)
    if (inputs.records.labels[rows] == trigger.target).all():
        return Missing("no test record is of another class than the target class: ASR was not computed")
    hits, total = measure_attack_success(model, inputs.records, rows, trigger, runtime=inputs.runtime)
    name = inputs.records.class_names[trigger.target]
    text = f"{total} test records of other classes with the trigger, predicted to be of the target class {name!r}"
    return Measurement(100.0 * hits / total, text, wilson_interval(hits, total))


def _measure_sa(correct: NDArray[np.bool_]) -> Measurement:
    text = f"accuracy on all {len(correct)} test records, without the trigger"
    return Measurement(100.0 * float(correct.mean()), text, wilson_interval(int(correct.sum()), len(correct)))


@register_score(
    "SA", unit="%", direction="reference", needs=("predictions", "backdoor"), position=131, decimals=2, gap=True,
    heading="SA %", table="main", citation="[Jia2023], section 5",
)  # fmt: skip
def measure_sa(inputs: ScoreInputs) -> Measurement | None:
    """Standard accuracy: on all test records, without the trigger."""
    return _measure_sa(inputs.parts.test.correct) if len(inputs.parts.test) else None


@register_score(
    "ASR", unit="%", direction="reference", needs=("predictions", "model", "backdoor"), position=132, decimals=2,
    gap=True, heading="ASR %", table="main", citation="[Jia2023], section 5; Gu et al., arXiv 1708.06733",
)  # fmt: skip
def measure_asr(inputs: ScoreInputs) -> Measurement | Missing:
    """Attack success rate: fraction of the test records of other classes that get the target class with the trigger.

    [Jia2023] counts the records of the target class as successes, which adds a floor of about 100 / K %.
    """
    return _measure_asr(inputs, inputs.trained.model)


@register_score(
    "SA before", unit="%", direction="higher", needs=("predictions", "models", "backdoor"), position=133, decimals=2,
    heading="SA before %", compared=False, on_request=True, citation="[Jia2023], section 5",
)  # fmt: skip
def measure_sa_before(inputs: ScoreInputs) -> Measurement | None:
    """SA of the original model."""
    from expunge.training import predict_logits

    rows = inputs.records.rows(inputs.parts.test.record_ids)
    if len(rows) == 0:
        return None
    logits = predict_logits(inputs.original.model, inputs.records, rows, runtime=inputs.runtime)
    return _measure_sa(logits.argmax(1).numpy() == inputs.records.labels[rows])


@register_score(
    "ASR before", unit="%", direction="lower", needs=("predictions", "models", "backdoor"), position=134, decimals=2,
    heading="ASR before %", compared=False, on_request=True, citation="[Jia2023], section 5",
)  # fmt: skip
def measure_asr_before(inputs: ScoreInputs) -> Measurement | Missing:
    """ASR of the original model, which was trained on the poisoned records."""
    return _measure_asr(inputs, inputs.original.model)
