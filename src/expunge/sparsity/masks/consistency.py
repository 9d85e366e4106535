"""Validation of masks: whether a mask agrees with the pattern, sparsity and scope that its provenance records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from expunge.core.errors import MaskError, TrustError
from expunge.core.mask import Mask
from expunge.sparsity.channels.layers import prunable_weights

from .allocation import Count, get_scope
from .granularity import erk_factor, get_granularity
from .recorded import permit_name, permit_rule, recorded_granularity
from .rule import records_rule, rule_of


def check_recorded_rule(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a mask that contradicts the sparsity, the pattern or the scope that its provenance records.

    Un-pruning repeats the recorded rule, so with wrong provenance it would silently make a different mask. Nothing is
    checked if the criterion or the layers are not recorded, or if the rule names code that the owner did not agree to
    run, because un-pruning cannot repeat such a rule. Because of rounding, counts may differ by one weight, or coupled
    channel, per layer (with ERK by one for every layer). The fractions of the layers are not compared if a method
    pruned further weights after the rule was applied (`details.thinned`): they follow no rule.

    Raises:
        MaskError: the mask contradicts its provenance.
        ConfigError: unknown scope, granularity or layer type.
    """
    provenance = mask.provenance
    if not records_rule(provenance):
        return
    try:
        permit_rule(provenance)
        counts = count_ranked(mask, model, provenance.layers, input_shape)
    except (MaskError, TrustError):  # no such code or layer, or the network cannot be traced
        return
    if not counts:
        return
    rule = rule_of(record_sparsity(mask, model, input_shape))
    granularity, unit = get_granularity(rule.granularity), get_granularity(rule.granularity).unit_name
    weights = prunable_weights(model, provenance.layers)
    others = granularity.find_unstructured({name: mask.kept[name] for name in weights if name in mask.kept})
    if others:
        raise MaskError(
            f"the mask does not have its recorded pattern {granularity.name}", where=f"granularity: {others[0]}"
        )
    pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
    wanted = provenance.details.get("sparsity")
    if wanted is not None and abs(pruned - wanted * total) > len(counts) + 1e-6 * total:
        raise MaskError(
            f"the recorded sparsity of the mask is {wanted:g}, but {pruned} of {total} {unit} are pruned "
            f"({pruned / total:.4g})",
            where="provenance.details.sparsity",
            hint="record the sparsity that the mask has; un-pruning would prune to the recorded one",
        )
    if "thinned" in provenance.details:
        return
    check_counts = get_scope(rule.scope).check_counts
    if check_counts is not None and granularity.own_scope is None:
        check_counts(counts, {name: erk_factor(weights, name) for name in counts}, unit)


def count_ranked(mask: Mask, model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> dict[str, Count]:
    """Count what was ranked when a mask was made: weights or coupled channels, as far as the mask names them.

    Returns:
        By layer (or pool of channels): number pruned, number in total.

    Raises:
        MaskError: there is no such layer, or the coupled channels cannot be found.
    """
    return recorded_granularity(mask.provenance).count(mask.kept, model, layers, input_shape)


def ranked_sparsity(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> float:
    """The sparsity with which a mask's rule makes it: the recorded one, or the pruned fraction of what was ranked.

    Counted are the weights, or coupled channels, of the layers that were pruned and that the mask names; biases,
    BatchNorm and other layers are not. A pattern has its own sparsity.

    Args:
        mask: a mask whose provenance records the pruned layer types.
        model: the network that the mask belongs to.
        input_shape: shape of one record (coupled channels need it).

    Raises:
        MaskError: the provenance does not record which layers were pruned, the mask names no weight of them, or the
            coupled channels cannot be found.
        ConfigError: unknown granularity or layer type.

    Example:
        The fraction of pruned coupled channels, for a mask that does not record it:

        >>> from torch import nn
        >>> from expunge.core.mask import Mask, MaskProvenance
        >>> from expunge.sparsity import Rule, make_mask
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> rule = Rule("filter-l2", "filter", layers=("conv",), sparsity=0.5)
        >>> mask, _ = make_mask(model, rule, input_shape=(1, 8, 8))
        >>> unrecorded = Mask(mask.kept, MaskProvenance("filter-l2", granularity="filter", layers=("conv",)))
        >>> ranked_sparsity(unrecorded, model, (1, 8, 8))
        0.5
    """
    provenance = mask.provenance
    recorded = provenance.details.get("sparsity")
    if recorded is not None:
        return float(recorded)
    permit_name(provenance.granularity)
    granularity = get_granularity(provenance.granularity)
    if granularity.fixed_sparsity is not None:
        return granularity.fixed_sparsity
    counts = count_ranked(mask, model, provenance.layers, input_shape) if provenance.layers else {}
    if not counts:
        raise MaskError(
            "the mask does not record which layers were pruned, or names no weight of them",
            where=f"provenance.layers {list(provenance.layers)}",
            hint="record the layers (expunge.sparsity.PrunedBy sets them at adoption)",
        )
    return _pruned_fraction(counts)


def _pruned_fraction(counts: Mapping[str, Count]) -> float:
    """The pruned fraction, by the same formula as `Mask.sparsity`."""
    total = sum(total for _, total in counts.values())
    return 1.0 - (total - sum(pruned for pruned, _ in counts.values())) / total


def thinned_sparsity(after: Mask, before: Mask, model: nn.Module, input_shape: Sequence[int]) -> float | None:
    """The sparsity of `after` among what the rule ranks, if `after` prunes more of it than `before`; else None.

    None for a granularity with a fixed sparsity too.
    """
    if recorded_granularity(before.provenance).fixed_sparsity is not None:
        return None
    layers = before.provenance.layers
    pruned, total = (
        sum(column) for column in zip(*count_ranked(after, model, layers, input_shape).values(), strict=True)
    )
    earlier = sum(pruned for pruned, _ in count_ranked(before, model, layers, input_shape).values())
    return pruned / total if pruned > earlier else None


def record_sparsity(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> Mask:
    """Return the mask with its sparsity recorded, which un-pruning needs; unchanged if it cannot be found."""
    if mask.provenance.details.get("sparsity") is not None:
        return mask
    try:
        fraction = ranked_sparsity(mask, model, input_shape)
    except (MaskError, TrustError):
        return mask
    details = {**mask.provenance.details, "sparsity": fraction}
    return mask if fraction >= 1 else Mask(mask.kept, dataclasses.replace(mask.provenance, details=details))
