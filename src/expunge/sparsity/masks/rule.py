"""One mask from criterion x granularity x scope: the step that every schedule repeats."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.registry import CRITERIA, is_reference
from expunge.core.show import repr_fields
from expunge.sparsity.channels.layers import parse_layer_types, prunable_weights
from expunge.sparsity.criteria.registry import Batch, Scores, ScoringContext, compute_scores, get_criterion
from expunge.training.loop import Objective, cross_entropy

from .allocation import check_no_empty_layer, get_scope
from .granularity import Granularity, Ranking, get_granularity, select_kept
from .recorded import DECLARE_HINT, permit_rule


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a mask is made, without the schedule.

    Attributes:
        criterion: what ranks weights or channels; see `criterion_names`.
        granularity: what is pruned as one unit; see `granularity_names`.
        scope: over which weights scores are compared; see `scope_names` (a pattern compares them within its groups).
        layers: layer types that are pruned, `conv` and `linear`.
        sparsity: fraction of weights, or of coupled channels, to prune; None: 0.95, or that of the pattern.
    """

    criterion: str = "magnitude"
    granularity: str = "weight"
    scope: str = "global"
    layers: tuple[str, ...] = ("conv",)
    sparsity: float | None = None

    __repr__ = repr_fields

    def validate(self) -> Rule:
        """Return the rule with its sparsity resolved and its names as registered.

        Raises:
            ConfigError: unknown criterion, granularity or scope, or a value of the wrong type.
            MaskError: a sparsity that is not a fraction in [0, 1), or that the granularity does not have.
        """
        for key in ("criterion", "granularity", "scope"):
            if not isinstance(getattr(self, key), str):
                raise ConfigError(f"{key} must be a name, not {getattr(self, key)!r}", where=key)
        layers = parse_layer_types(self.layers)
        fraction = self.sparsity
        if fraction is not None and (isinstance(fraction, bool) or not isinstance(fraction, numbers.Real)):
            raise ConfigError(f"sparsity must be a fraction in [0, 1), not {fraction!r}", where="sparsity")
        granularity = get_granularity(self.granularity)
        return Rule(
            get_criterion(self.criterion).name,
            granularity.name,
            get_scope(self.scope).name,
            layers,
            granularity.sparsity(self.sparsity),
        )


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
    """Score the weights of a network and select those that are kept.

    Args:
        model: the network; not modified.
        rule: criterion, granularity, scope, layers, sparsity.
        input_shape: shape of one record (granularity `filter` and SynFlow need it).
        batches: called for the records that a data-driven criterion reads.
        objective: mean loss of `B x K` logits.
        batch_statistics: score with the BatchNorm statistics of the batch (at initialisation).
        seed: for criteria that draw random numbers.
        within: an earlier mask: what it prunes stays pruned, and weights that it does not name are not ranked.
        only: names of the weights that are ranked, if not all weights of the rule's layers are.
        sparsity: overrides the rule's sparsity (for a step of an iterative schedule).
        schedule: recorded in the mask.
        details: recorded in the mask.

    Returns:
        The mask, and the scores that were ranked.

    Raises:
        MaskError: the sparsity cannot be reached, a layer would lose every weight, scores are missing or not finite.
        ConfigError: unknown criterion, granularity, scope or layer type.

    Example:
        >>> from torch import nn
        >>> from expunge.sparsity import Rule
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> mask, scores = make_mask(model, Rule("magnitude", "weight", "layer", ("linear",), sparsity=0.75))
        >>> mask.kept_count, mask.total, mask.layer_density()
        (48, 192, {'0.weight': 0.25, '2.weight': 0.25})
    """
    rule = rule.validate()
    wanted = get_granularity(rule.granularity).sparsity(rule.sparsity) if sparsity is None else sparsity
    weights = prunable_weights(model, rule.layers)
    for names in (only, None if within is None else within.kept):
        weights = {name: weight for name, weight in weights.items() if names is None or name in names}
    if not weights:
        raise MaskError(
            f"none of the weights that may be pruned lies in the layers {', '.join(rule.layers)}", where="layers"
        )
    context = ScoringContext(model, weights, batches, input_shape, objective, batch_statistics, seed)
    scores = compute_scores(rule.criterion, context)
    return mask_from_scores(
        rule, scores, context, sparsity=wanted, within=within, schedule=schedule, details=details
    ), scores


