"""The verdicts: every inequality recomputed by weak duality, with explicit rounding bounds.

For point p with pattern b, target k and class j, and multipliers lambda >= 0, the checker computes

    D = max over the box of [ f_j(u) - f_k(u) + sum_i lambda_i (q_i(u) + e_i) ]

with f, q the affine forms of the pattern and e the bound on float32 execution. Every input whose executed bits equal
the pattern has q_i >= -e_i, so D plus the errors of both logits bounds the executed difference. Added to it are the
error of this float64 computation (none in the rational mode) and what adding the shift may lose in float32.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import BadCertificate, Folder, refusing
from .network import OVERFLOW, TINY32, TINY64, UNIT32, UNIT64, Errors, Network, gamma
from .schema import check_network, is_number
from .statements import Patches, Proofs, read_patches, read_proofs

Array = NDArray[Any]

CERTIFIED, POINT_ONLY, FAILED = "certified", "flipped at the point only", "failed"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What the checker found.

    Attributes:
        verdicts: `P` texts: certified / flipped at the point only / failed.
        spare: `P` floats, by how much the tightest inequality holds (negative: it does not).
        claim, epsilon: of the certificate.
        replay: largest deviation of recorded logits from the replayed ones, in units of the bound allowed.
        exact: whether rational arithmetic was used.
        strays: how many of the points that were given lie outside the box or have other executed bits than their
            patch (0 where none were given): the certificate does not speak of them.
        notes: further findings, one sentence each.
    """

    verdicts: list[str]
    spare: Array
    claim: str
    epsilon: float
    replay: float
    exact: bool
    strays: int
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether every patch is certified, and speaks of its point where points were given."""
        return not self.strays and all(verdict == CERTIFIED for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        counts = {name: self.verdicts.count(name) for name in (CERTIFIED, POINT_ONLY, FAILED)}
        return {
            "points": len(self.verdicts),
            "counts": counts,
            "claim": self.claim,
            "epsilon": self.epsilon,
            "replay": self.replay,
            "exact": self.exact,
            "strays": self.strays,
            "verdicts": self.verdicts,
            "spare": [float(v) for v in self.spare],
            "notes": self.notes,
        }


class Checker:
    """A folder opened for checking.

    Raises:
        BadCertificate: the files do not fit together; nothing is certified.
    """

    def __init__(self, folder: Folder, *, exact: bool = False) -> None:
        header = folder.header
        self.claim, self.exact = header.get("claim"), exact
        if self.claim not in ("float32", "real"):
            raise BadCertificate(f"unknown claim {self.claim!r}")
        epsilon = header.get("epsilon")
        if not is_number(epsilon) or float(epsilon) < 0:  # type: ignore[arg-type]
            raise BadCertificate("epsilon is not a number >= 0")
        self.epsilon = float(epsilon)  # type: ignore[arg-type]
        with refusing("the files hold something malformed"):
            check_network(folder.network)
            self.network = Network(folder.network, folder.tensors, exact=exact)
            self.patches: Patches = read_patches(folder, self.network.atoms, self.network.classes)
            inputs = int(np.prod(self.network.input_shape))
            sizes = (len(self.patches), self.network.classes, self.network.atoms, inputs)
            self.proofs: Proofs = read_proofs(folder, *sizes)
            self.fine = self.network.well_formed(self.patches.bits)
        if type(header.get("points")) is not int or header["points"] != len(self.patches):
            raise BadCertificate(f"the header speaks of {header.get('points')!r} points, the files hold another number")
        self.folder = folder

    @refusing("the operation list cannot be evaluated")
    def check(self, points: Array | None = None, *, chunk: int = 32) -> Report:
        """Verdicts for every patch; `points`: their inputs `P x ...`, to tell a flip at the point from a failure."""
        if points is not None:
            self._need_fitting(points)
        replay = self.check_replay()
        count = len(self.patches)
        spare = np.full(count, -np.inf)
        for start in range(0, count, chunk):
            part = np.arange(start, min(count, start + chunk))
            spare[part] = self._spare(part)
        good = (spare >= 0) & self.fine & (self.patches.target != self.patches.label)
        flipped = self._flipped(points) if points is not None else np.zeros(count, dtype=bool)
        verdicts = [CERTIFIED if g else POINT_ONLY if f else FAILED for g, f in zip(good, flipped, strict=True)]
        notes, strays = [], 0
        if points is not None:
            strays = int((~self.inside(points)).sum())
            if strays:
                notes.append(f"{strays} points lie outside the box or their executed bits are not the pattern")
            notes.extend(self._sizes(points))
        return Report(verdicts, spare, str(self.claim), self.epsilon, replay, self.exact, strays, notes)

    # inequalities ------------------------------------------------------------------------------------------------

    def _spare(self, part: Array) -> Array:
        network, patches = self.network, self.patches
        bits, target = patches.bits[part], patches.target[part]
        errors, bounded = self._errors(part)
        multipliers = self.proofs.dense(part, network.atoms)
        with np.errstate(over="ignore", invalid="ignore"):
            limit = self._limits(bits, target, multipliers, errors)
        index = np.arange(len(part))
        size = errors.logit_size + errors.logits
        if not self.exact:
            limit = limit + errors.dust[:, None]
        if patches.kind == "paper":
            spare = self._paper_spare(part, limit, size)
        else:
            shift = patches.shift[part]
            own = size[index, target][:, None]
            if patches.kind == "constant" and patches.gate == "soft":  # other patches' gates may act on any logit
                own = np.maximum(own, size)
            lost = self._lost(own, shift[:, None])
            if patches.kind == "minimal":
                lost = lost + self._lost(size, shift[:, None])
            others = self._others(part) if patches.gate == "soft" else 0.0
            terms = self.epsilon + lost + others
            spare = _exactly(shift, self.exact)[:, None] - _exactly(terms, self.exact) - limit
            spare = spare if self.exact else spare - 4 * UNIT64 * (abs(shift)[:, None] + terms + abs(limit))
        spare[index, target] = np.inf
        found = spare.min(axis=1).astype(np.float64)
        return np.where(bounded & ~np.isnan(found), found, -np.inf)

    def _errors(self, part: Array) -> tuple[Errors, Array]:
        """The errors that the claim is about, and for which points no number of the execution overflows.

        In real arithmetic nothing is rounded; what underflow costs the float64 evaluation takes the errors' place.
        """
        bits, (low, high) = self.patches.bits[part], (self.proofs.low, self.proofs.high)
        if self.claim == "real":
            errors = self.network.execution_errors(bits, low, high, unit=0.0, tiny=0.0 if self.exact else TINY64)
            bounded = np.ones(len(part), dtype=bool)
        else:
            errors = self.network.execution_errors(bits, low, high)
            bounded = errors.peak + self._reach(part, errors) <= OVERFLOW
        parts = {f.name: getattr(errors, f.name) for f in dataclasses.fields(errors)}
        for array in parts.values():
            bounded = bounded & np.isfinite(array).reshape(len(part), -1).all(axis=1)
        if not bounded.all():  # fractions cannot hold what is infinite
            fits = {name: np.where(bounded.reshape(-1, *(1,) * (a.ndim - 1)), a, 0) for name, a in parts.items()}
            errors = Errors(**fits)
        return errors, bounded

    def _reach(self, part: Array, errors: Errors) -> Array:
        """How far beyond the base's numbers the patches' own arithmetic may come, `P'`."""
        patches = self.patches
        if patches.beta is not None:  # every patch is computed, and those with closed gates are multiplied by 0
            return 4 * (errors.logit_size + errors.logits).max(axis=1) + abs(patches.beta).max(initial=0)
        everything = abs(patches.change(self.network.classes)).sum()
        return np.full(len(part), everything) if patches.gate == "soft" else abs(patches.shift[part])

    def _limits(self, bits: Array, target: Array, multipliers: Array, errors: Errors) -> Array:
        """`P' x K` bounds on executed f_j - f_k (column k meaningless)."""
        network = self.network
        count, classes = len(bits), network.classes
        multipliers[np.arange(count), target] = 0
        weights = _exactly(multipliers, self.exact)
        logits0, margins0 = network.forms_at_zero(bits)
        cotangent = np.broadcast_to(np.eye(classes), (count, classes, classes)).copy()
        cotangent[np.arange(count), :, target] -= 1
        rows = _exactly(cotangent, self.exact).reshape(count * classes, classes)
        wide = np.repeat(bits, classes, axis=0)
        slope = network.pull_back(wide, rows, weights.reshape(count * classes, -1))
        slope = slope.reshape(count, classes, -1)
        low, high = _exactly(self.proofs.low, self.exact), _exactly(self.proofs.high, self.exact)
        corner = np.maximum(slope * low, slope * high).sum(axis=2)
        constant = logits0 - logits0[np.arange(count), target][:, None]
        if self.exact:
            pulled = (weights * margins0[:, None, :]).sum(axis=2)
            slack = (weights * _exactly(errors.margins, True)[:, None, :]).sum(axis=2)
        else:
            pulled = np.matmul(weights, margins0[:, :, None])[:, :, 0]
            slack = np.matmul(weights, errors.margins[:, :, None])[:, :, 0]
        total = constant + pulled + slack + corner
        both = errors.logits + errors.logits[np.arange(count), target][:, None]
        total = total + _exactly(both, self.exact)
        if self.exact and not network.inexact:
            return total
        return total + _exactly(self._evaluation_error(multipliers, target, errors), self.exact)

    def _evaluation_error(self, multipliers: Array, target: Array, errors: Errors) -> Array:
        terms = np.matmul(multipliers, (errors.margin_size + errors.margins)[:, :, None])[:, :, 0]
        size = errors.logit_size
        terms = terms + size + size[np.arange(len(target)), target][:, None]
        return 4 * gamma(self.network.evaluation_steps, UNIT64) * terms

    def _lost(self, size: Array, change: Array) -> Array:
        """What adding `change` to a logit can lose in float32."""
        if self.claim == "real":
            return np.zeros(np.broadcast_shapes(np.shape(size), np.shape(change)))
        return 2 * UNIT32 * (size + abs(change)) + TINY32

    def _paper_spare(self, part: Array, limit: Array, size: Array) -> Array:
        patches = self.patches
        if patches.gate == "soft":
            return np.full(limit.shape, -np.inf)
        assert patches.alpha is not None
        assert patches.beta is not None
        alpha, beta = patches.alpha[part], patches.beta[part]
        both = size + size[np.arange(len(part)), patches.target[part]][:, None]
        lost = 8 * self._lost(both, beta)
        value = _exactly(alpha, self.exact) * limit + _exactly(beta, self.exact)
        spare = -_exactly(self.epsilon + lost, self.exact) - value
        if self.exact:
            return spare
        return np.asarray(spare - 4 * UNIT64 * (self.epsilon + lost + abs(alpha * limit) + abs(beta)))

    def _others(self, part: Array) -> Array:
        """Soft gates: what patches of other groups can add to f_j - f_k on these regions, each gate taken as open."""
        patches, classes = self.patches, self.network.classes
        first = {int(g): i for i, g in reversed(list(enumerate(patches.group)))}
        rows = np.asarray(list(first.values()), dtype=np.int64)
        groups, change = patches.group[rows], patches.change(classes)[rows]
        total = np.zeros((len(part), classes))
        for i, p in enumerate(part):
            others = change[groups != patches.group[p]]
            harm = others - others[:, patches.target[p]][:, None]
            total[i] = np.maximum(harm, 0).sum(axis=0)
        if self.claim == "float32":
            total = total + 2 * gamma(len(rows) + 3, UNIT32) * (abs(change).sum() + 1)
        return total

    # replays -----------------------------------------------------------------------------------------------------

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
        plain = network if not self.exact else Network(self.folder.network, self.folder.tensors)
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
    def openings(self, x: Array, *, chunk: int = 256) -> Array:
        """Which inputs `B x ...` open any gate, by a float32 replay: `B` bool."""
        network = self.network if not self.exact else Network(self.folder.network, self.folder.tensors)
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

    def inside(self, points: Array) -> Array:
        """Which points lie in the box with executed (numpy float32) bits equal to their pattern: `P` bool."""
        network = self.network if not self.exact else Network(self.folder.network, self.folder.tensors)
        self._need_fitting(points)
        flat = points.reshape(len(points), -1)
        fine = np.asarray(((flat >= self.proofs.low) & (flat <= self.proofs.high)).all(axis=1))
        for start in range(0, len(points), 256):
            part = slice(start, start + 256)
            _, atoms = network.replay(points[part], np.float32)
            fine[part] &= (network.bits(atoms) == self.patches.bits[part]).all(axis=1)
        return fine

    def _need_fitting(self, points: Array) -> None:
        if points.shape != (len(self.patches), *self.network.input_shape):
            wanted = (len(self.patches), *self.network.input_shape)
            raise BadCertificate(f"the points are {points.shape}, not one input a patch in their order: {wanted}")

    def _sizes(self, points: Array, most: int = 50, tries: int = 64, reach: float = 0.01) -> list[str]:
        """Whether the regions of some points hold more than the point: small random changes, one-feature flips."""
        network = self.network if not self.exact else Network(self.folder.network, self.folder.tensors)
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
        network = self.network if not self.exact else Network(self.folder.network, self.folder.tensors)
        out = []
        for start in range(0, len(points), 256):
            some = points[start : start + 256]
            logits, atoms = network.replay(some, np.float64)
            patched = self.patches.apply(logits, self.gates(network, some, atoms))
            label = self.patches.label[start : start + 256]
            rest = patched.copy()
            rest[np.arange(len(some)), label] = -np.inf
            out.append(rest.max(axis=1) > patched[np.arange(len(some)), label])
        return np.concatenate(out) if out else np.zeros(0, dtype=bool)


def _exactly(value: Any, exact: bool) -> Any:
    """The value itself, or its exact fractions."""
    if not exact:
        return value
    if np.ndim(value) == 0:
        return Fraction(float(value))
    from .exact import fractions

    return fractions(value)
