"""The patches of a patched model as buffers of a module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from expunge.patches.network.operations import Network
from expunge.patches.network.rounding import bound_execution_error

from .gates import compute_hash_keys, unpack_bits
from .patch_set import PatchSet


class PatchBuffers(nn.Module):
    """The patches as buffers, sorted by hash key, and the constants of the trace that are not in the model."""

    pattern: Tensor
    target: Tensor
    label: Tensor
    shift: Tensor
    group: Tensor
    first: Tensor
    alpha: Tensor
    beta: Tensor
    change: Tensor
    hash_vector: Tensor
    hash_keys: Tensor
    slope: Tensor
    reach: Tensor

    def __init__(self, network: Network, patches: PatchSet) -> None:
        super().__init__()
        stored = unpack_bits(torch.from_numpy(patches.pattern), network.atoms)
        vector, keys, order = compute_hash_keys(stored)
        ordered, stored = patches.take(order.numpy()), stored[order]
        for name in ("pattern", "target", "label", "shift", "alpha", "beta"):
            array = getattr(ordered, name)
            whole = array.astype("int64") if name in ("target", "label") else array.copy()
            self.register_buffer(name, torch.from_numpy(whole))
        _, first, group = np.unique(ordered.group, return_index=True, return_inverse=True)
        self.register_buffer("group", torch.from_numpy(group.astype("int64").reshape(-1)))
        self.register_buffer("first", torch.from_numpy(first.astype("int64")))
        self.register_buffer("change", torch.from_numpy(ordered.compute_logit_shift()))
        self.register_buffer("hash_vector", vector)
        self.register_buffer("hash_keys", keys)
        self.register_buffer("slope", torch.tensor(float(patches.slope)))
        self.register_buffer("reach", _bound_change(network, ordered))


def _bound_change(network: Network, patches: PatchSet) -> Tensor:
    """Return K of the patch network of [Li2025]: a bound on |change| over the box [-1, 1], `P` float32."""
    if patches.correction != "li2025":
        return torch.zeros(len(patches))
    ones = torch.ones(network.input_shape, dtype=torch.float64)
    bits = unpack_bits(torch.from_numpy(patches.pattern), network.atoms)
    sizes = torch.cat(
        [bound_execution_error(network, part, -ones, ones).logit_size.max(1).values for part in bits.split(64)]
        or [torch.zeros(0)]
    )
    alpha, beta = torch.from_numpy(patches.alpha).double(), torch.from_numpy(patches.beta).double()
    most = (1 - alpha).abs().max(1).values * 2 * sizes + beta.abs().max(1).values
    return most.float()
