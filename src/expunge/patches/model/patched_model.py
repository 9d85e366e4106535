"""The patched model: a module that adds the changes of open patches to the logits of the base network."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name
from expunge.patches.network.execute import compute_atom_values, split_bits
from expunge.patches.network.operations import Network

from .gate_index import BlockIndex, compute_all_gates, compute_pair_gates, find_open_pairs, make_blocks
from .gates import (
    compute_exact_gates,
    compute_unit_costs,
    compute_word_keys,
    draw_word_factors,
    find_candidates,
    gates_from_costs,
    look_up,
    max_over_groups,
    unpack_bits,
)
from .patch_buffers import PatchBuffers
from .patch_set import PatchSet


class PatchedModel(nn.Module):
    """A base model with patches: f'(x) = f(x) + sum over patches of gate(x) change(f(x)).

    The base model is the submodule `module`, so its parameters keep their names. Patterns, targets and shifts are
    buffers under `patches.`, so state dict, device moves and deepcopy work as for any module. The base is executed
    through its traced operations, always in evaluation mode (BatchNorm uses its running statistics even after
    `train()`).

    Args:
        model: the base model, `B x ...` to `B x K` logits; it is copied.
        network: its traced operation list; its tensors are a copy, see `current_network`.
        patches: the patches, all with different patterns.
        layout: how gates are computed: `hash` (look-ups; only inputs that open a gate cost more) or `matrix` (matrix
            products only, for torch.export and ONNX).

    Raises:
        ModelError: the patches were made for another network.
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
        """Map tensor names of the list to submodule and attribute; register constants of the trace as buffers."""
        names_in_model = {
            plain_name(name): name for name, _ in [*self.module.named_parameters(), *self.module.named_buffers()]
        }
        places = {}
        for name, tensor in self.network.tensors.items():
            plain = name.removesuffix("@reshaped")
            if plain in names_in_model:
                path, _, attribute = f"module.{names_in_model[plain]}".rpartition(".")
            else:
                path, attribute = "patches", re.sub(r"\W", "_", name)
                while hasattr(self.patches, attribute):  # buffers of the patches, and names that differ in a dot only
                    attribute += "_"
                self.patches.register_buffer(attribute, tensor.clone())
            places[name] = (path, attribute)
        return places

    def _get_tensors(self) -> dict[str, Tensor]:
        owners = (
            self._find_owners()
            if torch.compiler.is_compiling()
            else self._get_cached("owners", None, self._find_owners)
        )
        found: dict[str, Tensor] = {}
        for name, (owner, attribute, shape) in owners.items():
            tensor = owner._parameters.get(attribute)
            if tensor is None:
                tensor = owner._buffers.get(attribute)
            if tensor is None:
                raise ModelError(
                    f"the base of the patched model no longer has {name}", where="patch",
                    hint="patches need the original parameters: remove parametrisations (torch.nn.utils.prune.remove)",
                )  # fmt: skip
            found[name] = tensor if tensor.shape == shape else tensor.reshape(shape)
        return found

    def _find_owners(self) -> dict[str, tuple[nn.Module, str, torch.Size]]:
        return {
            name: (self.get_submodule(path), attribute, self.network.tensors[name].shape)
            for name, (path, attribute) in self._locations.items()
        }

    def _get_cached(self, name: str, source: Tensor | None, make: Callable[[], Any]) -> Any:
        """Return the cached result of `make`, recomputed if the tensor that it depends on changed or moved."""
        key = None if source is None else (source.data_ptr(), _version(source), source.device)
        entry = self._cache.get(name)
        if entry is None or entry[0] != key:
            entry = self._cache[name] = (key, make())
        return entry[1]

    def current_network(self) -> Network:
        """Return the operation list with the current weights of the base, which loading may have replaced."""
        tensors = {
            name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in self._get_tensors().items()
        }
        return dataclasses.replace(self.network, tensors=tensors)

    def patch_set(self) -> PatchSet:
        """Return the patches as arrays, in the order of their hash keys."""
        buffers = {name: buffer.detach().cpu().numpy() for name, buffer in self.patches.named_buffers()}
        names = ("pattern", "target", "label", "shift", "group", "alpha", "beta")
        arrays: dict[str, Any] = {name: buffers[name].copy() for name in names}
        return PatchSet(
            self.settings["correction"],
            self.network.atoms,
            self.network.classes,
            **arrays,
            gate=self.settings["gate"],
            slope=float(self.patches.slope),
        )

    def with_layout(self, layout: str) -> PatchedModel:
        """Return a copy that computes gates in the layout `hash` or `matrix`."""
        copied = copy.deepcopy(self)
        copied.layout = layout
        return copied

    def _get_patterns(self) -> Tensor:
        """Return the patterns as `P x L` float32, cached while the buffer does not change."""
        packed = self.patches.pattern
        if torch.compiler.is_compiling():
            return unpack_bits(packed, self.network.atoms).float()
        stored: Tensor = self._get_cached("stored", packed, lambda: unpack_bits(packed, self.network.atoms).float())
        return stored

    def _get_patterns_and_complements(self) -> Tensor:
        """Return the patterns and their complements side by side, `P x 2 L` float32."""
        stored = self._get_patterns()
        if torch.compiler.is_compiling():
            return torch.cat([stored, 1 - stored], 1)
        both: Tensor = self._get_cached("both", self.patches.pattern, lambda: torch.cat([stored, 1 - stored], 1))
        return both

    def _get_keys(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the quick keys, and the sorted quick keys of the patterns plus the largest int64."""
        packed = self.patches.pattern

        def make() -> tuple[Tensor, Tensor]:
            factors = draw_word_factors(self.network.atoms).to(packed.device)
            parts = [compute_word_keys(unpack_bits(part, self.network.atoms), factors) for part in packed.split(1024)]
            last = torch.full((1,), 2**63 - 1, device=packed.device)
            return factors, torch.cat([*parts, last]).sort().values

        found: tuple[Tensor, Tensor] = self._get_cached("keys", packed, make)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchedModel:
        copied = PatchedModel.__new__(PatchedModel)
        memo[id(self)] = copied
        attributes = {k: v for k, v in self.__dict__.items() if k not in ("_cache", "network")}
        copied.__dict__.update(copy.deepcopy(attributes, memo))
        copied.__dict__["network"], copied.__dict__["_cache"] = self.network, {}
        return copied

    def compute_gates(self, x: Tensor) -> Tensor:
        """Return the gate of each patch, `B x P`, in the stored order (`forward` does not need the whole table)."""
        with torch.no_grad():
            _, values = compute_atom_values(self.network, x, self._get_tensors())
            return self.gates_from_values(values)

    def opens_gate(self, x: Tensor, batch: int = 512) -> Tensor:
        """Return which inputs `B x ...` open any gate, `B` bool."""
        found = [torch.zeros(0, dtype=torch.bool)]
        with torch.no_grad():
            for part in x.split(batch):
                _, values = compute_atom_values(self.network, part, self._get_tensors())
                if not len(self.patches.target):
                    found.append(torch.zeros(len(part), dtype=torch.bool))
                elif self.settings["gate"] == "soft":
                    (rows, _, _), (whole, gates) = self._find_open(values)
                    near = torch.zeros(len(part), dtype=torch.bool, device=part.device)
                    near[rows] = True
                    near[whole] = gates.amax(1) > 0
                    found.append(near.cpu())
                else:
                    bits = split_bits(self.network, values)
                    buffers = self.patches
                    found.append(look_up(bits, buffers.hash_vector, buffers.hash_keys, buffers.pattern) >= 0)
        return torch.cat(found)

    def gates_from_values(self, values: Tensor) -> Tensor:
        """Return gates `B x P` from the values of the atoms `B x L`."""
        if self.settings["gate"] == "soft":
            return gates_from_costs(
                *compute_unit_costs(self.network, values, self.patches.slope), self._get_patterns_and_complements()
            )
        return compute_exact_gates(split_bits(self.network, values).float(), self._get_patterns())

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `B x K` of inputs `B x ...` float32."""
        return self._apply_patches(*compute_atom_values(self.network, x, self._get_tensors()))

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `B x K` and activation bits `B x L` of the same execution.

        Another batch size may select other kernels and round differently, which can flip a bit on a face of a region.
        """
        with torch.no_grad():
            logits, values = compute_atom_values(self.network, x, self._get_tensors())
            return self._apply_patches(logits, values), split_bits(self.network, values)

    def _apply_patches(self, logits: Tensor, values: Tensor) -> Tensor:
        if not len(self.patches.target):
            return logits
        if logits.dtype != torch.float32 or values.dtype != torch.float32:
            raise ModelError(
                f"a patched model runs in float32, not in {str(logits.dtype).removeprefix('torch.')}",
                where="patch",
                hint="patterns and certificates hold for float32: do not use half(), double() or autocast",
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
        """Return the logits `B x K` of the base plus the changes of gates `B x P` (in the stored order)."""
        return logits + self._change(logits, gates)

    def _change(self, logits: Tensor, gates: Tensor) -> Tensor:
        """Return what gates `B x P` add to logits `B x K`."""
        if self.settings["correction"] != "li2025":
            first = self.patches.first
            if self.settings["gate"] == "soft" and len(first) < len(self.patches.group):
                return max_over_groups(gates, self.patches.group, len(first)) @ self.patches.change[first]
            return gates @ self.patches.change
        return self._change_li2025(logits, gates)

    def _get_blocks(self) -> BlockIndex | None:
        """Return the index of the patterns for look-ups of soft gates."""
        stored = self._get_patterns()
        found: BlockIndex | None = self._get_cached(
            "blocks", self.patches.pattern, lambda: make_blocks(self.network, stored)
        )
        return found

    def _find_open(self, values: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return open soft gates: (rows, patches, gates) of pairs; (rows, gates `R x P`) of rows without look-up."""
        slope, stored, blocks = self.patches.slope, self._get_patterns(), self._get_blocks()
        everything = torch.arange(len(values), device=values.device)
        rows = patches = everything[:0]
        whole = everything
        if blocks is not None:
            rows, patches, whole = find_open_pairs(blocks, values, slope)
        gates = values.new_zeros(len(rows))
        if len(rows):
            some, line = rows.unique(return_inverse=True)
            gates = compute_pair_gates(*compute_unit_costs(self.network, values[some], slope), stored, line, patches)
            keep = gates != 0  # keeps NaN
            rows, patches, gates = rows[keep], patches[keep], gates[keep]
        dense = None
        if len(whole):
            at = values if len(whole) == len(values) else values[whole]
            dense = compute_all_gates(*compute_unit_costs(self.network, at, slope), stored)
        if dense is None:
            whole, dense = everything[:0], values.new_zeros(0, len(stored))
        return (rows, patches, gates), (whole, dense)

    def _apply_soft(self, logits: Tensor, values: Tensor) -> Tensor:
        """Apply soft gates, by look-up for inputs with few unsure units and by a product for the others."""
        (rows, patches, gates), (whole, dense) = self._find_open(values)
        if len(whole) == len(logits):
            return self.apply_gates(logits, dense)
        if not len(rows) and not len(whole):
            return logits
        change = self._sum_pairs(logits, rows, patches, gates)
        if len(whole):
            change[whole] = self._change(logits[whole], dense)
        return logits + change

    def _sum_pairs(self, logits: Tensor, rows: Tensor, patches: Tensor, gates: Tensor) -> Tensor:
        """Return what the open gates of pairs add to logits, `B x K`; only the largest gate of a group acts."""
        buffers = self.patches
        if self.settings["correction"] == "li2025":
            added = self._close_by_gate(self._compute_li2025(logits[rows], patches), buffers.reach[patches], gates)
        else:
            groups = len(buffers.first)
            if groups < len(buffers.group):
                both, line = (rows * groups + buffers.group[patches]).unique(return_inverse=True)
                gates = gates.new_zeros(len(both)).scatter_reduce(0, line, gates, "amax")
                rows, patches = both // groups, buffers.first[both % groups]
            added = gates.unsqueeze(1) * buffers.change[patches]
        return torch.zeros_like(logits).index_add(0, rows, added)

    def _apply_exact(self, logits: Tensor, values: Tensor) -> Tensor:
        buffers = self.patches
        bits = split_bits(self.network, values)
        rows = find_candidates(bits, *self._get_keys())
        if not len(rows):
            return logits
        found = look_up(bits[rows], buffers.hash_vector, buffers.hash_keys, buffers.pattern)
        rows, which = rows[found >= 0], found[found >= 0]
        logits = logits.clone()
        if self.settings["correction"] == "li2025":
            change = self._compute_li2025(logits[rows], which)
        else:
            change = buffers.change[which]
        logits[rows] = logits[rows] + change
        return logits

    def _compute_li2025(self, logits: Tensor, which: Tensor) -> Tensor:
        """Return the `li2025` change of the patch of each row: (alpha_j - 1) (f_j - f_k) + beta_j, 0 for j = k."""
        buffers = self.patches
        base = logits.gather(1, buffers.target[which].unsqueeze(1))
        return (buffers.alpha[which] - 1) * (logits - base) + buffers.beta[which]

    def _change_li2025(self, logits: Tensor, gates: Tensor) -> Tensor:
        buffers = self.patches
        base = logits[:, buffers.target]
        change = (buffers.alpha - 1) * (logits.unsqueeze(1) - base.unsqueeze(2)) + buffers.beta
        if self.settings["gate"] == "exact":
            return (gates.unsqueeze(2) * change).sum(1)
        return self._close_by_gate(change, buffers.reach, gates).sum(1)

    @staticmethod
    def _close_by_gate(change: Tensor, reach: Tensor, gates: Tensor) -> Tensor:
        """Apply the gates of [Li2025] to changes `... x K`, with one bound (`reach`) and one gate each."""
        closing = (reach * (gates - 1)).unsqueeze(-1)
        return torch.relu(change + closing) - torch.relu(closing - change)


def _version(tensor: Tensor) -> int:
    """Return the version counter of a tensor; inference tensors have none and cannot change in place outside."""
    return 0 if tensor.is_inference() else tensor._version
