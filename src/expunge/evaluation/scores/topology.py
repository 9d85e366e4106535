"""The topology of an unlearned model beside that of the retrained and re-pruned one, as scores."""

from __future__ import annotations

from expunge.core.mask import Mask
from expunge.evaluation.score import Score
from expunge.evaluation.topology import density_divergence, hamming, iou, random_iou, random_layer_iou

SOURCE = "paper B [Xiao2025]"


def topology_scores(mask: Mask, original: Mask, reference: Mask) -> tuple[Score, ...]:
    """IoU with the reference's mask, before and after; Hamming distance, layer divergence, and what chance gives.

    Args:
        mask: of the unlearned model.
        original: of the model before.
        reference: of the retrained and re-pruned model.

    Raises:
        MaskError: the masks are of different architectures.
    """
    density = reference.density
    found = [
        Score(
            "IoU",
            iou(mask, reference),
            "",
            "higher",
            "Intersection over union of the alive weights with those of the retrained and re-pruned model.",
            SOURCE,
        ),
        Score(
            "IoU of the original",
            iou(original, reference),
            "",
            "reference",
            "The same for the mask before the request: what a method that keeps the mask has.",
            SOURCE,
        ),
        Score(
            "Random IoU",
            random_layer_iou(mask, reference),
            "",
            "reference",
            "Expected IoU of random masks with these layers' densities: sum n p q / sum n (p + q - p q). With one "
            f"density r everywhere it is r / (2 - r), here {random_iou(density):.4f}.",
            "chance",
        ),
        Score(
            "Layer divergence",
            density_divergence(mask, reference),
            "bits",
            "lower",
            "Jensen-Shannon divergence between the shares of alive weights that the layers hold.",
            "ours; docs/sparsity.md",
        ),
    ]
    if abs(mask.kept_count - reference.kept_count) <= max(1, mask.total // 1000):
        found.append(
            Score(
                "Hamming",
                hamming(mask, reference),
                "",
                "lower",
                "Share of the weights in which the mask differs from the retrained and re-pruned one.",
                SOURCE,
            )
        )
    return tuple(found)
