"""Look-alikes: what a model knows of D_f by the distance of its records to D_r, and of near copies that stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from expunge.core.show import plural
from expunge.data.quality.copies import measure_nearest, measure_usual_distance
from expunge.evaluation.predictions import Floats, Predictions
from expunge.evaluation.registry.definition import Measurement, Missing, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval

from .accuracy import wilson_interval

#: The nearest and the farthest of so many equal parts of D_f are compared.
THIRDS = 3


def _measure_known(part: Predictions, text: str) -> Measurement:
    hits, total = int(part.correct.sum()), len(part)
    interval: Interval = wilson_interval(hits, total)
    return Measurement(100.0 * hits / total, f"accuracy on {total} {text}", interval)


def _measure_distances(inputs: ScoreInputs) -> tuple[Floats, float] | str:
    """Distances of D_f to the nearest record of D_r in units of the usual distance, and that; or why there are none."""
    records, parts = inputs.records, inputs.parts
    if records.features is None:
        return "the records are streamed"
    if len(parts.forget) < THIRDS or len(parts.retain) == 0:
        return f"D_f has fewer than {THIRDS} records, or D_r none"
    retain = records.rows(parts.retain.record_ids)
    usual = measure_usual_distance(records, retain)[0]
    if usual == 0:
        return "most records of D_r have an exact copy there"
    return measure_nearest(records, records.rows(parts.forget.record_ids), retain) / usual, usual


@register_score(
    "Known near", unit="%", direction="reference", needs=("predictions", "model"), position=137, decimals=2, gap=True,
    heading="known near %", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
@register_score(
    "Known far", unit="%", direction="reference", needs=("predictions", "model"), position=138, decimals=2, gap=True,
    heading="known far %", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
def measure_known_by_distance(inputs: ScoreInputs) -> Mapping[str, Measurement | Missing]:
    """Accuracy on the third of D_f that is nearest to D_r, and on the farthest third.

    A retrained model knows near records too: a method is at fault where it differs from it.
    """
    names, found = ("Known near", "Known far"), inputs.once(_measure_distances)
    if isinstance(found, str):
        return {name: Missing(f"{name} was not computed: {found}") for name in names}
    distances = found[0]
    order, third = np.argsort(distances, kind="stable"), len(distances) // THIRDS
    measured = {}
    for name, where in zip(names, (order[:third], order[-third:]), strict=True):
        low, high = distances[where].min(), distances[where].max()
        text = f"records of D_f at {low:.3g} to {high:.3g} times the usual distance from D_r"
        measured[name] = _measure_known(inputs.parts.forget.take(where), text)
    return measured


@register_score(
    "Distance to D_r", direction="higher", needs=("predictions", "model"), position=139, decimals=3, compared=False,
    heading="distance to D_r", on_request=True, citation="this project; docs/scenarios.md#look-alikes",
)  # fmt: skip
def measure_distance(inputs: ScoreInputs) -> Measurement | Missing:
    """Median distance of D_f to D_r; unit: the usual distance of a training record to the nearest other one."""
    found = inputs.once(_measure_distances)
    if isinstance(found, str):
        return Missing(f"Distance to D_r was not computed: {found}")
    count = plural(len(found[0]), "record")
    text = f"median over {count} of D_f, to the nearest record of D_r; the unit is {found[1]:.4g}"
    return Measurement(float(np.median(found[0])), text)


@register_score(
    "Look-alikes known", unit="%", direction="reference", needs=("predictions", "look-alikes"), position=125,
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
