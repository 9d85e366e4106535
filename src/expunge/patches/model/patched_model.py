"""The patched model: an ordinary module that adds the open patches to the base network's logits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name
from expunge.patches.network.execute import compute_atom_values, split_bits
from expunge.patches.network.operations import Network

from .gate_index import BlockIndex, compute_all_gates, compute_pair_gates, find_open_pairs, make_blocks
from .gates import (
    compute_exact_gates,
    compute_hash_keys,
    compute_unit_costs,
    compute_word_keys,
    draw_word_factors,
    find_candidates,
    gates_from_costs,
    look_up,
    max_over_groups,
    unpack_bits,
)
from .patch_set import PatchSet


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
        self.register_buffer("change", torch.from_numpy(ordered.logit_shift()))
        self.register_buffer("hash_vector", vector)
        self.register_buffer("hash_keys", keys)
        self.register_buffer("slope", torch.tensor(float(patches.slope)))
        self.register_buffer("reach", _reach(network, ordered))


class PatchedModel(nn.Module):
    """f'(x) = f(x) + sum over patches of gate(x) change(f(x)).

    The base model is the submodule `module`, so its parameters keep their plain names; patterns, targets and shifts are
    buffers under `patches.`: state dict, device moves and deepcopy work as for any module. The base is executed through
    its traced operations, always in evaluation mode (BatchNorm uses its running statistics, whatever `train()` says).

    Args:
        model: the base model; it is copied.
        network: its traced operation list; its tensors are a copy, see `current_network`.
        patches: the patches, of which no two have the same pattern.
        layout: `hash` (looks for rows that can open a gate, and works on those alone) or `matrix` (products only: for
            torch.export and ONNX).
    """

    def __init__(self, model: nn.Module, network: Network, patches: PatchSet, *, layout: str = "hash") -> None:
        super().__init__()
        if patches.atoms != network.atoms or patches.classes != network.classes:
            raise ModelError("the patches were made for another network", where="patches")
        self.module = copy.deepcopy(model)
        self.network = network
        self.settings = {"correction": patches.correction, "gate": patches.gate}
        self.layout = layout
        self.patches = PatchBuffers(network, patches)
        self._locations = self._locate_tensors()
        self._cache: dict[str, tuple[Any, Any]] = {}
        self.eval()

    def _locate_tensors(self) -> dict[str, tuple[str, str]]:
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
        owners = self._owners() if torch.compiler.is_compiling() else self._get_cached("owners", None, self._owners)
        found: dict[str, Tensor] = {}
        for name, (owner, attribute, shape) in owners.items():
            tensor = owner._parameters.get(attribute)
            if tensor is None:
                tensor = owner._buffers.get(attribute)
            if tensor is None:
                raise ModelError(
                    f"the base of the patched model has no {name} any more", where="patch",
                    hint="patches need the plain parameters: remove parametrisations (torch.nn.utils.prune.remove)",
                )  # fmt: skip
            found[name] = tensor if tensor.shape == shape else tensor.reshape(shape)
        return found

    def _owners(self) -> dict[str, tuple[nn.Module, str, torch.Size]]:
        return {
            name: (self.get_submodule(path), attribute, self.network.tensors[name].shape)
            for name, (path, attribute) in self._locations.items()
        }

    def _get_cached(self, name: str, source: Tensor | None, make: Callable[[], Any]) -> Any:
        """What `make` gives, made anew only where the tensor that it is made from has changed or moved."""
        key = None if source is None else (source.data_ptr(), _version(source), source.device)
        held = self._cache.get(name)
        if held is None or held[0] != key:
            held = self._cache[name] = (key, make())
        return held[1]

    def current_network(self) -> Network:
        """The base's operation list with the weights that this model has now (loading may have replaced them)."""
        tensors = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in self._tensors().items()}
        return dataclasses.replace(self.network, tensors=tensors)

    def patch_set(self) -> PatchSet:
        """The patches, as arrays (in the order of their hash keys)."""
        held = {name: buffer.detach().cpu().numpy() for name, buffer in self.patches.named_buffers()}
        names = ("pattern", "target", "label", "shift", "group", "alpha", "beta")
        arrays: dict[str, Any] = {name: held[name].copy() for name in names}
        return PatchSet(
            self.settings["correction"],
            self.network.atoms,
            self.network.classes,
            **arrays,
            gate=self.settings["gate"],
            slope=float(self.patches.slope),
        )

    def with_layout(self, layout: str) -> PatchedModel:
        """A copy that computes gates by `hash` or by `matrix`."""
        twin = copy.deepcopy(self)
        twin.layout = layout
        return twin

    def _stored(self) -> Tensor:
        """Patterns as `P x L` float32, kept unpacked while the buffer does not change."""
        packed = self.patches.pattern
        if torch.compiler.is_compiling():
            return unpack_bits(packed, self.network.atoms).float()
        stored: Tensor = self._get_cached("stored", packed, lambda: unpack_bits(packed, self.network.atoms).float())
        return stored

    def _stored_both(self) -> Tensor:
        """Patterns beside their complements, `P x 2 L` float32."""
        stored = self._stored()
        if torch.compiler.is_compiling():
            return torch.cat([stored, 1 - stored], 1)
        both: Tensor = self._get_cached("both", self.patches.pattern, lambda: torch.cat([stored, 1 - stored], 1))
        return both

    def _keys(self) -> tuple[Tensor, Tensor]:
        """Factors of quick keys, and the patterns' quick keys, sorted, with the largest number there is as the last."""
        packed = self.patches.pattern

        def make() -> tuple[Tensor, Tensor]:
            factors = draw_word_factors(self.network.atoms).to(packed.device)
            parts = [compute_word_keys(unpack_bits(part, self.network.atoms), factors) for part in packed.split(1024)]
            last = torch.full((1,), 2**63 - 1, device=packed.device)
            return factors, torch.cat([*parts, last]).sort().values

        found: tuple[Tensor, Tensor] = self._get_cached("keys", packed, make)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchedModel:
        twin = PatchedModel.__new__(PatchedModel)
        memo[id(self)] = twin
        held = {k: v for k, v in self.__dict__.items() if k not in ("_cache", "network")}
        twin.__dict__.update(copy.deepcopy(held, memo))
        twin.__dict__["network"], twin.__dict__["_cache"] = self.network, {}
        return twin

    def compute_gates(self, x: Tensor) -> Tensor:
        """Gate of each patch, `B x P`, in the stored order (for reports; forward does not need the whole table)."""
        with torch.no_grad():
            _, values = compute_atom_values(self.network, x, self._tensors())
            return self.gates_from_values(values)

    def opens_gate(self, x: Tensor, batch: int = 512) -> Tensor:
        """Which inputs `B x ...` open any gate: `B` bool."""
        found = [torch.zeros(0, dtype=torch.bool)]
        with torch.no_grad():
            for part in x.split(batch):
                _, values = compute_atom_values(self.network, part, self._tensors())
                if not len(self.patches.target):
                    found.append(torch.zeros(len(part), dtype=torch.bool))
                elif self.settings["gate"] == "soft":
                    (rows, _, _), (whole, gates) = self._open_pairs(values)
                    near = torch.zeros(len(part), dtype=torch.bool, device=part.device)
                    near[rows] = True
                    near[whole] = gates.amax(1) > 0
                    found.append(near.cpu())
                else:
                    bits = split_bits(self.network, values)
                    held = self.patches
                    found.append(look_up(bits, held.hash_vector, held.hash_keys, held.pattern) >= 0)
        return torch.cat(found)

    def gates_from_values(self, values: Tensor) -> Tensor:
        """Gates `B x P` from atoms' values `B x L`."""
        if self.settings["gate"] == "soft":
            return gates_from_costs(*compute_unit_costs(self.network, values, self.patches.slope), self._stored_both())
        return compute_exact_gates(split_bits(self.network, values).float(), self._stored())

    def forward(self, x: Tensor) -> Tensor:
        """`B x ...` float32 to `B x K` logits."""
        return self._patched(*compute_atom_values(self.network, x, self._tensors()))

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `B x K` and the activation bits `B x L` of one and the same execution.

        Another batch size may run other kernels and round otherwise; on a face that can flip a bit.
        """
        with torch.no_grad():
            logits, values = compute_atom_values(self.network, x, self._tensors())
            return self._patched(logits, values), split_bits(self.network, values)

    def _patched(self, logits: Tensor, values: Tensor) -> Tensor:
        if not len(self.patches.target):
            return logits
        if logits.dtype != torch.float32 or values.dtype != torch.float32:
            raise ModelError(
                f"a patched model runs in float32, and this is {str(logits.dtype).removeprefix('torch.')}",
                where="patch",
                hint="patterns and certificates are those of float32: no half(), double() or autocast",
            )
        if self.layout == "hash":
            if torch.compiler.is_exporting():
                raise ModelError(
                    "look-ups cannot be exported", where="patch", hint='export model.with_layout("matrix")'
                )
            return (
                self._apply_exact(logits, values)
                if self.settings["gate"] == "exact"
                else self._apply_soft(logits, values)
            )
        return self.apply_gates(logits, self.gates_from_values(values))

    def apply_gates(self, logits: Tensor, gates: Tensor) -> Tensor:
        """The base's logits `B x K` with what gates `B x P` (in the stored order) let through."""
        return logits + self._change(logits, gates)

    def _change(self, logits: Tensor, gates: Tensor) -> Tensor:
        """What open gates `B x P` add to logits `B x K`."""
        if self.settings["correction"] != "li2025":
            first = self.patches.first
            if self.settings["gate"] == "soft" and len(first) < len(self.patches.group):
                return max_over_groups(gates, self.patches.group, len(first)) @ self.patches.change[first]
            return gates @ self.patches.change
        return self._change_li2025(logits, gates)

    def _blocks(self) -> BlockIndex | None:
        """The patterns by blocks of bits, for look-ups of soft gates."""
        stored = self._stored()
        found: BlockIndex | None = self._get_cached(
            "blocks", self.patches.pattern, lambda: make_blocks(self.network, stored)
        )
        return found

    def _open_pairs(self, values: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Open soft gates: (rows, patches, gates) of single pairs, and (rows, gates `R x P`) of rows taken whole."""
        slope, stored, blocks = self.patches.slope, self._stored(), self._blocks()
        everything = torch.arange(len(values), device=values.device)
        rows = patches = everything[:0]
        whole = everything
        if blocks is not None:
            rows, patches, whole = find_open_pairs(blocks, values, slope)
        gates = values.new_zeros(len(rows))
        if len(rows):
            some, line = rows.unique(return_inverse=True)
            gates = compute_pair_gates(*compute_unit_costs(self.network, values[some], slope), stored, line, patches)
            keep = gates != 0  # NaN stays
            rows, patches, gates = rows[keep], patches[keep], gates[keep]
        dense = None
        if len(whole):
            at = values if len(whole) == len(values) else values[whole]
            dense = compute_all_gates(*compute_unit_costs(self.network, at, slope), stored)
        if dense is None:
            whole, dense = everything[:0], values.new_zeros(0, len(stored))
        return (rows, patches, gates), (whole, dense)

    def _apply_soft(self, logits: Tensor, values: Tensor) -> Tensor:
        """Soft gates, by look-up where an input's units are sure enough, by a product for the other inputs."""
        (rows, patches, gates), (whole, dense) = self._open_pairs(values)
        if len(whole) == len(logits):
            return self.apply_gates(logits, dense)
        if not len(rows) and not len(whole):
            return logits
        change = self._sum_pairs(logits, rows, patches, gates)
        if len(whole):
            change[whole] = self._change(logits[whole], dense)
        return logits + change

    def _sum_pairs(self, logits: Tensor, rows: Tensor, patches: Tensor, gates: Tensor) -> Tensor:
        """What the open gates of pairs add to logits, `B x K`; of a group only the largest gate of a row acts."""
        held = self.patches
        if self.settings["correction"] == "li2025":
            added = self._close_by_gate(self._affine(logits[rows], patches), held.reach[patches], gates)
        else:
            groups = len(held.first)
            if groups < len(held.group):
                both, line = (rows * groups + held.group[patches]).unique(return_inverse=True)
                gates = gates.new_zeros(len(both)).scatter_reduce(0, line, gates, "amax")
                rows, patches = both // groups, held.first[both % groups]
            added = gates.unsqueeze(1) * held.change[patches]
        return torch.zeros_like(logits).index_add(0, rows, added)

    def _apply_exact(self, logits: Tensor, values: Tensor) -> Tensor:
        held = self.patches
        bits = split_bits(self.network, values)
        rows = find_candidates(bits, *self._keys())
        if not len(rows):
            return logits
        found = look_up(bits[rows], held.hash_vector, held.hash_keys, held.pattern)
        rows, which = rows[found >= 0], found[found >= 0]
        logits = logits.clone()
        if self.settings["correction"] == "li2025":
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

    def _change_li2025(self, logits: Tensor, gates: Tensor) -> Tensor:
        held = self.patches
        base = logits[:, held.target]
        change = (held.alpha - 1) * (logits.unsqueeze(1) - base.unsqueeze(2)) + held.beta
        if self.settings["gate"] == "exact":
            return (gates.unsqueeze(2) * change).sum(1)
        return self._close_by_gate(change, held.reach, gates).sum(1)

    @staticmethod
    def _close_by_gate(change: Tensor, reach: Tensor, gates: Tensor) -> Tensor:
        """The paper's patch behind its gate: `... x K` changes, with a reach and a gate for each."""
        closing = (reach * (gates - 1)).unsqueeze(-1)
        return torch.relu(change + closing) - torch.relu(closing - change)


def _version(tensor: Tensor) -> int:
    """Counts changes in place; tensors made under inference mode have no count, and nothing may change them outside."""
    return 0 if tensor.is_inference() else tensor._version


def _reach(network: Network, patches: PatchSet) -> Tensor:
    """K of the paper's patch network: a bound on |change| over the unit box around the data, `P` float32."""
    if patches.correction != "li2025":
        return torch.zeros(len(patches))
    from expunge.patches.network.rounding import bound_execution_error

    ones = torch.ones(network.input_shape, dtype=torch.float64)
    bits = unpack_bits(torch.from_numpy(patches.pattern), network.atoms)
    sizes = torch.cat(
        [bound_execution_error(network, part, -ones, ones).logit_size.max(1).values for part in bits.split(64)]
        or [torch.zeros(0)]
    )
    alpha, beta = torch.from_numpy(patches.alpha).double(), torch.from_numpy(patches.beta).double()
    most = (1 - alpha).abs().max(1).values * 2 * sizes + beta.abs().max(1).values
    return most.float()
