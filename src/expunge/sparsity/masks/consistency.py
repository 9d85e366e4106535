"""Validation of masks: whether a mask agrees with the pattern, sparsity and scope that its provenance records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.sparsity.channels.groups import find_channels, find_kept_units
from expunge.sparsity.channels.layers import prunable_weights
from expunge.sparsity.criteria.registry import criterion_names

from .allocation import erk_counts
from .granularity import PatternGranularity, erk_factor, get_granularity, obeys_pattern
from .rule import rule_of

#: Number of pruned weights (or coupled channels) of a layer, and number of all.
Count = tuple[int, int]


def check_recorded_rule(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a mask that contradicts the sparsity, the pattern or the scope that its provenance records.

    Un-pruning repeats the recorded rule, so with wrong provenance it would silently make a different mask. Nothing is
    checked if the criterion or the layers are not recorded, because un-pruning cannot repeat such a rule. Because of
    rounding, counts may differ by one weight, or coupled channel, per layer (with ERK by one for every layer). The
    fractions of the layers are not compared if a method pruned further weights after the rule was applied
    (`details.thinned`): they follow no rule.

    Raises:
        MaskError: the mask contradicts its provenance.
        ConfigError: unknown scope, granularity or layer type.
    """
    provenance = mask.provenance
    if provenance.criterion not in criterion_names() or not provenance.layers:
        return
    try:
        counts = count_ranked(mask, model, provenance.layers, input_shape)
    except MaskError:  # the network cannot be traced, or has no such layer
        return
    if not counts:
        return
    granularity = get_granularity(rule_of(record_sparsity(mask, model, input_shape)).granularity)
    if isinstance(granularity, PatternGranularity):
        others = [name for name in counts if not obeys_pattern(mask.kept[name], granularity.n, granularity.m)]
        if others:
            raise MaskError(
                f"the mask does not have its recorded pattern {granularity.name}", where=f"granularity: {others[0]}"
            )
    pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
    unit = "coupled channels" if provenance.granularity == "filter" else "weights"
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
    if provenance.scope == "erk":
        _check_erk(counts, model, provenance.layers, unit)
    if provenance.scope != "layer":
        return
    low = max((pruned - 1) / total for pruned, total in counts.values())
    high = min((pruned + 1) / total for pruned, total in counts.values())
    if low > high:
        fractions = {name: pruned / total for name, (pruned, total) in counts.items()}
        least = min(fractions, key=lambda name: fractions[name])
        most = max(fractions, key=lambda name: fractions[name])
        raise MaskError(
            f"the recorded scope is layer (an equal fraction in every layer), but {100 * fractions[least]:.1f} % of "
            f"the {unit} of {least} are pruned and {100 * fractions[most]:.1f} % of {most}",
            where="scope",
            hint="record scope=global if one threshold was used; leave a layer that was not pruned out of the mask "
            "(docs/formats/mask.md)",
        )


def _check_erk(counts: Mapping[str, Count], model: nn.Module, layers: Sequence[str], unit: str) -> None:
    """Raise MaskError if the counts of the layers are not those of ERK for the same total."""
    weights = prunable_weights(model, layers)
    kept_counts = {name: total - pruned for name, (pruned, total) in counts.items()}
    factors = [erk_factor(weights, name) for name in counts]
    expected = erk_counts([total for _, total in counts.values()], factors, sum(kept_counts.values()))
    for (name, kept), wanted in zip(kept_counts.items(), expected, strict=True):
        if abs(kept - wanted) > len(counts):
            raise MaskError(
                f"the recorded scope is erk, which would keep {wanted} {unit} of the layer, but the mask keeps {kept}",
                where=f"scope: {name}",
                hint="record scope=global if one threshold was used",
            )


def count_ranked(mask: Mask, model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> dict[str, Count]:
    """Count what was ranked when a mask was made: weights or coupled channels, as far as the mask names them.

    Returns:
        By layer (or pool of channels): number pruned, number in total.

    Raises:
        MaskError: there is no such layer, or the coupled channels cannot be found.
    """
    if mask.provenance.granularity == "filter":
        channels = find_channels(model, input_shape)
        kept = find_kept_units(channels, dict(mask.kept))
        pools = channels.pools(layers)
        return {
            name: (int((~kept[units]).sum()), len(units))
            for name, units in pools.items()
            if any(part in mask.kept for part in name.split("+"))
        }
    return {
        name: (int((~mask.kept[name]).sum()), mask.kept[name].numel())
        for name in prunable_weights(model, layers)
        if name in mask.kept
    }


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
    granularity = get_granularity(provenance.granularity)
    if isinstance(granularity, PatternGranularity):
        return granularity.sparsity(None)
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

    None for a pattern too: it has one sparsity.
    """
    if ":" in before.provenance.granularity:
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
    except MaskError:
        return mask
    details = {**mask.provenance.details, "sparsity": fraction}
    return mask if fraction >= 1 else Mask(mask.kept, dataclasses.replace(mask.provenance, details=details))
