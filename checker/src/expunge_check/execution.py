"""A folder opened, and what its network and patches give when they are executed: replays, gates, points, regions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .budget import Budget
from .declared import check_declared
from .errors import shown
from .files import BadCertificate, Folder, refusing
from .form import check_operations
from .limits import DEFAULT, Limits
from .network import UNIT32, Network
from .schema import check_network, is_number
from .statements import Patches, Proofs, read_patches, read_proofs

Array = NDArray[Any]


class Execution:
    """The network, patches and proofs of a folder.

    Attributes:
        network: the operation list, in fractions where `exact`.
        plain: the same in floating point, for replays.
        patches, proofs: what is claimed, and why it should hold.
        fine: `P` bool, which patterns can be one of the network's.
        budget: memory and work of the check.

    Raises:
        BadCertificate: the files do not fit together; nothing is certified.
        TooLarge: the check would be beyond the limits.
    """

    def __init__(self, folder: Folder, *, exact: bool = False, limits: Limits = DEFAULT) -> None:
        header = folder.header
        self.claim, self.exact = header.get("claim"), exact
        if self.claim not in ("float32", "real"):
            raise BadCertificate(f"unknown claim {shown(self.claim)}")
        epsilon = header.get("epsilon")
        if not is_number(epsilon) or float(epsilon) < 0:  # type: ignore[arg-type]
            raise BadCertificate("epsilon is not a number >= 0")
        self.epsilon = float(epsilon)  # type: ignore[arg-type]
        if self.epsilon != epsilon:
            raise BadCertificate(f"epsilon is {shown(epsilon)}, which float64 cannot hold")
        check_declared(folder)
        with refusing("the files hold something malformed"):
            check_network(folder.network)
            check_operations(folder.network, folder.tensors)
            self.budget = Budget(folder, limits, exact=exact)
            self.network = Network(folder.network, folder.tensors, exact=exact)
            self.patches: Patches = read_patches(folder, self.network.atoms, self.network.classes)
            inputs = int(np.prod(self.network.input_shape))
            sizes = (len(self.patches), self.network.classes, self.network.atoms, inputs)
            self.proofs: Proofs = read_proofs(folder, *sizes)
            self.fine = self.network.well_formed(self.patches.bits)
        if type(header.get("points")) is not int or header["points"] != len(self.patches):
            raise BadCertificate(
                f"the header speaks of {shown(header.get('points'))} points, the files hold another number"
            )
        self.folder = folder
        self.plain = Network(folder.network, folder.tensors) if exact else self.network

    @refusing("the recorded inputs cannot be replayed")
    def check_replay(self) -> float:
        """Largest deviation of recorded logits from replayed ones, in units of the bound.

        Only numbers can deviate: a recorded NaN, an input so large that the bound is infinite, or one of which the
        certificate does not speak would make the comparison worth nothing, and is refused.

        Raises:
            BadCertificate: a recorded logit cannot come from this operation list and these patches.
        """
        held = self.folder.replay
        if set(held) != {"inputs", "base_logits", "logits"}:
            raise BadCertificate("the replay file lacks its inputs or logits")
        x, network = held["inputs"], self.network
        if x.shape[1:] != network.input_shape or x.dtype != np.float32 or not len(x):
            raise BadCertificate("the replay inputs do not fit the network")
        for name in ("base_logits", "logits"):
            logits = held[name]
            if logits.dtype != np.float32 or logits.shape != (len(x), network.classes) or not np.isfinite(logits).all():
                raise BadCertificate(f"the recorded {name} are not n x K finite float32 numbers")
        flat = x.reshape(len(x), -1)
        if not ((flat >= self.proofs.low) & (flat <= self.proofs.high)).all():
            raise BadCertificate("a replay input lies outside the box")
        plain = self.plain
        worst = 0.0
        for i in range(len(x)):
            logits, atoms = plain.replay(x[i : i + 1])
            everywhere = self._open_relus(plain, plain.bits(atoms))
            error = plain.execution_errors(everywhere, x[i].astype(np.float64), x[i].astype(np.float64))
            allowed = 2 * error.logits[0] + 1e-6
            base = float((abs(held["base_logits"][i] - logits[0]) / allowed).max())
            patched = self.patches.apply(logits, self.gates(plain, x[i : i + 1], atoms))
            close = [patched[0]]
            margin = float(np.abs(atoms).min()) if atoms.size else np.inf
            if self.patches.gate == "exact" and margin <= float(error.margins.max(initial=0.0)):
                close.append(logits[0])
            room = allowed + 4 * UNIT32 * (abs(patched[0]) + abs(self.patches.change(network.classes)).sum())
            if self.patches.gate == "soft":
                gate_error = min(1.0, self.patches.slope * float(error.margins.sum()))
                room = room + gate_error * abs(self.patches.change(network.classes)).sum(axis=0)
            if not (np.isfinite(allowed).all() and np.isfinite(room).all()):
                raise BadCertificate(f"the rounding bound of replay input {i} is not finite")
            deviation = float(np.max([base, np.min([(abs(held["logits"][i] - c) / room).max() for c in close])]))
            if not deviation <= 1:  # also where it is no number
                raise BadCertificate(
                    f"recorded logits deviate from the replay by {deviation:.3g} times the rounding bound (input {i})"
                )
            worst = max(worst, deviation)
        return worst

    @staticmethod
    def _open_relus(network: Network, bits: Array) -> Array:
        wide = bits.copy()
        for number, place in network.places.items():
            if network.entries[number]["kind"] == "relu":
                wide[:, place] = True
        return wide

    def gates(self, network: Network, x: Array, atoms: Array) -> Array:
        """Gates `B x P` of inputs whose atoms' values are given."""
        patches = self.patches
        if patches.gate == "exact":
            _, executed = network.replay(x, np.float32)
            packed = np.packbits(network.bits(executed), axis=1, bitorder="little")
            return (packed[:, None, :] == patches.pattern[None]).all(axis=2).astype(np.float64)
        cost = np.zeros((len(x), len(patches)))
        for number, place in network.places.items():
            part, stored = atoms[:, place], patches.bits[:, place]
            if network.entries[number]["kind"] == "relu":
                cost += (
                    np.clip(-patches.slope * part, 0, 1) @ stored.T + np.clip(patches.slope * part, 0, 1) @ (~stored).T
                )
            else:
                spread = part.reshape(len(part), -1, network._width(number))
                gap = np.clip(patches.slope * (spread.max(-1, keepdims=True) - spread), 0, 1)
                cost += gap.reshape(len(part), -1) @ stored.T
        gates = np.maximum(0, 1 - cost)
        keep = np.zeros_like(gates)
        for number in np.unique(patches.group):
            members = np.flatnonzero(patches.group == number)
            keep[:, members[0]] = gates[:, members].max(axis=1)
        return keep

    @refusing("the inputs cannot be replayed")
    def openings(self, x: Array) -> Array:
        """Which inputs `B x ...` open any gate, by a float32 replay: `B` bool."""
        network, chunk = self.plain, self.budget.batch
        self.budget.spend_replays(len(x), f"the replay of {len(x)} inputs")
        keys = {row.tobytes() for row in self.patches.pattern}
        parts = []
        for start in range(0, len(x), chunk):
            some = x[start : start + chunk].astype(np.float32)
            _, atoms = network.replay(some, np.float32)
            if self.patches.gate == "soft":
                parts.append(self.gates(network, some, atoms.astype(np.float64)).max(axis=1, initial=0) > 0)
            else:
                packed = np.packbits(network.bits(atoms), axis=1, bitorder="little")
                parts.append(np.asarray([row.tobytes() in keys for row in packed]))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)

    def observed(self, points: Array) -> tuple[Array, Array]:
        """What numpy's float32 execution of the base network shows at the points, one a patch: two times `P` bool.

        The first: which points lie in the box with the bits of their pattern. The second: which are answered with the
        label of their patch (and not with its target).
        """
        network, label = self.plain, self.patches.label
        self._need_fitting(points)
        flat = points.reshape(len(points), -1)
        inside = np.asarray(((flat >= self.proofs.low) & (flat <= self.proofs.high)).all(axis=1))
        labelled = label != self.patches.target
        for start in range(0, len(points), self.budget.batch):
            part = slice(start, start + self.budget.batch)
            logits, atoms = network.replay(points[part], np.float32)
            inside[part] &= (network.bits(atoms) == self.patches.bits[part]).all(axis=1)
            labelled[part] &= np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == label[part])
        return inside, labelled

    def _need_fitting(self, points: Array) -> None:
        if points.shape != (len(self.patches), *self.network.input_shape):
            wanted = (len(self.patches), *self.network.input_shape)
            raise BadCertificate(f"the points are {points.shape}, not one input a patch in their order: {wanted}")

    def _sizes(self, points: Array, most: int = 50, tries: int = 64, reach: float = 0.01) -> list[str]:
        """Whether the regions of some points hold more than the point: small random changes, one-feature flips."""
        network = self.plain
        low, high = self.proofs.low, self.proofs.high
        draws = np.random.default_rng(0)
        alone, shares, some = 0, [], np.arange(min(most, len(points)))
        for p in some:
            flat = points[p].reshape(-1).astype(np.float64)
            near = np.clip(flat + reach * (2 * draws.random((tries, len(flat))) - 1), low, high)
            ends = np.where(abs(flat - low) < abs(flat - high), high, low)
            features = draws.permutation(len(flat))[:tries]
            flips = np.repeat(flat[None], len(features), axis=0)
            flips[np.arange(len(features)), features] = ends[features]
            x = np.concatenate([near, flips]).astype(np.float32).reshape(-1, *network.input_shape)
            stays = (network.bits(network.replay(x, np.float32)[1]) == self.patches.bits[p]).all(axis=1)
            shares.append(stays[:tries].mean())
            alone += not stays.any()
        if not len(some):
            return []
        return [
            f"of {len(some)} points {alone} have regions from which every change that was tried leaves: such a "
            "certificate covers little but its own point; on average "
            f"{100 * float(np.mean(shares)):.1f} % of changes of at most {reach:g} a feature stay inside"
        ]

    def _flipped(self, points: Array) -> Array:
        """Which points the patched network, replayed in float32 numpy, no longer gives their label."""
        network = self.plain
        out = []
        for start in range(0, len(points), self.budget.batch):
            some = points[start : start + self.budget.batch]
            logits, atoms = network.replay(some, np.float64)
            patched = self.patches.apply(logits, self.gates(network, some, atoms))
            label = self.patches.label[start : start + self.budget.batch]
            rest = patched.copy()
            rest[np.arange(len(some)), label] = -np.inf
            out.append(rest.max(axis=1) > patched[np.arange(len(some)), label])
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)
