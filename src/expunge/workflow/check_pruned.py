"""What `check` says of a model that arrives pruned: in which form, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import MaskError

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.mask import Mask
    from expunge.core.trained import Trained
    from expunge.models import Finding
    from expunge.sparsity import Rule


def arrival_findings(trained: Trained) -> list[Finding]:
    """Findings about an adopted model's mask: its form, what keeps it, what un-pruning and export would need.

    The form stands in the history of the model's provenance, where `expunge.sparsity.adopt_weights` wrote it. Zeros
    that nobody called a mask are `describe_model`'s to warn of.
    """
    from expunge.models import Finding
    from expunge.sparsity import rule_of
    from expunge.sparsity.interop.formats import count_pruned_channels
    from expunge.sparsity.masks.granularity import obeys_pattern

    mask = trained.mask
    (history,) = trained.provenance.history
    said = history.partition(" (")[2].removesuffix(")")
    if mask is None:
        return [Finding("ok", "mask", f"none: {said}")]
    found = [Finding("ok", "mask", said, "masked weights stay +0.0 through every method and every file")]
    try:
        rule = rule_of(mask)
        found += _repeated(mask, rule, trained.model)
    except MaskError as error:
        hint = "model.pruned={criterion: magnitude, scope: global, layers: [conv, linear]}, if that is so"
        found.append(
            Finding(
                "warning", "mask", f"{error.what}: Un-prune would refuse to guess, other methods keep the mask", hint
            )
        )
    empty = [name for name, alive in mask.kept.items() if alive.dim() > 1 and not alive.any()]
    if empty:
        message = f"every weight of {empty[0]} is masked ({len(empty)} such layers): nothing passes it but its bias"
        found.append(Finding("warning", "mask", message))
    granularity = mask.provenance.granularity
    if granularity == "filter":
        try:
            count = count_pruned_channels(trained.model, mask, _shape(trained))
            found.append(Finding("ok", "mask", f"{count} coupled channels can be removed physically (sparsity.shrink)"))
        except MaskError as error:
            found.append(Finding("warning", "mask", f"no channel can be removed physically: {error.what}"))
    elif all(obeys_pattern(alive, 2, 4) for alive in mask.kept.values()):
        message = (
            f"2:4 holds in {len(mask.kept)} tensors: they can be exported as semi-structured sparse tensors (CUDA)"
        )
        found.append(Finding("ok", "mask", message))
    return found


def _repeated(mask: Mask, rule: Rule, model: nn.Module) -> list[Finding]:
    """What un-pruning would repeat: the rule, among the tensors that the mask names and no others."""
    from expunge.models import Finding
    from expunge.sparsity import prunable_weights

    ranked = prunable_weights(model, rule.layers)
    named = [name for name in ranked if name in mask.kept]
    said = f"made by {rule.criterion} in {' and '.join(rule.layers)} layers, scope {mask.provenance.scope}"
    if len(named) == len(ranked):
        return [Finding("ok", "mask", f"{said}: un-pruning would repeat that"), *_beside(mask, named, rule)]
    left = [name for name in ranked if name not in named]
    told = f"{said}; it names {len(named)} of the {len(ranked)} weight tensors there ({left[0]} is not named)"
    tensors = f"{len(named)} named tensor{'s' * (len(named) > 1)}"
    message = f"{told}: un-pruning would re-prune the {tensors}, and the others stay dense"
    return [Finding("ok", "mask", message), *_beside(mask, named, rule)]


def _beside(mask: Mask, named: list[str], rule: Rule) -> list[Finding]:
    """A warning where the mask also names what its rule does not rank (coupled channels bring biases and scales)."""
    from expunge.models import Finding

    others = [] if rule.granularity == "filter" else [name for name in mask.kept if name not in named]
    if not others:
        return []
    message = (
        f"{others[0]} is masked too, which is no weight of a {' or '.join(rule.layers)} layer ({len(others)} such)"
    )
    hint = "the rule does not rank it; state the layers that were pruned in model.pruned, where that is not so"
    return [Finding("warning", "mask", message, hint)]


def _shape(trained: Trained) -> tuple[int, ...]:
    """Shape of one record that the model takes."""
    return tuple(trained.provenance.architecture["input_shape"])
