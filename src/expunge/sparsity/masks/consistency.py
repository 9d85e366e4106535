"""Whether a mask is what the rule that it states would make: pattern, sparsity, and its share in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.sparsity.channels.groups import find_channels, unit_alive
from expunge.sparsity.channels.layers import prunable
from expunge.sparsity.criteria.registry import criterion_names

from .allocation import erk_counts
from .granularity import PatternGranularity, get_granularity, obeys_pattern, pool_factor
from .rule import rule_of

Count = tuple[int, int]


def check_stated(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> None:
    """Refuse a mask that contradicts the sparsity, the pattern or the scope that its provenance states.

    Un-pruning repeats the stated rule, so it would quietly make another mask of such a statement. Where it could not
    repeat any (the criterion or the layers are not stated), nothing is looked at. Counts may differ by one weight, or
    coupled channel, a layer (with ERK by one for every layer), as rounding makes them. Shares of layers are not
    compared where a method has thinned the mask after its rule had made it: they are no rule's.

    Raises:
        MaskError: it does.
        ConfigError: scope, granularity or kind of layer are unknown.
    """
    provenance = mask.provenance
    if provenance.criterion not in criterion_names() or not provenance.layers:
        return
    try:
        counts = ranked_counts(mask, model, provenance.layers, input_shape)
    except MaskError:  # the network cannot be traced, or has no such layer
        return
    if not counts:
        return
    kind = get_granularity(rule_of(with_sparsity(mask, model, input_shape)).granularity)
    if isinstance(kind, PatternGranularity):
        others = [name for name in counts if not obeys_pattern(mask.alive[name], kind.n, kind.m)]
        if others:
            raise MaskError(f"the mask is not {kind.name}, as it says", where=f"granularity: {others[0]}")
    dead, total = (sum(column) for column in zip(*counts.values(), strict=True))
    what = "coupled channels" if provenance.granularity == "filter" else "weights"
    wanted = provenance.details.get("sparsity")
    if wanted is not None and abs(dead - wanted * total) > len(counts) + 1e-6 * total:
        raise MaskError(
            f"the mask says that it was made with sparsity {wanted:g}, and {dead} of {total} {what} are masked "
            f"({dead / total:.4g})",
            where="provenance.details.sparsity",
            hint="record the sparsity that the mask has; un-pruning would prune to the one that is stated",
        )
    if "thinned" in provenance.details:
        return
    if provenance.scope == "erk":
        _check_erk(counts, model, provenance.layers, what)
    if provenance.scope != "layer":
        return
    low = max((dead - 1) / total for dead, total in counts.values())
    high = min((dead + 1) / total for dead, total in counts.values())
    if low > high:
        shares = {name: dead / total for name, (dead, total) in counts.items()}
        least, most = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
        raise MaskError(
            f"the stated scope is layer, an equal share in every layer, but {100 * shares[least]:.1f} % of the {what} "
            f"of {least} are masked and {100 * shares[most]:.1f} % of {most}",
            where="scope",
            hint="state scope=global where one threshold was used; a layer that was not pruned is best left out of the "
            "mask (docs/formats/mask.md)",
        )


def _check_erk(counts: Mapping[str, Count], model: nn.Module, layers: Sequence[str], what: str) -> None:
    """Raise MaskError where the layers' shares are not ERK's for as many as are alive."""
    weights = prunable(model, layers)
    alive = {name: total - dead for name, (dead, total) in counts.items()}
    factors = [pool_factor(weights, name) for name in counts]
    expected = erk_counts([total for _, total in counts.values()], factors, sum(alive.values()))
    for (name, kept), wanted in zip(alive.items(), expected, strict=True):
        if abs(kept - wanted) > len(counts):
            raise MaskError(
                f"the stated scope is erk, by which {wanted} {what} of the layer would live, and {kept} do",
                where=f"scope: {name}",
                hint="state scope=global where one threshold was used",
            )


def ranked_counts(mask: Mask, model: nn.Module, layers: Sequence[str], input_shape: Sequence[int]) -> dict[str, Count]:
    """What competed when a mask was made, as far as it names it: dead and all, weights or coupled channels, by layer.

    Raises:
        MaskError: there is no such layer, or the channels cannot be followed.
    """
    if mask.provenance.granularity == "filter":
        channels = find_channels(model, input_shape)
        kept = unit_alive(channels, dict(mask.alive))
        pools = channels.pools(layers)
        return {
            name: (int((~kept[units]).sum()), len(units))
            for name, units in pools.items()
            if any(part in mask.alive for part in name.split("+"))
        }
    return {
        name: (int((~mask.alive[name]).sum()), mask.alive[name].numel())
        for name in prunable(model, layers)
        if name in mask.alive
    }


def ranked_sparsity(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> float:
    """The sparsity at which its rule makes a mask: the stated one, or the dead share of what the rule ranks.

    Weights count, or coupled channels, of the layers that took part and that the mask names; biases, BatchNorm and
    other layers do not. A pattern has its own.

    Args:
        mask: with the layers that took part in its provenance.
        model: the network that it belongs to.
        input_shape: shape of one record (coupled channels need it).

    Raises:
        MaskError: the provenance does not say which layers took part, the mask names nothing in them, or the channels
            cannot be followed.
        ConfigError: granularity or kind of layer are unknown.
    """
    provenance = mask.provenance
    stated = provenance.details.get("sparsity")
    if stated is not None:
        return float(stated)
    kind = get_granularity(provenance.granularity)
    if isinstance(kind, PatternGranularity):
        return kind.sparsity(None)
    counts = ranked_counts(mask, model, provenance.layers, input_shape) if provenance.layers else {}
    if not counts:
        raise MaskError(
            "the mask does not say which layers took part, or names nothing in them",
            where=f"provenance.layers {list(provenance.layers)}",
            hint="record the layers (expunge.sparsity.PrunedBy tells them at adoption)",
        )
    return _share(counts)


def _share(counts: Mapping[str, Count]) -> float:
    """The dead share, by the formula of `Mask.sparsity`."""
    total = sum(total for _, total in counts.values())
    return 1.0 - (total - sum(dead for dead, _ in counts.values())) / total


def thinner(after: Mask, before: Mask, model: nn.Module, input_shape: Sequence[int]) -> float | None:
    """The sparsity of what the rule ranks, where `after` has fewer of it alive than `before`; else None.

    A pattern has one sparsity, and is never thinner.
    """
    if ":" in before.provenance.granularity:
        return None
    layers = before.provenance.layers
    dead, total = (
        sum(column) for column in zip(*ranked_counts(after, model, layers, input_shape).values(), strict=True)
    )
    was = sum(gone for gone, _ in ranked_counts(before, model, layers, input_shape).values())
    return dead / total if dead > was else None


def with_sparsity(mask: Mask, model: nn.Module, input_shape: Sequence[int]) -> Mask:
    """The mask with its sparsity recorded, which un-pruning repeats; as it is where none can be told."""
    if mask.provenance.details.get("sparsity") is not None:
        return mask
    try:
        share = ranked_sparsity(mask, model, input_shape)
    except MaskError:
        return mask
    details = {**mask.provenance.details, "sparsity": share}
    return mask if share >= 1 else Mask(mask.alive, dataclasses.replace(mask.provenance, details=details))
