"""The verdicts: every inequality recomputed by weak duality, with explicit rounding bounds.

For point p with pattern b, target k and class j, and multipliers lambda >= 0, the checker computes

    D = max over the box of [ f_j(u) - f_k(u) + sum_i lambda_i (q_i(u) + e_i) ]

with f, q the affine forms of the pattern and e the bound on float32 execution. Every input whose executed bits equal
the pattern has q_i >= -e_i, so D plus the errors of both logits bounds the executed difference. Added to it are the
error of this float64 computation (none in the rational mode) and what adding the shift may lose in float32.

What decides is a sign, so nothing may be rounded in its favour. In float64 the terms of the last sum are bounds that
are rounded up, and what the sum itself may lose is taken off; in the rational mode all terms are fractions, and the
spare room is rounded down to a float only when its sign is settled by that.
"""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exact import below, fractions, rational
from .execution import Execution
from .files import Folder, refusing
from .harm import Harm
from .limits import DEFAULT, Limits
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
        mislabelled: how many of the points are not answered with their patch's label by the base network, executed in
            float32: the patch then does not forget what it says.
        notes: further findings, one sentence each.
    """

    verdicts: list[str]
    spare: Array
    claim: str
    epsilon: float
    replay: float
    exact: bool
    strays: int
    mislabelled: int
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether every patch is certified, and speaks of its point and its answer where points were given."""
        return not self.strays and not self.mislabelled and all(verdict == CERTIFIED for verdict in self.verdicts)

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
            "mislabelled": self.mislabelled,
            "verdicts": self.verdicts,
            "spare": [float(v) for v in self.spare],
            "notes": self.notes,
        }


