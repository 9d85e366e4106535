"""One mask from criterion x granularity x scope: the step that every schedule repeats."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.sparsity.channels.layers import kind_names, prunable
from expunge.sparsity.criteria.registry import Batch, Material, Scores, criterion_names, get_criterion, score
from expunge.training.loop import Objective, cross_entropy

from .allocation import check_layers, check_scope
from .granularity import Ranking, get_granularity


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a mask is made, apart from when.

    Attributes:
        criterion: what ranks; see `criterion_names`.
        granularity: `weight`, `filter` or a pattern such as `2:4`.
        scope: `global`, `layer` or `erk` (patterns have their own).
        layers: kinds of layers that take part, `conv` and `linear`.
        sparsity: share to remove, of weights or of coupled channels; None: 0.95, or that of the pattern.
    """

    criterion: str = "magnitude"
    granularity: str = "weight"
    scope: str = "global"
    layers: tuple[str, ...] = ("conv",)
    sparsity: float | None = None

    def checked(self) -> Rule:
        """The rule with its sparsity and names resolved, or ConfigError / MaskError where they are wrong."""
        for key in ("criterion", "granularity", "scope"):
            if not isinstance(getattr(self, key), str):
                raise ConfigError(f"{key} is a name, not {getattr(self, key)!r}", where=key)
        layers = kind_names(self.layers)
        share = self.sparsity
        if share is not None and (isinstance(share, bool) or not isinstance(share, numbers.Real)):
            raise ConfigError(f"sparsity is a share in [0, 1), not {share!r}", where="sparsity")
        check_scope(self.scope)
        kind, criterion = get_granularity(self.granularity), get_criterion(self.criterion)
        return dataclasses.replace(self, criterion=criterion.name, layers=layers, sparsity=kind.sparsity(self.sparsity))


def make_mask(
    model: nn.Module,
    rule: Rule,
    *,
    input_shape: tuple[int, ...] | None = None,
    batches: Callable[[], Iterable[Batch]] | None = None,
    objective: Objective = cross_entropy,
    batch_statistics: bool = False,
    seed: int = 0,
    within: Mask | None = None,
    only: Collection[str] | None = None,
    sparsity: float | None = None,
    schedule: str = "one-shot",
    details: Mapping[str, Any] | None = None,
) -> tuple[Mask, Scores]:
    """Score the weights of a network and select those that stay.

    Args:
        model: the network; not modified.
        rule: criterion, granularity, scope, layers, sparsity.
        input_shape: shape of one record (filters and SynFlow need it).
        batches: called for the records that a data-driven criterion reads.
        objective: mean loss of `B x K` logits.
        batch_statistics: score with the statistics of the batch (at initialisation).
        seed: for criteria that draw.
        within: an earlier mask: the dead stay dead, and weights that it does not name take no part.
        only: names of weights that may take part, where not all of the rule's layers do.
        sparsity: overrides the rule's (a step of an iterative schedule).
        schedule: recorded in the mask.
        details: recorded in the mask.

    Returns:
        The mask, and the scores that were ranked.

    Raises:
        MaskError: the sparsity cannot be reached, a layer would lose every weight, scores are missing or not finite.
        ConfigError: unknown criterion, granularity, scope or kind of layer.
    """
    rule = rule.checked()
    wanted = get_granularity(rule.granularity).sparsity(rule.sparsity) if sparsity is None else sparsity
    weights = prunable(model, rule.layers)
    for names in (only, None if within is None else within.alive):
        weights = {name: weight for name, weight in weights.items() if names is None or name in names}
    if not weights:
        raise MaskError(
            f"none of the weights that may take part lies in the layers {', '.join(rule.layers)}", where="layers"
        )
    material = Material(model, weights, batches, input_shape, objective, batch_statistics, seed)
    scores = score(rule.criterion, material)
    return mask_from_scores(
        rule, scores, material, sparsity=wanted, within=within, schedule=schedule, details=details
    ), scores


def mask_from_scores(
    rule: Rule,
    scores: Scores,
    material: Material,
    *,
    sparsity: float | None = None,
    within: Mask | None = None,
    schedule: str = "one-shot",
    details: Mapping[str, Any] | None = None,
) -> Mask:
    """The mask that a rule makes of given scores; arguments as in `make_mask`."""
    rule = rule.checked()
    kind, criterion = get_granularity(rule.granularity), get_criterion(rule.criterion)
    wanted = kind.sparsity(rule.sparsity) if sparsity is None else sparsity
    ranking = Ranking(criterion, scores, material, rule.layers, None if within is None else within.alive)
    alive: dict[str, torch.Tensor] = kind.select(ranking, wanted, rule.scope)
    if within is not None:  # more may be dead already than the sparsity asks for
        alive = {name: mask & within.alive.get(name, mask) for name, mask in alive.items()}
    check_layers({name: mask for name, mask in alive.items() if mask.dim() > 1}, wanted)
    left_out = sorted(set(material.weights) - set(alive))
    provenance = MaskProvenance(
        criterion=rule.criterion,
        scope="group" if ":" in rule.granularity else rule.scope,
        granularity=rule.granularity,
        layers=rule.layers,
        schedule=schedule,
        scores_hash=hash_tensors(scores),
        details={"sparsity": wanted, **({"left_out": left_out} if left_out else {}), **(details or {})},
    )
    return Mask(alive, provenance)


def rule_of(mask: Mask, sparsity: float | None = None) -> Rule:
    """The rule that made a mask, from its provenance, with the sparsity that was asked for.

    Args:
        mask: it says which rule.
        sparsity: where it states none; None: a pattern's own, or the share of dead weights in the tensors of two axes
            and more (biases are never ranked). The share of coupled channels cannot be seen without the network
            (`expunge.sparsity.ranked_sparsity`).

    Raises:
        MaskError: the provenance does not say.
    """
    provenance = mask.provenance
    if provenance.criterion not in criterion_names() or not provenance.layers:
        raise MaskError(
            "the mask does not say by which criterion and in which layers it was made",
            where=f"criterion {provenance.criterion!r}, layers {list(provenance.layers)}",
            hint="record criterion, scope and layers in its provenance (expunge.sparsity.interop.formats takes them)",
        )
    wanted = provenance.details.get("sparsity")
    if wanted is None:
        wanted = _share_of_weights(mask) if sparsity is None else sparsity
    return Rule(
        provenance.criterion,
        provenance.granularity,
        "global" if provenance.scope == "group" else provenance.scope,
        tuple(provenance.layers),
        None if wanted is None else float(wanted),
    ).checked()


def _share_of_weights(mask: Mask) -> float | None:
    """The sparsity of a mask that states none, as far as it can be seen; None for a pattern, which has its own."""
    if ":" in mask.provenance.granularity:
        return None
    if mask.provenance.granularity == "filter":
        raise MaskError(
            "the mask does not say which share of the coupled channels was removed",
            where="provenance.details.sparsity",
            hint="record it; expunge.sparsity.ranked_sparsity counts it, and adoption records it",
        )
    return Mask({name: alive for name, alive in mask.alive.items() if alive.dim() > 1}, mask.provenance).sparsity
