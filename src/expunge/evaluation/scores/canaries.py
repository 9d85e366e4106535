"""Canaries: how many of the planted wrong labels a model gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.evaluation.predictions import Bools
from expunge.evaluation.registry.definition import Measurement, register_score
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