class Checker(Execution):
    """A folder opened for checking; see `Execution` for what is refused.

    Attributes:
        refuted: `P` bool, which patches state a label that the base network answers nowhere in their region (known
            once the patch was looked at).
    """

    def __init__(self, folder: Folder, *, exact: bool = False, limits: Limits = DEFAULT) -> None:
        super().__init__(folder, exact=exact, limits=limits)
        self.refuted = np.zeros(len(self.patches), dtype=bool)

    @functools.cached_property
    def _harm(self) -> Harm:
        p, rounded = self.patches, self.claim == "float32"
        return Harm(p.kind, p.target, p.shift, p.group, self.network.classes, rounded=rounded)

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
        notes, strays, mislabelled, flipped = [], 0, 0, np.zeros(count, dtype=bool)
        if self.refuted.any():
            notes.append(f"{int(self.refuted.sum())} patches state a label that the base answers nowhere in the region")
        if points is not None:
            inside, labelled = self.observed(points)
            flipped = self._flipped(points) & labelled
            strays, mislabelled = int((~inside).sum()), int((~labelled).sum())
            if strays:
                notes.append(f"{strays} points lie outside the box or their executed bits are not the pattern")
            if mislabelled:
                notes.append(f"{mislabelled} points are not answered with the label of their patch by the base network")
            notes.extend(self._sizes(points))
        verdicts = [CERTIFIED if g else POINT_ONLY if f else FAILED for g, f in zip(good, flipped, strict=True)]
        return Report(verdicts, spare, str(self.claim), self.epsilon, replay, self.exact, strays, mislabelled, notes)

    def _spare(self, part: Array) -> Array:
        """By how much the tightest inequality of each patch holds: `P'` floats, never above the exact value."""
        network, patches, exactly = self.network, self.patches, self._exactly
        bits, target, index = patches.bits[part], patches.target[part], np.arange(len(part))
        errors, bounded = self._errors(part)
        multipliers = self.proofs.dense(part, network.atoms)
        with np.errstate(over="ignore", invalid="ignore"):
            limit = self._limits(bits, target, multipliers, errors)
            size = exactly(errors.logit_size) + exactly(errors.logits)
            if not self.exact or network.inexact:
                limit = limit + exactly(errors.dust)[:, None]
            if patches.kind == "paper":
                spare = self._paper_spare(part, limit, size)
            else:
                shift = exactly(patches.shift[part])[:, None]
                own = size[index, target][:, None]
                if patches.kind == "constant" and patches.gate == "soft":  # other gates may act on any logit
                    own = np.maximum(own, size)
                terms = self._lost(own, shift)
                if patches.kind == "minimal":
                    terms = terms + self._lost(size, shift)
                terms = exactly(self.epsilon) + terms
                if patches.gate == "soft":
                    terms = terms + self._harm.on(target, patches.shift[part], exact=self.exact)
                spare = self._settled(shift - terms - limit, abs(shift) + terms + abs(limit))
        found = self._least(spare, target)
        label = rational(limit[index, patches.label[part]]) if self.exact else limit[index, patches.label[part]]
        self.refuted[part] = bounded & np.asarray(label < 0, dtype=bool) & (patches.label[part] != target)
        proved = bounded & ~np.isnan(found) & ~self.refuted[part]
        if patches.kind == "paper" and patches.gate == "soft":  # no inequality covers what other gates then squeeze
            proved[:] = False
        return np.where(proved, found, -np.inf)

    def _settled(self, spare: Array, size: Array) -> Array:
        """The spare room less what its float64 sum of terms of the given sizes can have lost."""
        return spare if self.exact else spare - 8 * UNIT64 * size - TINY64

    def _least(self, spare: Array, target: Array) -> Array:
        """The smallest of each row, the target's column left out, as a float that is not above it: `P'`."""
        spare[np.arange(len(spare)), target] = np.inf
        if not self.exact:
            return np.asarray(spare.min(axis=1))
        columns = np.arange(spare.shape[1])
        return np.asarray([below(min(rational(row[columns != k]))) for row, k in zip(spare, target, strict=True)])

    def _exactly(self, value: Any) -> Any:
        """The value itself, or in the rational mode its exact fractions."""
        if not self.exact:
            return value
        return Fraction(float(value)) if np.ndim(value) == 0 else fractions(value)

    def _errors(self, part: Array) -> tuple[Errors, Array]:
        """The errors that the claim is about, and for which points no number of the execution overflows.

        In real arithmetic nothing is rounded; what underflow costs the float64 evaluation takes the errors' place.
        """
        bits, (low, high) = self.patches.bits[part], (self.proofs.low, self.proofs.high)
        if self.claim == "real":
            tiny = 0.0 if self.exact and not self.network.inexact else TINY64
            errors = self.network.execution_errors(bits, low, high, unit=0.0, tiny=tiny)
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
        if patches.gate == "exact":
            return np.asarray(abs(patches.shift[part]))
        return np.full(len(part), abs(patches.change(self.network.classes)).sum())

    def _limits(self, bits: Array, target: Array, multipliers: Array, errors: Errors) -> Array:
        """`P' x K` bounds on executed f_j - f_k (column k meaningless)."""
        network, exactly = self.network, self._exactly
        count, classes = len(bits), network.classes
        multipliers[np.arange(count), target] = 0
        weights = exactly(multipliers)
        logits0, margins0 = network.forms_at_zero(bits)
        cotangent = np.broadcast_to(np.eye(classes), (count, classes, classes)).copy()
        cotangent[np.arange(count), :, target] -= 1
        rows = exactly(cotangent).reshape(count * classes, classes)
        wide = np.repeat(bits, classes, axis=0)
        slope = network.pull_back(wide, rows, weights.reshape(count * classes, -1))
        slope = slope.reshape(count, classes, -1)
        low, high = exactly(self.proofs.low), exactly(self.proofs.high)
        corner = np.maximum(slope * low, slope * high).sum(axis=2)
        constant = logits0 - logits0[np.arange(count), target][:, None]
        margins, logits = exactly(errors.margins), exactly(errors.logits)
        if self.exact:
            pulled = (weights * margins0[:, None, :]).sum(axis=2)
            slack = (weights * margins[:, None, :]).sum(axis=2)
        else:
            pulled = np.matmul(weights, margins0[:, :, None])[:, :, 0]
            slack = np.matmul(weights, margins[:, :, None])[:, :, 0]
        total = constant + pulled + slack + corner
        total = total + (logits + logits[np.arange(count), target][:, None])
        if self.exact and not network.inexact:
            return np.asarray(total)
        return np.asarray(total + exactly(self._evaluation_error(multipliers, target, errors)))

    def _evaluation_error(self, multipliers: Array, target: Array, errors: Errors) -> Array:
        terms = np.matmul(multipliers, (errors.margin_size + errors.margins)[:, :, None])[:, :, 0]
        size = errors.logit_size
        terms = terms + size + size[np.arange(len(target)), target][:, None]
        return 4 * gamma(self.network.evaluation_steps, UNIT64) * terms

    def _lost(self, size: Array, change: Array) -> Array:
        """What adding `change` to a logit can lose in float32."""
        if self.claim == "real":
            return 0 * (size + change)
        return 2 * self._exactly(UNIT32) * (size + abs(change)) + self._exactly(TINY32)

    def _paper_spare(self, part: Array, limit: Array, size: Array) -> Array:
        patches, exactly = self.patches, self._exactly
        assert patches.alpha is not None
        assert patches.beta is not None
        alpha, beta = exactly(patches.alpha[part]), exactly(patches.beta[part])
        both = size + size[np.arange(len(part)), patches.target[part]][:, None]
        terms = exactly(self.epsilon) + 8 * self._lost(both, beta)
        scaled = alpha * limit
        return self._settled(-terms - (scaled + beta), terms + abs(scaled) + abs(beta))
