"""What a method rewrote and dropped, found by comparing the models before and after it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.outcome import MaskChange, group_changes
from expunge.core.trained import TensorChange, Trained, compare_states

#: State that only pruning and un-pruning need. A method removes it from the unlearned model unless it says otherwise.
DROPPED_STATE = (
    "rewind_checkpoint", "early_checkpoints", "pruning_scores", "pruning_weights", "optimiser_moments",
)  # fmt: skip


def compare_models(before: Trained, after: Trained) -> tuple[TensorChange, ...]:
    """Compare the parameters and buffers of two models; entries that the mask of both prunes are not counted."""
    return compare_states(before.model, after.model, _unite_masks(before.mask, after.mask))


def _unite_masks(before: Mask | None, after: Mask | None) -> Mask | None:
    """The mask of what one of two masks keeps, in the tensors that both have; None: a model is dense."""
    if before is None or after is None:
        return None
    both = [name for name, kept in after.kept.items() if name in before.kept and before.kept[name].shape == kept.shape]
    return Mask({name: before.kept[name] | after.kept[name] for name in both}, after.provenance)


def compare_masks(before: Mask | None, after: Mask | None) -> tuple[MaskChange, ...]:
    """Compare two masks, tensor by tensor; only tensors in which they differ. What a mask does not name is kept.

    Args:
        before: of the original; None: it is dense.
        after: of the unlearned model.
    """
    old, new = ({} if mask is None else mask.kept for mask in (before, after))
    found = []
    for name in dict.fromkeys([*old, *new]):
        some = old[name] if name in old else new[name]
        first, second = (kept.get(name, torch.ones_like(some)) for kept in (old, new))
        if first.shape != second.shape or torch.equal(first, second):  # a layer that was shrunk is another one
            continue
        counts = (int(torch.count_nonzero(t)) for t in (first, second, second & ~first, first & ~second))
        found.append(MaskChange(name, some.numel(), *counts))
    return tuple(found)


def find_rewritten(before: Trained, after: Trained, changes: Iterable[TensorChange]) -> set[str]:
    """Find the state that differs between two models, by its names in `expunge.core.trained.INFLUENCE_STATE`.

    A mask that has only lost weights is not rewritten: what it keeps was selected with the forgotten records.

    Args:
        before: the original.
        after: the unlearned model.
        changes: their tensors, compared.
    """
    groups = group_changes(after, changes).items()
    found = {kind for kind, members in groups if any(change.status != "unchanged" for change in members)}
    if after.mask is not None and (before.mask is None or _has_regrown(before.mask, after.mask)):
        found.add("mask")
    for name, tensors in after.state.items():
        old = before.state.get(name)
        if old is None or (old is not tensors and hash_tensors(old) != hash_tensors(tensors)):
            found.add(name)
    return found


def _has_regrown(before: Mask, after: Mask) -> bool:
    if before.kept.keys() != after.kept.keys():
        return True
    return any(_is_regrown(kept, after.kept[name]) for name, kept in before.kept.items())


def _is_regrown(before: torch.Tensor, after: torch.Tensor) -> bool:
    return before.shape != after.shape or bool((after & ~before).any())


def find_dropped(before: Trained, after: Trained, present: Iterable[str]) -> tuple[str, ...]:
    """Find the state of the original that the unlearned model no longer has.

    Args:
        before: the original.
        after: the unlearned model.
        present: its influence-bearing state (`Trained.list_influence_state`).
    """
    had = dict.fromkeys([*(name for name in DROPPED_STATE if name in before.state), *before.state])
    had |= dict.fromkeys(before.list_influence_state())
    has = {*present, *after.state}
    return tuple(name for name in had if name not in has)
