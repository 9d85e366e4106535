"""Validates the content of a folder and executes its network and patches: replays, gates, points, regions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic.network import UNIT32, Network
from .arithmetic.shapes import check_operations
from .budget import GATES, Budget
from .errors import BadCertificate, quote, reject_malformed
from .folder.declarations import check_declared
from .folder.decode import Patches, Proofs, read_patches, read_proofs
from .folder.files import Folder
from .folder.schema import check_network, is_number
from .limits import DEFAULT, Limits

Array = NDArray[Any]


class Execution:
    """The network, patches and proofs of a folder.

    Attributes:
        network: the operation list, in fractions if `exact`.
        plain: the operation list in floating point, for replays.
        patches, proofs: of the certificate.
        is_well_formed: `P` bool, which patterns are possible for the network.
        budget: memory and work of the check.

    Raises:
        BadCertificate: the files are not consistent; nothing is certified.
        TooLarge: the check would exceed a limit.
    """

    def __init__(self, folder: Folder, *, exact: bool = False, limits: Limits = DEFAULT) -> None:
        header = folder.header
        self.claim, self.exact = header.get("claim"), exact
        if self.claim not in ("float32", "real"):
            raise BadCertificate(f"unknown claim {quote(self.claim)}")
        epsilon = header.get("epsilon")
        if not is_number(epsilon) or float(epsilon) < 0:  # type: ignore[arg-type]
            raise BadCertificate(f"epsilon is {quote(epsilon)}, which is not a float64 number >= 0")
        self.epsilon = float(epsilon)  # type: ignore[arg-type]
        check_declared(folder)
        with reject_malformed("the files have a malformed entry"):
            check_network(folder.network)
            check_operations(folder.network, folder.tensors)
            self.budget = Budget(folder, limits, exact=exact)
            self.network = Network(folder.network, folder.tensors, exact=exact)
            self.patches: Patches = read_patches(folder, self.network.atoms, self.network.classes)
            sizes = (len(self.patches), self.network.classes, self.network.atoms)
            self.proofs: Proofs = read_proofs(folder, *sizes, self.network.input_shape)
            self.is_well_formed = self.network.find_well_formed(self.patches.bits)
        if type(header.get("points")) is not int or header["points"] != len(self.patches):
            raise BadCertificate(
                f"the header declares {quote(header.get('points'))} points, but the files have another number"
            )
        self.folder = folder
        self.plain = Network(folder.network, folder.tensors) if exact else self.network

    @reject_malformed("the recorded inputs cannot be replayed")
    def check_replay(self) -> float:
        """Return the largest deviation of recorded from replayed logits, in units of the bound.

        Raises:
            BadCertificate: a recorded logit cannot come from this operation list and these patches, or the comparison
                would have no meaning: a recorded NaN, an input outside the box, or an infinite bound.
        """
        recorded = self.folder.replay
        if set(recorded) != {"inputs", "base_logits", "logits"}:
            raise BadCertificate("the replay file lacks its inputs or logits")
        x, network = recorded["inputs"], self.network
        if x.shape[1:] != network.input_shape or x.dtype != np.float32 or not len(x):
            raise BadCertificate("the replay inputs do not fit the network")
        for name in ("base_logits", "logits"):
            logits = recorded[name]
            if logits.dtype != np.float32 or logits.shape != (len(x), network.classes) or not np.isfinite(logits).all():
                raise BadCertificate(f"the recorded {name} are not n x K finite float32 numbers")
        flat = x.reshape(len(x), -1)
        if not ((flat >= self.proofs.low) & (flat <= self.proofs.high)).all():
            raise BadCertificate("a replay input lies outside the box")
        plain = self.plain
        worst = 0.0
        for i in range(len(x)):
            logits, atoms = plain.replay(x[i : i + 1])
            everywhere = self._open_all_relus(plain, plain.compute_bits(atoms))
            error = plain.execution_errors(everywhere, x[i].astype(np.float64), x[i].astype(np.float64))
            allowed = 2 * error.logits[0] + 1e-6
            base = float((abs(recorded["base_logits"][i] - logits[0]) / allowed).max())
            patched = self.patches.apply(logits, self.compute_gates(plain, x[i : i + 1], atoms))
            candidates = [patched[0]]
            margin = float(np.abs(atoms).min()) if atoms.size else np.inf
            if self.patches.gate == "exact" and margin <= float(error.margins.max(initial=0.0)):
                candidates.append(logits[0])
            room = allowed + 4 * UNIT32 * (abs(patched[0]) + abs(self.patches.change(network.classes)).sum())
            if self.patches.gate == "soft":
                gate_error = min(1.0, self.patches.slope * float(error.margins.sum()))
                room = room + gate_error * abs(self.patches.change(network.classes)).sum(axis=0)
            if not (np.isfinite(allowed).all() and np.isfinite(room).all()):
                raise BadCertificate(f"the rounding bound of replay input {i} is not finite")
            deviation = float(
                np.max([base, np.min([(abs(recorded["logits"][i] - c) / room).max() for c in candidates])])
            )
            if not deviation <= 1:  # also for NaN
                raise BadCertificate(
                    f"recorded logits deviate from the replay by {deviation:.3g} times the rounding bound (input {i})"
                )
            worst = max(worst, deviation)
        return worst

    @staticmethod
    def _open_all_relus(network: Network, bits: Array) -> Array:
        wide = bits.copy()
        for number, place in network.atom_slices.items():
            if network.entries[number]["op"] == "relu":
                wide[:, place] = True
        return wide

    def compute_gates(self, network: Network, x: Array, atoms: Array) -> Array:
        """Return gates `B x P` of inputs `B x ...` with the given values of their atoms."""
        patches = self.patches
        if patches.gate == "exact":
            _, executed = network.replay(x, np.float32)
            packed = np.packbits(network.compute_bits(executed), axis=1, bitorder="little")
            return (packed[:, None, :] == patches.pattern[None]).all(axis=2).astype(np.float64)
        cost = np.zeros((len(x), len(patches)))
        block = max(1, GATES // max(1, network.atoms))
        for number, place in network.atom_slices.items():
            part = atoms[:, place]
            if network.entries[number]["op"] == "relu":
                on, off = np.clip(-patches.slope * part, 0, 1), np.clip(patches.slope * part, 0, 1)
            else:
                spread = part.reshape(len(part), -1, network._width(number))
                gap = np.clip(patches.slope * (spread.max(-1, keepdims=True) - spread), 0, 1)
                on, off = gap.reshape(len(part), -1), None
            for start in range(0, len(patches), block):
                some = slice(start, start + block)
                stored = patches.bits[some, place]
                cost[:, some] += on @ stored.T
                if off is not None:
                    cost[:, some] += off @ (~stored).T
        gates, keep = np.maximum(0, 1 - cost), np.zeros_like(cost)
        order, starts = patches.groups
        keep[:, order[starts]] = np.maximum.reduceat(gates[:, order], starts, axis=1)
        return keep

    @reject_malformed("the inputs cannot be replayed")
    @np.errstate(all="ignore")  # numbers that overflow are judged, not reported
    def find_openings(self, x: Array) -> Array:
        """Return which inputs `B x ...` open any gate in a float32 replay, `B` bool."""
        network, chunk = self.plain, self.budget.batch
        self.budget.spend_replays(len(x), f"the replay of {len(x)} inputs")
        keys = {row.tobytes() for row in self.patches.pattern}
        parts = []
        for start in range(0, len(x), chunk):
            some = x[start : start + chunk].astype(np.float32)
            _, atoms = network.replay(some, np.float32)
            if self.patches.gate == "soft":
                parts.append(self.compute_gates(network, some, atoms.astype(np.float64)).max(axis=1, initial=0) > 0)
            else:
                packed = np.packbits(network.compute_bits(atoms), axis=1, bitorder="little")
                parts.append(np.asarray([row.tobytes() in keys for row in packed]))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)

    def observe_points(self, points: Array) -> tuple[Array, Array]:
        """Execute the base network in float32 (numpy) at the points, one per patch.

        Returns:
            `P` bool, which points lie in the box and have the bits of their patch; and `P` bool, for which points the
            base network predicts the label of their patch (which must not be its target).
        """
        network, label = self.plain, self.patches.label
        self._require_fitting(points)
        flat = points.reshape(len(points), -1)
        inside = np.asarray(((flat >= self.proofs.low) & (flat <= self.proofs.high)).all(axis=1))
        labelled = label != self.patches.target
        for start in range(0, len(points), self.budget.batch):
            part = slice(start, start + self.budget.batch)
            logits, atoms = network.replay(points[part], np.float32)
            inside[part] &= (network.compute_bits(atoms) == self.patches.bits[part]).all(axis=1)
            labelled[part] &= np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == label[part])
        return inside, labelled

    def _require_fitting(self, points: Array) -> None:
        if points.shape != (len(self.patches), *self.network.input_shape):
            wanted = (len(self.patches), *self.network.input_shape)
            raise BadCertificate(
                f"the points have the shape {points.shape}, not {wanted}: one input per patch, in the same order"
            )

    def _describe_regions(self, points: Array, most: int = 50, tries: int = 64, reach: float = 0.01) -> list[str]:
        """Describe how far the regions of some points extend, by small random changes and one-feature flips."""
        network = self.plain
        low, high = self.proofs.low, self.proofs.high
        draws = np.random.default_rng(0)
        alone, fractions_inside, some = 0, [], np.arange(min(most, len(points)))
        for p in some:
            flat = points[p].reshape(-1).astype(np.float64)
            near = np.clip(flat + reach * (2 * draws.random((tries, len(flat))) - 1), low, high)
            ends = np.where(abs(flat - low) < abs(flat - high), high, low)
            features = draws.permutation(len(flat))[:tries]
            flips = np.repeat(flat[None], len(features), axis=0)
            flips[np.arange(len(features)), features] = ends[features]
            x = np.concatenate([near, flips]).astype(np.float32).reshape(-1, *network.input_shape)
            parts = [x[start : start + self.budget.batch] for start in range(0, len(x), self.budget.batch)]
            found = [network.compute_bits(network.replay(part, np.float32)[1]) for part in parts]
            stays = np.concatenate([(bits == self.patches.bits[p]).all(axis=1) for bits in found])
            fractions_inside.append(stays[:tries].mean())
            alone += not stays.any()
        if not len(some):
            return []
        return [
            f"for {alone} of {len(some)} points every tested change leaves the region: such a certificate covers "
            "little but its own point; on average "
            f"{100 * float(np.mean(fractions_inside)):.1f} % of changes of at most {reach:g} per feature stay inside"
        ]

    def _find_flipped(self, points: Array) -> Array:
        """Return for which points the patched network, replayed in numpy, no longer predicts the label, `P` bool."""
        network = self.plain
        out = []
        for start in range(0, len(points), self.budget.batch):
            some = points[start : start + self.budget.batch]
            logits, atoms = network.replay(some, np.float64)
            patched = self.patches.apply(logits, self.compute_gates(network, some, atoms))
            label = self.patches.label[start : start + self.budget.batch]
            rest = patched.copy()
            rest[np.arange(len(some)), label] = -np.inf
            out.append(rest.max(axis=1) > patched[np.arange(len(some)), label])
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)
