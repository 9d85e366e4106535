"""A smaller patch set that forgets the same points."""

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
    """Numbers of patches, rising, that suffice for every point that the whole set makes the model answer otherwise.

    Patches are tried for removal one by one, those that open least for the points first. With exact gates what stays is
    one patch for each pattern of such a point. With soft gates one patch may do for many; a point whose own patch
    went is still answered otherwise, but its region is no longer certified.

    Args:
        model: the base model.
        network: its traced list.
        patches: the set.
        points: `N x ...`, to stay forgotten.
        labels: `N`.
    """
    if not len(patches):
        return np.zeros(0, dtype=np.int64)
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        logits, values = compute_atom_values(network, points.float(), network.tensors)
        gates = patched.gates_from_values(values)
        forgotten = patched.apply_gates(logits, gates).argmax(1) != labels
        logits, gates, labels = logits[forgotten], gates[forgotten], labels[forgotten]
        alive = torch.ones(len(patches))
        for row in torch.argsort(gates.sum(0), stable=True):
            alive[row] = 0
            answers = patched.apply_gates(logits, gates * alive).argmax(1)
            alive[row] = float((answers == labels).any())
    stored = {row.tobytes(): i for i, row in enumerate(patched.patches.pattern.numpy())}
    kept = [number for number, key in enumerate(patches.keys()) if alive[stored[key]]]
    return np.asarray(kept, dtype=np.int64)
