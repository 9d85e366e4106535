"""Look-alikes: what a model knows of D_f by the distance of its records to D_r, and of near copies that stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.data.quality.copies import measure_nearest, measure_usual_distance
from expunge.evaluation.predictions import Predictions
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval

from .accuracy import wilson_interval


def _measure_known(part: Predictions, text: str) -> Measurement:
    hits, total = int(part.correct.sum()), len(part)
    interval: Interval = wilson_interval(hits, total)
    return Measurement(100.0 * hits / total, f"accuracy on {total} {text}", interval)


@register_score(
    "Known near", unit="%", direction="reference", needs=("predictions", "model"), position=137, decimals=2, gap=True,
    heading="known near %", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
@register_score(
    "Known far", unit="%", direction="reference", needs=("predictions", "model"), position=138, decimals=2, gap=True,
    heading="known far %", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
@register_score(
    "Distance to D_r", direction="higher", needs=("predictions", "model"), position=139, decimals=3, compared=False,
    heading="distance to D_r", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
def measure_known_by_distance(inputs: ScoreInputs) -> Mapping[str, Measurement | Missing]:
    """Accuracy on the third of D_f that is nearest to D_r and on the farthest third; the median distance.

    The distance of a record is that to the nearest record of D_r, in units of the usual distance of a training record
    to the nearest other one. A retrained model knows near records too: a method is at fault where it differs from it.
    """
    records, parts = inputs.records, inputs.parts
    names = ("Known near", "Known far", "Distance to D_r")
    third = len(parts.forget) // 3
    reason = ""
    if records.features is None:
        reason = "the records are streamed"
    elif third == 0 or len(parts.retain) == 0:
        reason = "D_f has fewer than 3 records, or D_r none"
    else:
        retain = records.rows(parts.retain.record_ids)
        usual = measure_usual_distance(records, retain)[0]
        reason = "" if usual > 0 else "most records of D_r have an exact copy there"
    if reason:
        return {name: Missing(f"{name} was not computed: {reason}") for name in names}
    distances = measure_nearest(records, records.rows(parts.forget.record_ids), retain) / usual
    order = np.argsort(distances, kind="stable")
    found = {}
    for name, where in (("Known near", order[:third]), ("Known far", order[-third:])):
        low, high = distances[where].min(), distances[where].max()
        text = f"records of D_f at {low:.3g} to {high:.3g} times the usual distance from D_r"
        found[name] = _measure_known(parts.forget.take(where), text)
    found[names[2]] = Measurement(
        float(np.median(distances)), f"median over {len(distances)} records of D_f; the unit is {usual:.4g}"
    )
    return found


@register_score(
    "Look-alikes known", unit="%", direction="reference", needs=("predictions", "look-alikes"), position=151,
    decimals=2, gap=True, heading="look-alikes known %", table="main",
    citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
def measure_look_alikes(inputs: ScoreInputs) -> Measurement | None:
    """Accuracy on the planted near copies of D_f, which stay in D_r."""
    planted = inputs.records.planted
    assert planted is not None
    part = inputs.parts.retain
    copies = part.take(np.isin(part.record_ids, planted.record_ids))
    return _measure_known(copies, "near copies of D_f in D_r") if len(copies) else None
