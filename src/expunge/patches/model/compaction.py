"""Removal of patches that no forgotten point needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.patches.network.execute import compute_atom_values
from expunge.patches.network.operations import Network

from .patch_set import PatchSet
from .patched_model import PatchedModel


def select_needed_patches(
    model: nn.Module, network: Network, patches: PatchSet, points: Tensor, labels: Tensor
) -> NDArray[np.int64]:
    """Return the indices of patches that suffice to keep all points forgotten, in increasing order.

    Patches are tested for removal one by one, starting with those whose gates open least for the points. With exact
    gates, one patch per pattern of a forgotten point remains. With soft gates one patch may serve many points; a point
    whose own patch is removed is still misclassified, but its region is no longer certified.

    Args:
        model: the base model.
        network: its traced operation list.
        patches: the set.
        points: inputs `N x ...` that must stay forgotten; a point that the set does not flip is ignored.
        labels: `N`, the classes that must not be predicted.

    Example:
        >>> import torch
        >>> from expunge.patches import Box, compute_patterns, select_needed_patches, solve, trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> network, points = trace(model, (2,)), torch.tensor([[0.75, 0.25], [0.75, -0.25]])
        >>> bits, labels = compute_patterns(network, points)[1], torch.tensor([0, 0])
        >>> patches, _ = solve(network, bits, labels, torch.tensor([1, 1]), Box.of((2,), -1.0, 1.0))
        >>> select_needed_patches(model, network, patches, points[1:], labels[1:]).tolist()
        [1]
    """
    if not len(patches):
        return np.zeros(0, dtype=np.int64)
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        logits, values = compute_atom_values(network, points.float(), network.tensors)
        gates = patched.gates_from_values(values)
        forgotten = patched.apply_gates(logits, gates).argmax(1) != labels
        logits, gates, labels = logits[forgotten], gates[forgotten], labels[forgotten]
        is_needed = torch.ones(len(patches))
        for row in torch.argsort(gates.sum(0), stable=True):
            is_needed[row] = 0
            answers = patched.apply_gates(logits, gates * is_needed).argmax(1)
            is_needed[row] = float((answers == labels).any())
    stored = {row.tobytes(): i for i, row in enumerate(patched.patches.pattern.numpy())}
    kept = [number for number, key in enumerate(patches.keys()) if is_needed[stored[key]]]
    return np.asarray(kept, dtype=np.int64)