def mask_from_scores(
    rule: Rule,
    scores: Scores,
    context: ScoringContext,
    *,
    sparsity: float | None = None,
    within: Mask | None = None,
    schedule: str = "one-shot",
    details: Mapping[str, Any] | None = None,
) -> Mask:
    """Apply a rule to given scores; the other arguments are those of `make_mask`."""
    rule = rule.validate()
    granularity, criterion = get_granularity(rule.granularity), get_criterion(rule.criterion)
    wanted = granularity.sparsity(rule.sparsity) if sparsity is None else sparsity
    ranking = Ranking(criterion, scores, context, rule.layers, None if within is None else within.kept)
    kept = select_kept(granularity, ranking, wanted, rule.scope)
    if within is not None:  # more may be pruned already than this sparsity prunes
        kept = {name: mask & within.kept.get(name, mask) for name, mask in kept.items()}
    check_no_empty_layer({name: mask for name, mask in kept.items() if mask.dim() > 1}, wanted)
    left_out = sorted(set(context.weights) - set(kept))
    provenance = MaskProvenance(
        criterion=rule.criterion,
        scope=granularity.record_scope(rule.scope),
        granularity=rule.granularity,
        layers=rule.layers,
        schedule=schedule,
        scores_hash=hash_tensors(scores),
        details={"sparsity": wanted, **({"left_out": left_out} if left_out else {}), **(details or {})},
    )
    return Mask(kept, provenance)


def rule_of(mask: Mask, sparsity: float | None = None) -> Rule:
    """The rule that made a mask, from its provenance, with the requested sparsity.

    Args:
        mask: a mask whose provenance records criterion and layers.
        sparsity: used if the provenance records no sparsity. None: the pattern's own, or the fraction of pruned weights
            in the tensors of two or more axes (biases are never ranked). The fraction of coupled channels cannot be
            found without the network (`expunge.sparsity.ranked_sparsity`).

    Raises:
        MaskError: the provenance does not record the rule.
        TrustError: it names code that the owner did not agree to run.

    Example:
        >>> from torch import nn
        >>> from expunge.sparsity import Rule, make_mask
        >>> mask, _ = make_mask(nn.Linear(8, 4), Rule(layers=("linear",), sparsity=0.5))
        >>> rule_of(mask)
        Rule(criterion='magnitude', granularity='weight', scope='global', layers=('linear',), sparsity=0.5)
    """
    provenance = mask.provenance
    if not records_rule(provenance):
        raise MaskError(
            "the mask does not record by which criterion and in which layers it was made",
            where=f"criterion {provenance.criterion!r}, layers {list(provenance.layers)}",
            hint=DECLARE_HINT,
        )
    permit_rule(provenance)
    granularity = get_granularity(provenance.granularity)
    wanted = provenance.details.get("sparsity")
    if wanted is None:
        wanted = _pruned_weight_fraction(mask, granularity) if sparsity is None else sparsity
    return Rule(
        provenance.criterion,
        provenance.granularity,
        granularity.read_scope(provenance.scope),
        tuple(provenance.layers),
        None if wanted is None else float(wanted),
    ).validate()


def records_rule(provenance: MaskProvenance) -> bool:
    """Whether a mask records by which criterion and in which layers it was made."""
    criterion = provenance.criterion
    return (criterion in CRITERIA or is_reference(criterion)) and bool(provenance.layers)


def _pruned_weight_fraction(mask: Mask, granularity: Granularity) -> float | None:
    """Sparsity of a mask that records none, counted from its tensors; None if the granularity has a fixed one."""
    if granularity.fixed_sparsity is not None:
        return None
    if not granularity.counts_weights:
        raise MaskError(
            f"the mask does not record which fraction of the {granularity.unit_name} was pruned",
            where="provenance.details.sparsity",
            hint="record it; expunge.sparsity.ranked_sparsity counts it, and adopt_weights records it",
        )
    return Mask({name: kept for name, kept in mask.kept.items() if kept.dim() > 1}, mask.provenance).sparsity
