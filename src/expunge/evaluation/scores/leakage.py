"""Topology leakage: whether masks of models trained with D_f can be told from masks of models trained without it."""

from __future__ import annotations

from expunge.evaluation.registry.definition import Measurement, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.score import Interval


@register_score(
    "Topology leakage", direction="lower", needs=("shadow masks",), citation="expunge; docs/sparsity.md",
    position=250, heading="Leakage AUC",
    legend="Leakage AUC: of an attacker who sees only masks, mean±spread over seeds; 0.5: no leakage. By chance: the "
    "same with permuted labels. p: fraction of permutations at least as far from 0.5.",
)  # fmt: skip
def measure_leakage(inputs: ScoreInputs) -> Measurement:
    """AUC of telling masks of models trained with D_f from masks of models trained without; 0.5: no leakage."""
    shadow_masks = inputs.shadow_masks
    found, (first, second) = shadow_masks.leakage, shadow_masks.sides
    compared = f"{found.models[0]} masks of models {first} against {found.models[1]} {second}, {shadow_masks.attacker}"
    text = f"AUC of an attacker who sees only masks, on held-out models: {compared}. 0.5: no leakage."
    return Measurement(found.auc, text, found.interval)


@register_score(
    "Leakage null", direction="reference", needs=("shadow masks",), citation="expunge; docs/sparsity.md",
    position=260, heading="AUC by chance",
)  # fmt: skip
def measure_leakage_by_chance(inputs: ScoreInputs) -> Measurement:
    """A baseline, not better or worse: the same AUC after shuffling which masks are with and without D_f."""
    found = inputs.shadow_masks.leakage
    null = found.null_interval
    text = f"The same AUC over {len(found.null)} permutations of the labels: mean, and central 95 % interval."
    return Measurement(sum(found.null) / len(found.null), text, Interval(null.low, null.high, null.level))


@register_score(
    "Leakage p", direction="lower", needs=("shadow masks",), citation="expunge; docs/sparsity.md",
    position=270, heading="p",
)  # fmt: skip
def measure_leakage_p(inputs: ScoreInputs) -> Measurement:
    """p-value, not better or worse: fraction of shuffles whose AUC is at least as far from 0.5."""
    text = (
        "Permutation p-value: the fraction of permutations (1 added to both counts) whose AUC is at least as "
        "far from 1/2."
    )
    return Measurement(inputs.shadow_masks.leakage.p_value, text)
