"""What `check` says of a model that arrives pruned: in which form, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import MaskError

if TYPE_CHECKING:
    from expunge.core.trained import Trained
    from expunge.models import Finding


def arrival_findings(trained: Trained) -> list[Finding]:
    """Findings about an adopted model's mask: its form, what keeps it, what un-pruning and export would need.

    The form stands in the history of the model's provenance, where `expunge.sparsity.adopt_weights` wrote it. Zeros
    that nobody called a mask are `describe_model`'s to warn of.
    """
    from expunge.models import Finding
    from expunge.sparsity import rule_of
    from expunge.sparsity.arrive import dead_channels
    from expunge.sparsity.granularity import obeys_pattern

    mask = trained.mask
    (history,) = trained.provenance.history
    said = history.partition(" (")[2].removesuffix(")")
    if mask is None:
        return [Finding("ok", "mask", f"none: {said}")]
    found = [Finding("ok", "mask", said, "masked weights stay +0.0 through every method and every file")]
    try:
        rule = rule_of(mask)
        found.append(
            Finding(
                "ok",
                "mask",
                f"made by {rule.criterion} in {' and '.join(rule.layers)} layers, scope {mask.provenance.scope}: "
                "un-pruning would repeat that",
            )
        )
    except MaskError as error:
        hint = "model.pruned={criterion: magnitude, scope: global, layers: [conv, linear]}, if that is so"
        found.append(
            Finding(
                "warning", "mask", f"{error.what}: Un-prune would refuse to guess, other methods keep the mask", hint
            )
        )
    empty = [name for name, alive in mask.alive.items() if alive.dim() > 1 and not alive.any()]
    if empty:
        message = f"every weight of {empty[0]} is masked ({len(empty)} such layers): nothing passes it but its bias"
        found.append(Finding("warning", "mask", message))
    granularity = mask.provenance.granularity
    if granularity == "filter":
        try:
            count = dead_channels(trained.model, mask, _shape(trained))
            found.append(Finding("ok", "mask", f"{count} coupled channels can be removed physically (sparsity.shrink)"))
        except MaskError as error:
            found.append(Finding("warning", "mask", f"no channel can be removed physically: {error.what}"))
    elif all(obeys_pattern(alive, 2, 4) for alive in mask.alive.values()):
        message = (
            f"2:4 holds in {len(mask.alive)} tensors: they can be exported as semi-structured sparse tensors (CUDA)"
        )
        found.append(Finding("ok", "mask", message))
    return found


def _shape(trained: Trained) -> tuple[int, ...]:
    """Shape of one record that the model takes."""
    return tuple(trained.provenance.architecture["input_shape"])
