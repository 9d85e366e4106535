"""The patched model: an ordinary module that adds the open patches to the base network's logits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name

from .execute import atom_values, some_bits, split_bits
from .gates import (
    candidates,
    exact_matrix,
    exact_sum,
    group_gates,
    hash_keys,
    look_up,
    probe_atoms,
    soft_matrix,
    unpack_bits,
)
from .network import Network
from .patchset import PatchSet


class PatchBuffers(nn.Module):
    """The patches as buffers, sorted by hash key; constants that the trace found join them."""

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
    probe: Tensor
    probe_weights: Tensor
    probe_keys: Tensor
    slope: Tensor
    reach: Tensor

    def __init__(self, network: Network, patches: PatchSet) -> None:
        super().__init__()
        stored = unpack_bits(torch.from_numpy(patches.pattern), network.atoms)
        vector, keys, order = hash_keys(stored)
        ordered, stored = patches.take(order.numpy()), stored[order]
        for name in ("pattern", "target", "label", "shift", "alpha", "beta"):
            array = getattr(ordered, name)
            whole = array.astype("int64") if name in ("target", "label") else array.copy()
            self.register_buffer(name, torch.from_numpy(whole))
        _, first, group = np.unique(ordered.group, return_index=True, return_inverse=True)
        self.register_buffer("group", torch.from_numpy(group.astype("int64").reshape(-1)))
        self.register_buffer("first", torch.from_numpy(first.astype("int64")))
        self.register_buffer("change", torch.from_numpy(ordered.logit_shift()))
        self.register_buffer("hash_vector", vector)
        self.register_buffer("hash_keys", keys)
        probe = probe_atoms(stored)
        weights = 2 ** torch.arange(len(probe))
        self.register_buffer("probe", probe)
        self.register_buffer("probe_weights", weights)
        self.register_buffer("probe_keys", exact_sum(stored[:, probe], weights).sort().values)
        self.register_buffer("slope", torch.tensor(float(patches.slope)))
        self.register_buffer("reach", _reach(network, ordered))


class PatchedModel(nn.Module):
    """f'(x) = f(x) + sum over patches of gate(x) change(f(x)).

    The base model is the submodule `module`, so its parameters keep their plain names; patterns, targets and shifts are
    buffers under `patches.`: state dict, device moves and deepcopy work as for any module. The base is executed through
    its traced operations, always in evaluation mode (BatchNorm uses its running statistics, whatever `train()` says).

    Args:
        model: the base model; it is copied.
        network: its traced operation list.
        patches: the patches, of which no two have the same pattern.
        form: `hash` (look-up; exact gates only) or `matrix` (products only: for torch.export and ONNX).
    """

    def __init__(self, model: nn.Module, network: Network, patches: PatchSet, *, form: str = "hash") -> None:
        super().__init__()
        if patches.atoms != network.atoms or patches.classes != network.classes:
            raise ModelError("the patches were made for another network", where="patches")
        self.module = copy.deepcopy(model)
        self.network = network
        self.settings = {"kind": patches.kind, "gate": patches.gate}
        self.form = form
        self.patches = PatchBuffers(network, patches)
        self._places = self._sources()
        self._unpacked: tuple[tuple[Any, ...], Tensor] | None = None
        self.eval()

    def _sources(self) -> dict[str, tuple[str, str]]:
        """Tensor name of the list to its submodule and attribute; constants of the trace become buffers."""
        held = {plain_name(name): name for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]}
        places = {}
        for name, tensor in self.network.tensors.items():
            plain = name.removesuffix("@reshaped")
            if plain in held:
                path, _, attribute = f"module.{held[plain]}".rpartition(".")
            else:
                path, attribute = "patches", name.replace(".", "_")
                self.patches.register_buffer(attribute, tensor.clone())
            places[name] = (path, attribute)
        return places

    def _tensors(self) -> dict[str, Tensor]:
        found = {}
        for name, (path, attribute) in self._places.items():
            tensor: Tensor = getattr(self.get_submodule(path), attribute)
            shape = self.network.tensors[name].shape
            found[name] = tensor if tensor.shape == shape else tensor.reshape(shape)
        return found

    def patch_set(self) -> PatchSet:
        """The patches, as arrays (in the order of their hash keys)."""
        held = {name: buffer.detach().cpu().numpy() for name, buffer in self.patches.named_buffers()}
        names = ("pattern", "target", "label", "shift", "group", "alpha", "beta")
        arrays: dict[str, Any] = {name: held[name].copy() for name in names}
        return PatchSet(
            self.settings["kind"],
            self.network.atoms,
            self.network.classes,
            **arrays,
            gate=self.settings["gate"],
            slope=float(self.patches.slope),
        )

    def in_form(self, form: str) -> PatchedModel:
        """A copy that computes gates by `hash` or by `matrix`."""
        twin = copy.deepcopy(self)
        twin.form = form
        return twin

    def _stored(self) -> Tensor:
        """Patterns as `P x L` float32, kept unpacked while the buffer does not change."""
        packed = self.patches.pattern
        if torch.compiler.is_compiling():
            return unpack_bits(packed, self.network.atoms).float()
        key = (packed.data_ptr(), packed._version, packed.device)
        if self._unpacked is None or self._unpacked[0] != key:
            self._unpacked = (key, unpack_bits(packed, self.network.atoms).float())
        return self._unpacked[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchedModel:
        twin = PatchedModel.__new__(PatchedModel)
        memo[id(self)] = twin
        held = {k: v for k, v in self.__dict__.items() if k not in ("_unpacked", "network")}
        twin.__dict__.update(copy.deepcopy(held, memo))
        twin.__dict__["network"], twin.__dict__["_unpacked"] = self.network, None
        return twin

    def gates(self, x: Tensor) -> Tensor:
        """Gate of each patch, `B x P`, in the stored order (for reports; forward does not need the whole table)."""
        with torch.no_grad():
            _, values = atom_values(self.network, x, self._tensors())
            return self._gates(values)

    def _gates(self, values: Tensor) -> Tensor:
        if self.settings["gate"] == "soft":
            return soft_matrix(self.network, values, self._stored(), self.patches.slope)
        return exact_matrix(split_bits(self.network, values).float(), self._stored())

    def forward(self, x: Tensor) -> Tensor:
        """`B x ...` float32 to `B x K` logits."""
        return self._patched(*atom_values(self.network, x, self._tensors()))

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `B x K` and the activation bits `B x L` of one and the same execution.

        Another batch size may run other kernels and round otherwise; on a face that can flip a bit.
        """
        with torch.no_grad():
            logits, values = atom_values(self.network, x, self._tensors())
            return self._patched(logits, values), split_bits(self.network, values)

    def _patched(self, logits: Tensor, values: Tensor) -> Tensor:
        if not len(self.patches.target):
            return logits
        if self.settings["gate"] == "exact" and self.form == "hash":
            return self._look_up(logits, values)
        gates = self._gates(values)
        if self.settings["kind"] != "paper":
            first = self.patches.first
            if self.settings["gate"] == "soft" and len(first) < len(self.patches.group):
                return logits + group_gates(gates, self.patches.group, len(first)) @ self.patches.change[first]
            return logits + gates @ self.patches.change
        return logits + self._paper(logits, gates)

    def _look_up(self, logits: Tensor, values: Tensor) -> Tensor:
        held = self.patches
        rows = candidates(some_bits(self.network, values, held.probe), held.probe_weights, held.probe_keys)
        if not len(rows):
            return logits
        bits = split_bits(self.network, values[rows])
        found = look_up(bits, held.hash_vector, held.hash_keys, held.pattern)
        rows, which = rows[found >= 0], found[found >= 0]
        logits = logits.clone()
        if self.settings["kind"] == "paper":
            change = self._affine(logits[rows], which)
        else:
            change = held.change[which]
        logits[rows] = logits[rows] + change
        return logits

    def _affine(self, logits: Tensor, which: Tensor) -> Tensor:
        """The paper's patch at each row's own patch number: (alpha_j - 1) (f_j - f_k) + beta_j, 0 for j = k."""
        held = self.patches
        base = logits.gather(1, held.target[which].unsqueeze(1))
        return (held.alpha[which] - 1) * (logits - base) + held.beta[which]

    def _paper(self, logits: Tensor, gates: Tensor) -> Tensor:
        held = self.patches
        base = logits[:, held.target]
        change = (held.alpha - 1) * (logits.unsqueeze(1) - base.unsqueeze(2)) + held.beta
        if self.settings["gate"] == "exact":
            return (gates.unsqueeze(2) * change).sum(1)
        closing = held.reach.unsqueeze(1) * (gates - 1).unsqueeze(2)
        return (torch.relu(change + closing) - torch.relu(closing - change)).sum(1)


def _reach(network: Network, patches: PatchSet) -> Tensor:
    """K of the paper's patch network: a bound on |change| over the unit box around the data, `P` float32."""
    if patches.kind != "paper":
        return torch.zeros(len(patches))
    from .rounding import execution_error

    ones = torch.ones(network.input_shape, dtype=torch.float64)
    bits = unpack_bits(torch.from_numpy(patches.pattern), network.atoms)
    sizes = torch.cat(
        [execution_error(network, part, -ones, ones).logit_size.max(1).values for part in bits.split(64)]
        or [torch.zeros(0)]
    )
    alpha, beta = torch.from_numpy(patches.alpha).double(), torch.from_numpy(patches.beta).double()
    most = (1 - alpha).abs().max(1).values * 2 * sizes + beta.abs().max(1).values
    return most.float()
