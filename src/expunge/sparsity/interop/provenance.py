"""Provenance of an imported mask: its granularity (coupled channels, N:M pattern or single weights) and its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, name_fields, unknown_name_hint
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.registry import CRITERIA, is_reference
from expunge.core.show import repr_fields
from expunge.core.trained import plain_state
from expunge.models import Architecture
from expunge.sparsity.channels.groups import expand_units, find_channels
from expunge.sparsity.channels.layers import check_layer_types, prunable_weights
from expunge.sparsity.criteria.registry import criterion_names, get_criterion
from expunge.sparsity.masks.allocation import BoolTensors, get_scope
from expunge.sparsity.masks.granularity import get_granularity
from expunge.sparsity.masks.recorded import DECLARE_HINT, recorded_granularity

from .formats import find_layer_types, find_pattern

#: The criterion of a mask that does not record how it was made.
UNKNOWN = "unknown"


@name_fields("PrunedBy")
@dataclasses.dataclass(frozen=True)
class PrunedBy:
    """How a model was pruned, as declared by its owner.

    Only expunge's own files record this, and un-pruning needs it. Where a file records it too, both must agree.

    Attributes:
        criterion: the criterion, a name of `criterion_names()`, or `unknown`.
        scope: `global`, `layer` or `erk`.
        layers: layer types that were pruned; if empty, those all of whose weights the mask names.
    """

    criterion: str = UNKNOWN
    scope: str = "global"
    layers: tuple[str, ...] = ()

    __repr__ = repr_fields

    @classmethod
    def from_value(cls, given: Any) -> PrunedBy:
        """Convert the argument `pruned=`: a `PrunedBy`, a mapping of its fields, or None (nothing is known).

        Raises:
            ConfigError: it is something else, or a field is unknown.

        Example:
            >>> from expunge.sparsity import PrunedBy
            >>> PrunedBy.from_value({"criterion": "magnitude", "layers": ["conv"]}).layers
            ('conv',)
        """
        if given is None or isinstance(given, PrunedBy):
            return given or cls()
        if not isinstance(given, Mapping):
            what = f"is {given!r:.60}, which does not say how the model was pruned"
            raise ConfigError(what, where="pruned", hint=DECLARE_HINT)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"has no field {name!r}", where="pruned", hint=unknown_name_hint(str(name), known))
        fields = dict(given)
        if isinstance(fields.get("layers"), (list, tuple)):
            fields["layers"] = tuple(fields["layers"])
        return cls(**fields)

    def validate(self) -> PrunedBy:
        """Return the declaration with `layers` as a tuple and names as registered.

        Raises:
            ConfigError: unknown names or wrong types.
            TrustError: a name is `package.module:name`, and the owner did not agree to it.
        """
        criterion = self.criterion
        if criterion != UNKNOWN:
            if criterion not in CRITERIA and not is_reference(criterion):
                hint = unknown_name_hint(criterion, [UNKNOWN, *criterion_names()])
                raise ConfigError(f"unknown criterion {criterion!r}", where="pruned.criterion", hint=hint)
            criterion = get_criterion(criterion).name
        layers = check_layer_types(self.layers, "pruned.layers")
        return PrunedBy(criterion, get_scope(self.scope).name, layers)


def infer_mask(
    kept: BoolTensors,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    declared: PrunedBy,
    *,
    file_format: str,
) -> Mask:
    """Build a mask with the granularity that its pattern shows and the layer types that it covers.

    Args:
        kept: bool tensors by parameter name, True where kept.
        tensors: the weights.
        architecture: the network that they belong to.
        declared: the owner's declaration.
        file_format: recorded as the schedule and in the details.
    """
    model = architecture.build_blank()
    layers = declared.layers or _find_covered_types(kept, model)
    details: dict[str, Any] = {"imported_format": file_format}
    granularity, scope = "weight", declared.scope
    coupled = _match_channels(kept, tensors, model, architecture, layers)
    pattern = None if coupled is not None else find_pattern(kept)
    if coupled is not None:
        granularity, kept, details["sparsity"] = "filter", *coupled
    elif pattern is not None:
        (n, m) = pattern
        granularity = f"{n}:{m}"
        scope = get_granularity(granularity).record_scope(scope)
        dense = sorted(name for name, tensor in kept.items() if tensor.all())
        details |= {"sparsity": 1 - n / m, **({"left_out": dense} if dense else {})}
        kept = {name: tensor for name, tensor in kept.items() if name not in dense}
    return Mask(kept, MaskProvenance(declared.criterion, scope, granularity, layers, file_format, details=details))


def _find_covered_types(kept: BoolTensors, model: nn.Module) -> tuple[str, ...]:
    """Return the layer types all of whose weights the mask names; none if it names any other weight."""
    named = {name for name, tensor in kept.items() if tensor.dim() > 1}
    types = tuple(name for name in find_layer_types(model) if set(prunable_weights(model, [name])) & named)
    return types if types and set(prunable_weights(model, types)) == named else ()


def merge_declaration(mask: Mask, declared: PrunedBy | None, model: nn.Module, *, where: object) -> Mask:
    """Complete the provenance of a mask from the owner's declaration if its criterion is `unknown`.

    Args:
        mask: a mask with provenance from a file.
        declared: the owner's declaration, or None.
        model: the network that the mask belongs to.
        where: the file, for error messages.

    Raises:
        MaskError: the declaration contradicts the file.
    """
    recorded = mask.provenance
    if declared is None:
        return mask
    granularity = recorded_granularity(recorded)
    if recorded.criterion == UNKNOWN:
        layers = declared.layers or recorded.layers or _find_covered_types(dict(mask.kept), model)
        scope = granularity.record_scope(declared.scope)
        provenance = dataclasses.replace(recorded, criterion=declared.criterion, scope=scope, layers=tuple(layers))
        return Mask(mask.kept, provenance)
    pairs = {
        "criterion": (
            recorded.criterion,
            recorded.criterion if declared.criterion == UNKNOWN else declared.criterion,
        ),
        "scope": (recorded.scope, recorded.scope if recorded.scope == granularity.own_scope else declared.scope),
        "layers": (sorted(recorded.layers), sorted(declared.layers or recorded.layers)),
    }
    for key, (in_file, by_owner) in pairs.items():
        if in_file != by_owner:
            raise MaskError(
                f"the file records {key} {in_file} for its mask, but model.pruned declares {by_owner}",
                where=f"{where}: {key}",
                hint="leave model.pruned out: the file records how the model was pruned",
            )
    return mask


def _match_channels(
    kept: BoolTensors,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    architecture: Architecture,
    layers: tuple[str, ...],
) -> tuple[BoolTensors, float] | None:
    """Match a mask with coupled channels.

    Returns:
        The mask of the coupled channels and the fraction of them that is pruned; None if rows are pruned in part, or if
        a row, bias or shift of a pruned channel is not zero.
    """
    rows = {name: tensor.reshape(len(tensor), -1) for name, tensor in kept.items() if tensor.dim() > 1}
    if not all(bool((r.all(1) | ~r.any(1)).all()) for r in rows.values()):
        return None
    try:
        channels = find_channels(model, architecture.input_shape)
        pools = channels.pools(layers or find_layer_types(model))
    except MaskError:
        return None
    kept_units = np.zeros(channels.units, dtype=bool)
    for name, axis in channels.output_axes().items():
        if name not in rows and len(plain_state(model)[name].shape) < 2:
            continue
        in_unit = axis >= 0
        kept_rows = rows[name].any(1).numpy() if name in rows else np.ones(len(axis), dtype=bool)
        np.logical_or.at(kept_units, axis[in_unit], kept_rows[in_unit])
    ranked = np.zeros(channels.units, dtype=bool)
    ranked[np.concatenate(list(pools.values()))] = True
    kept_units |= ~ranked
    coupled = expand_units(channels, kept_units, ranked)
    explained = all(
        name in coupled and not bool((coupled[name] & ~tensor).any())
        for name, tensor in kept.items()
        if not tensor.all()
    )
    zero = all(bool((tensors[name][~tensor] == 0).all()) for name, tensor in coupled.items())
    if kept_units.all() or not (explained and zero):
        return None
    return coupled, float((~kept_units[ranked]).mean())
