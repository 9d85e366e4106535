"""What a method cost: RTE in seconds, and passes."""

from __future__ import annotations

from expunge.evaluation.registry.definition import Measurement, register_score
from expunge.evaluation.registry.inputs import ScoreInputs


@register_score(
    "RTE", unit="s", direction="lower", needs=("cost",), citation="[Jia2023] (there in minutes)",
    position=500, column=6, heading="RTE s", decimals=2, machine_dependent=True, table="cost", aliases=("Seconds",),
    legend="RTE: seconds of the method alone.",
)  # fmt: skip
def measure_seconds(inputs: ScoreInputs) -> Measurement:
    """Run-time efficiency: wall-clock seconds of the method alone (the paper gives minutes)."""
    text = "Run-time efficiency: wall-clock time of the method alone, without evaluation and reading of data."
    return Measurement(float(inputs.cost.seconds), text)


@register_score(
    "Passes", unit="passes", direction="lower", needs=("cost",),
    citation="a count that does not depend on the machine",
    position=510, column=7, heading="Passes", decimals=2, table="cost", legend="Passes: over the retain set.",
)  # fmt: skip
def measure_passes(inputs: ScoreInputs) -> Measurement:
    """(records trained on + records only forwarded / 3) / size of D_r."""
    text = "Forward and backward passes over D_r: (records trained on + records only forwarded / 3) / |D_r|."
    return Measurement(float(inputs.cost.passes), text)


@register_score(
    "Peak memory", unit="MiB", direction="lower", needs=("cost",), citation="measured",
    position=520, machine_dependent=True,
)  # fmt: skip
def measure_memory(inputs: ScoreInputs) -> None:
    """Not measured any more; in results of earlier versions, the growth of the process during the method.

    That number depended on what the process had run before: memory that an earlier stage had freed was used again and
    did not count. The score is registered for the files, tables and plans that name it.
    """
