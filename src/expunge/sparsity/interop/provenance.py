"""The form of a mask that arrived: coupled channels, an N:M pattern or single weights; and which layers it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, unknown_name_hint
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.trained import plain_state
from expunge.models import Architecture
from expunge.sparsity.channels.groups import expand, find_channels
from expunge.sparsity.channels.layers import KINDS, kind_names, prunable
from expunge.sparsity.criteria.registry import criterion_names
from expunge.sparsity.masks.allocation import check_scope

from .formats import kinds_of, pattern_of

Alive = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class PrunedBy:
    """What the owner knows of how a model was pruned. No file but expunge's own says it, and un-pruning needs it.

    Where a file says it too, the two must agree.

    Attributes:
        criterion: what ranked the weights, a name of `criterion_names()`, or `unknown`.
        scope: where weights competed.
        layers: kinds of layers that took part; where empty, those all of whose weights the mask names.
    """

    criterion: str = "unknown"
    scope: str = "global"
    layers: tuple[str, ...] = ()

    def checked(self) -> PrunedBy:
        """Itself, or ConfigError for what is no name, or unknown."""
        known = ["unknown", *criterion_names()]
        if self.criterion not in known:
            hint = unknown_name_hint(self.criterion, known)
            raise ConfigError(f"unknown criterion {self.criterion!r}", where="pruned.criterion", hint=hint)
        check_scope(self.scope)
        layers = kind_names(self.layers, "pruned.layers")
        for kind in layers:
            if kind not in KINDS:
                hint = unknown_name_hint(kind, KINDS)
                raise ConfigError(f"unknown kind of layer {kind!r}", where="pruned.layers", hint=hint)
        return dataclasses.replace(self, layers=layers)


def provenanced(
    alive: Alive, tensors: Mapping[str, torch.Tensor], architecture: Architecture, told: PrunedBy, *, form: str
) -> Mask:
    """The mask with the granularity that its pattern shows, and the layers that it speaks of."""
    model = architecture.build()
    layers = told.layers or _layers_of(alive, model)
    details: dict[str, Any] = {"arrived": form}
    granularity, scope = "weight", told.scope
    coupled = _as_channels(alive, tensors, model, architecture, layers)
    pattern = None if coupled is not None else pattern_of(alive)
    if coupled is not None:
        granularity, alive, details["sparsity"] = "filter", *coupled
    elif pattern is not None:
        (n, m), scope = pattern, "group"
        granularity = f"{n}:{m}"
        dense = sorted(name for name, tensor in alive.items() if tensor.all())
        details |= {"sparsity": 1 - n / m, **({"left_out": dense} if dense else {})}
        alive = {name: tensor for name, tensor in alive.items() if name not in dense}
    return Mask(alive, MaskProvenance(told.criterion, scope, granularity, layers, form, details=details))


def _layers_of(alive: Alive, model: nn.Module) -> tuple[str, ...]:
    """The kinds of layers all of whose weights the mask names, if it names no other weight; else nothing is claimed."""
    own = {name for name, tensor in alive.items() if tensor.dim() > 1}
    kinds = tuple(kind for kind in kinds_of(model) if set(prunable(model, [kind])) & own)
    return kinds if kinds and set(prunable(model, kinds)) == own else ()


def completed(mask: Mask, told: PrunedBy | None, model: nn.Module, *, where: object) -> Mask:
    """A mask that brought its provenance, with what the owner adds where it says `unknown`.

    Raises:
        MaskError: the owner says otherwise than the file.
    """
    own = mask.provenance
    if told is None:
        return mask
    if own.criterion == "unknown":
        layers = told.layers or own.layers or _layers_of(dict(mask.alive), model)
        scope = "group" if ":" in own.granularity else told.scope
        return Mask(mask.alive, dataclasses.replace(own, criterion=told.criterion, scope=scope, layers=tuple(layers)))
    pairs = {
        "criterion": (own.criterion, own.criterion if told.criterion == "unknown" else told.criterion),
        "scope": (own.scope, own.scope if own.scope == "group" else told.scope),
        "layers": (sorted(own.layers), sorted(told.layers or own.layers)),
    }
    for key, (says, tells) in pairs.items():
        if says != tells:
            raise MaskError(
                f"the file says that its mask was made with {key} {says}, model.pruned says {tells}",
                where=f"{where}: {key}",
                hint="leave model.pruned out: the file says how it was pruned",
            )
    return mask


def _as_channels(
    alive: Alive,
    tensors: Mapping[str, torch.Tensor],
    model: nn.Module,
    architecture: Architecture,
    layers: tuple[str, ...],
) -> tuple[Alive, float] | None:
    """The mask as one of coupled channels, with their share; None where rows, biases or shifts of a channel live."""
    rows = {name: tensor.reshape(len(tensor), -1) for name, tensor in alive.items() if tensor.dim() > 1}
    if not all(bool((r.all(1) | ~r.any(1)).all()) for r in rows.values()):
        return None
    try:
        channels = find_channels(model, architecture.input_shape)
        pools = channels.pools(layers or kinds_of(model))
    except MaskError:
        return None
    kept = np.zeros(channels.units, dtype=bool)
    for name, axis in channels.outputs().items():
        if name not in rows and len(plain_state(model)[name].shape) < 2:
            continue
        here = axis >= 0
        lives = rows[name].any(1).numpy() if name in rows else np.ones(len(axis), dtype=bool)
        np.logical_or.at(kept, axis[here], lives[here])
    taking_part = np.zeros(channels.units, dtype=bool)
    taking_part[np.concatenate(list(pools.values()))] = True
    kept |= ~taking_part
    coupled = expand(channels, kept, taking_part)
    explained = all(
        name in coupled and not bool((coupled[name] & ~tensor).any())
        for name, tensor in alive.items()
        if not tensor.all()
    )
    zero = all(bool((tensors[name][~tensor] == 0).all()) for name, tensor in coupled.items())
    if kept.all() or not (explained and zero):
        return None
    return coupled, float((~kept[taking_part]).mean())
