"""Scores that compare the mask of an unlearned model with that of the retrained and re-pruned reference."""

from __future__ import annotations

from expunge.core.mask import Mask
from expunge.evaluation.score import Score
from expunge.evaluation.topology import density_divergence, hamming_distance, iou, random_iou, random_layer_iou

CITATION = "[Xiao2025]"


def score_topology(mask: Mask, original: Mask, reference: Mask) -> tuple[Score, ...]:
    """Score a mask by its IoU, Hamming distance and layer divergence to the reference's mask.

    The IoU of the original's mask and the expected IoU of random masks are included for comparison. The Hamming
    distance is left out if the two masks differ in sparsity.

    Args:
        mask: mask of the unlearned model.
        original: mask of the original model.
        reference: mask of the retrained and re-pruned model.

    Raises:
        MaskError: the masks belong to different architectures.
    """
    density = reference.density
    found = [
        Score(
            "IoU",
            iou(mask, reference),
            "",
            "higher",
            "Intersection over union of the kept weights with those of the retrained and re-pruned model.",
            CITATION,
        ),
        Score(
            "IoU of the original",
            iou(original, reference),
            "",
            "reference",
            "The same for the mask of the original model: the value of a method that leaves the mask unchanged.",
            CITATION,
        ),
        Score(
            "Random IoU",
            random_layer_iou(mask, reference),
            "",
            "reference",
            "Expected IoU of random masks with these layer densities: sum n p q / sum n (p + q - p q). With a single "
            f"density r it is r / (2 - r), here {random_iou(density):.4f}.",
            "this project; docs/sparsity.md",
        ),
        Score(
            "Layer divergence",
            density_divergence(mask, reference),
            "bits",
            "lower",
            "Jensen-Shannon divergence between the two distributions of kept weights over the layers.",
            "this project; docs/sparsity.md",
        ),
    ]
    if abs(mask.kept_count - reference.kept_count) <= max(1, mask.total // 1000):
        found.append(
            Score(
                "Hamming",
                hamming_distance(mask, reference),
                "",
                "lower",
                "Fraction of the weights in which the mask differs from the retrained and re-pruned one.",
                CITATION,
            )
        )
    return tuple(found)
