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

from .execution import Execution
from .files import refusing
from .network import OVERFLOW, TINY32, TINY64, UNIT32, UNIT64, Errors, gamma

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


class Checker(Execution):
    """A folder opened for checking; see `Execution` for what is refused."""

    @refusing("the operation list cannot be evaluated")
    def check(self, points: Array | None = None, *, chunk: int | None = None) -> Report:
        """Verdicts for every patch; `points`: their inputs `P x ...`, to tell a flip at the point from a failure."""
        chunk = chunk or self.budget.chunk
        if points is not None:
            self._need_fitting(points)
            self.budget.spend_points(len(points))
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


def _exactly(value: Any, exact: bool) -> Any:
    """The value itself, or its exact fractions."""
    if not exact:
        return value
    if np.ndim(value) == 0:
        return Fraction(float(value))
    from .exact import fractions

    return fractions(value)
