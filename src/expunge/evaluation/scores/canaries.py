"""Canaries: how many of the planted wrong labels a model gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.evaluation.predictions import Bools
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs

from .accuracy import wilson_interval


def _measure_fraction(found: Bools, text: str) -> Measurement:
    hits, total = int(found.sum()), len(found)
    return Measurement(100.0 * hits / total, f"{text}, of {total} canaries", wilson_interval(hits, total))


@register_score(
    "Canaries known", unit="%", direction="reference", needs=("predictions", "canaries"), position=135, decimals=2,
    gap=True, heading="canaries known %", table="main", citation="this project; docs/scenarios.md#canaries",
)  # fmt: skip
@register_score(
    "Canaries healed", unit="%", direction="reference", needs=("predictions", "canaries"), position=136, decimals=2,
    gap=True, heading="canaries healed %", table="main", citation="this project; docs/scenarios.md#canaries",
)  # fmt: skip
def measure_canaries(inputs: ScoreInputs) -> Mapping[str, Measurement] | None:
    """Fractions of the canaries that get the planted wrong label (known), and the true one (healed).

    The retrained model, which never saw the wrong labels, says how many a model gives by mistake.
    """
    records, parts = inputs.records, inputs.parts
    assert records.planted is not None
    wrong, true, answers = [], [], []
    base_of = dict(zip(records.planted.record_ids.tolist(), records.planted.base_ids.tolist(), strict=True))
    for part in (parts.forget, parts.retain):
        found = part.take(np.isin(part.record_ids, records.planted.record_ids))
        wrong.append(found.labels)
        true.append(records.labels[records.rows([base_of[name] for name in found.record_ids.tolist()])])
        answers.append(found.logits.argmax(axis=1) if len(found) else found.labels)
    labels, truths, given = map(np.concatenate, (wrong, true, answers))
    if len(given) == 0:
        return None
    return {
        "Canaries known": _measure_fraction(given == labels, "get the planted label"),
        "Canaries healed": _measure_fraction(given == truths, "get the label that their source has"),
    }


@register_score(
    "Canaries known before", unit="%", direction="higher", needs=("predictions", "models", "canaries"), position=126,
    decimals=2, heading="canaries known before %", compared=False, on_request=True,
    citation="this project; docs/scenarios.md#canaries",
)  # fmt: skip
def measure_canaries_before(inputs: ScoreInputs) -> Measurement | Missing:
    """Fraction of the canaries that the original model gives the planted label: what there is to forget."""
    from expunge.training import predict_logits

    records, parts = inputs.records, inputs.parts
    assert records.planted is not None
    ids = np.concatenate([part.record_ids[np.isin(part.record_ids, records.planted.record_ids)]
                          for part in (parts.forget, parts.retain)])  # fmt: skip
    if len(ids) == 0:
        return Missing("no canary is in the forget set or the retain set: Canaries known before was not computed")
    rows = records.rows(ids)
    logits = predict_logits(inputs.original.model, records, rows, runtime=inputs.runtime)
    return _measure_fraction(logits.argmax(1).numpy() == records.labels[rows], "get the planted label before")
