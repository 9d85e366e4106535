"""Scores that compare the mask of an unlearned model with that of the retrained and re-pruned reference [Xiao2025]."""

from __future__ import annotations

from expunge.evaluation.registry.definition import Measurement, register_score
from expunge.evaluation.registry.inputs import ScoreInputs
from expunge.evaluation.topology import density_divergence, hamming_distance, iou, random_iou, random_layer_iou


@register_score(
    "IoU", direction="higher", needs=("masks",), citation="[Xiao2025]", position=200, compared=False,
    heading="IoU with reference",
)  # fmt: skip
def measure_iou(inputs: ScoreInputs) -> Measurement:
    """Intersection over union of the kept weights with those of the reference."""
    text = "Intersection over union of the kept weights with those of the retrained and re-pruned model."
    return Measurement(iou(inputs.mask, inputs.reference_mask), text)


@register_score(
    "IoU of the original", direction="reference", needs=("masks",), citation="[Xiao2025]", position=210,
    compared=False, heading="IoU of the original",
)  # fmt: skip
def measure_iou_of_original(inputs: ScoreInputs) -> Measurement:
    """A baseline, not better or worse: the same for the original's mask, as of a method that does not change it."""
    text = "The same for the mask of the original model: the value of a method that leaves the mask unchanged."
    return Measurement(iou(inputs.original_mask, inputs.reference_mask), text)


@register_score(
    "IoU gain", direction="higher", needs=("masks",), citation="this project; docs/scores.md", position=215,
    compared=False, on_request=True, rerun_floor=True, difference=("IoU", "IoU of the original"), interval=True,
)  # fmt: skip
def measure_iou_gain(inputs: ScoreInputs) -> Measurement:
    """IoU - IoU of the original: how much nearer to the reference's mask than the unchanged mask is."""
    text = "IoU of the mask with the reference's, minus that of the original's mask; 0 if the mask is unchanged."
    gain = iou(inputs.mask, inputs.reference_mask) - iou(inputs.original_mask, inputs.reference_mask)
    return Measurement(gain, text)


@register_score(
    "Random IoU", direction="reference", needs=("masks",), citation="this project; docs/sparsity.md", position=220,
    compared=False,
)  # fmt: skip
def measure_random_iou(inputs: ScoreInputs) -> Measurement:
    """A baseline, not better or worse: the expected IoU of random masks with the same layer densities.

    sum n p q / sum n (p + q - p q) over the layers, with n weights and the densities p and q.
    """
    return Measurement(
        random_layer_iou(inputs.mask, inputs.reference_mask),
        "Expected IoU of random masks with these layer densities: sum n p q / sum n (p + q - p q). With a single "
        f"density r it is r / (2 - r), here {random_iou(inputs.reference_mask.density):.4f}.",
    )


@register_score(
    "Hamming", direction="lower", needs=("masks",), citation="[Xiao2025]", position=230, compared=False
)  # fmt: skip
def measure_hamming(inputs: ScoreInputs) -> Measurement | None:
    """Fraction of the weights in which the mask differs from the reference's; only at equal sparsity."""
    mask, reference = inputs.mask, inputs.reference_mask
    if abs(mask.kept_count - reference.kept_count) > max(1, mask.total // 1000):
        return None
    text = "Fraction of the weights in which the mask differs from the retrained and re-pruned one."
    return Measurement(hamming_distance(mask, reference), text)


@register_score(
    "Layer divergence", unit="bits", direction="lower", needs=("masks",), citation="this project; docs/sparsity.md",
    position=240, compared=False,
)  # fmt: skip
def measure_layer_divergence(inputs: ScoreInputs) -> float:
    """Jensen-Shannon divergence between the two distributions of kept weights over the layers."""
    return density_divergence(inputs.mask, inputs.reference_mask)
