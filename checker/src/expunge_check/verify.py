"""Verdicts: every inequality is recomputed by weak duality, with explicit rounding bounds.

For point p with pattern b, target k and class j, and multipliers lambda >= 0, the checker computes

    D = max over the box of [ f_j(u) - f_k(u) + sum_i lambda_i (q_i(u) + e_i) ]

with the affine forms f, q of the pattern and the bound e on the errors of float32 execution. Every input whose executed
bits equal the pattern has q_i >= -e_i, so D plus the errors of both logits bounds the executed difference. The error of
this float64 computation (none in rational mode) and the float32 rounding error of adding the shift are added.

The verdict is the sign of the spare, the shift minus all these terms, so no rounding may increase the spare. In float64
the terms are bounds that are rounded up, and the rounding error of their sum is subtracted. In rational mode all terms
are fractions, and the spare is rounded down to a float, which keeps its sign.
"""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic.interference import Interference
from .arithmetic.network import OVERFLOW, TINY32, TINY64, UNIT32, UNIT64, ExecutionErrors, gamma
from .arithmetic.rational import require_rational, round_down, to_fractions
from .errors import reject_malformed
from .execution import Execution
from .folder.files import Folder
from .limits import DEFAULT, Limits

Array = NDArray[Any]

CERTIFIED, POINT_ONLY, FAILED = "certified", "flipped at the point only", "failed"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Result of a check.

    Attributes:
        verdicts: `P` strings: certified, flipped at the point only, or failed.
        spare: `P` floats, the amount by which the tightest inequality holds (negative: it does not hold).
        claim, epsilon: of the certificate.
        replay: largest deviation of recorded from replayed logits, in units of the allowed bound.
        exact: whether rational arithmetic was used.
        strays: number of given points that lie outside the box or have other executed bits than their patch; the
            certificate does not cover them.
        mislabelled: number of given points for which the base network, executed in float32, does not predict the label
            of their patch; the declared label is then false.
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
        """Whether every patch is certified and every given point matches its patch."""
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
    """Checks the content of a folder; see `Execution` for what is refused.

    Attributes:
        refuted: `P` bool, patches whose label the base network predicts nowhere in their region (set by `check`).
    """

    def __init__(self, folder: Folder, *, exact: bool = False, limits: Limits = DEFAULT) -> None:
        super().__init__(folder, exact=exact, limits=limits)
        self.refuted = np.zeros(len(self.patches), dtype=bool)

    @functools.cached_property
    def _interference(self) -> Interference:
        p, rounded = self.patches, self.claim == "float32"
        return Interference(p.correction, p.target, p.shift, p.group, self.network.classes, rounded=rounded)

    @reject_malformed("the operation list cannot be evaluated")
    @np.errstate(all="ignore")  # numbers that overflow are judged, not reported
    def check(self, points: Array | None = None, *, chunk: int | None = None) -> Report:
        """Return the verdicts for all patches.

        Args:
            points: the inputs of the patches, `P x ...`, to distinguish a flip at the point from a failure.
            chunk: patches processed together; by default as many as the limits allow.
        """
        chunk = chunk or self.budget.chunk
        if points is not None:
            self._require_fitting(points)
            self.budget.spend_points(len(points))
        replay = self.check_replay()
        count = len(self.patches)
        spare = np.full(count, -np.inf)
        for start in range(0, count, chunk):
            part = np.arange(start, min(count, start + chunk))
            spare[part] = self._compute_spare(part)
        is_certified = (spare >= 0) & self.is_well_formed & (self.patches.target != self.patches.label)
        notes, strays, mislabelled, flipped = [], 0, 0, np.zeros(count, dtype=bool)
        if self.refuted.any():
            notes.append(
                f"{int(self.refuted.sum())} patches have a label that the base network predicts nowhere in the region"
            )
        if points is not None:
            inside, labelled = self.observe_points(points)
            flipped = self._find_flipped(points) & labelled
            strays, mislabelled = int((~inside).sum()), int((~labelled).sum())
            if strays:
                notes.append(f"{strays} points lie outside the box or their executed bits are not the pattern")
            if mislabelled:
                notes.append(f"for {mislabelled} points the base network does not predict the label of their patch")
            notes.extend(self._describe_regions(points))
        verdicts = [CERTIFIED if g else POINT_ONLY if f else FAILED for g, f in zip(is_certified, flipped, strict=True)]
        return Report(verdicts, spare, str(self.claim), self.epsilon, replay, self.exact, strays, mislabelled, notes)

    def _compute_spare(self, part: Array) -> Array:
        """Return the spare of each patch, `P'` floats, never above the exact value."""
        network, patches, convert = self.network, self.patches, self._convert
        bits, target, index = patches.bits[part], patches.target[part], np.arange(len(part))
        errors, bounded = self._errors(part)
        multipliers = self.proofs.dense(part, network.atoms)
        with np.errstate(over="ignore", invalid="ignore"):
            limit = self._compute_bounds(bits, target, multipliers, errors)
            size = convert(errors.logit_size) + convert(errors.logits)
            if not self.exact or network.has_square_root:
                limit = limit + convert(errors.underflow)[:, None]
            if patches.correction == "li2025":
                spare = self._li2025_spare(part, limit, size)
            else:
                shift = convert(patches.shift[part])[:, None]
                own = size[index, target][:, None]
                if (
                    patches.correction == "constant" and patches.gate == "soft"
                ):  # gates of other groups may act on any logit
                    own = np.maximum(own, size)
                terms = self._addition_error(own, shift)
                if patches.correction == "minimal":
                    terms = terms + self._addition_error(size, shift)
                terms = convert(self.epsilon) + terms
                if patches.gate == "soft":
                    terms = terms + self._interference.bound(target, patches.shift[part], exact=self.exact)
                spare = self._subtract_rounding(shift - terms - limit, abs(shift) + terms + abs(limit))
        found = self._smallest(spare, target)
        label = require_rational(limit[index, patches.label[part]]) if self.exact else limit[index, patches.label[part]]
        self.refuted[part] = bounded & np.asarray(label < 0, dtype=bool) & (patches.label[part] != target)
        proved = bounded & ~np.isnan(found) & ~self.refuted[part]
        if patches.correction == "li2025" and patches.gate == "soft":  # no inequality covers the effect of other gates
            proved[:] = False
        return np.where(proved, found, -np.inf)

    def _subtract_rounding(self, spare: Array, size: Array) -> Array:
        """Return the spare minus the rounding error of its float64 sum of terms of the given sizes."""
        return spare if self.exact else spare - 8 * UNIT64 * size - TINY64

    def _smallest(self, spare: Array, target: Array) -> Array:
        """Return the smallest entry of each row, without the column of the target, rounded down, `P'`."""
        spare[np.arange(len(spare)), target] = np.inf
        if not self.exact:
            return np.asarray(spare.min(axis=1))
        columns = np.arange(spare.shape[1])
        return np.asarray(
            [round_down(min(require_rational(row[columns != k]))) for row, k in zip(spare, target, strict=True)]
        )

    def _convert(self, value: Any) -> Any:
        """Return the value, in rational mode as exact fractions."""
        if not self.exact:
            return value
        return Fraction(float(value)) if np.ndim(value) == 0 else to_fractions(value)

    def _errors(self, part: Array) -> tuple[ExecutionErrors, Array]:
        """Return the error bounds for the claim, and for which points no number of the execution overflows.

        The claim `real` has no execution errors; the bounds then cover only underflow in the float64 evaluation.
        """
        bits, (low, high) = self.patches.bits[part], (self.proofs.low, self.proofs.high)
        if self.claim == "real":
            tiny = 0.0 if self.exact and not self.network.has_square_root else TINY64
            errors = self.network.execution_errors(bits, low, high, unit=0.0, tiny=tiny)
            bounded = np.ones(len(part), dtype=bool)
        else:
            errors = self.network.execution_errors(bits, low, high)
            bounded = errors.peak + self._bound_patch_arithmetic(part, errors) <= OVERFLOW
        parts = {f.name: getattr(errors, f.name) for f in dataclasses.fields(errors)}
        for array in parts.values():
            bounded = bounded & np.isfinite(array).reshape(len(part), -1).all(axis=1)
        if not bounded.all():  # fractions cannot be infinite
            fits = {name: np.where(bounded.reshape(-1, *(1,) * (a.ndim - 1)), a, 0) for name, a in parts.items()}
            errors = ExecutionErrors(**fits)
        return errors, bounded

    def _bound_patch_arithmetic(self, part: Array, errors: ExecutionErrors) -> Array:
        """Return how much the arithmetic of the patches may exceed the numbers of the base network, `P'`."""
        patches = self.patches
        if patches.beta is not None:  # every patch is computed; those with closed gates are multiplied by 0
            return 4 * (errors.logit_size + errors.logits).max(axis=1) + abs(patches.beta).max(initial=0)
        if patches.gate == "exact":
            return np.asarray(abs(patches.shift[part]))
        return np.full(len(part), abs(patches.change(self.network.classes)).sum())

    def _compute_bounds(self, bits: Array, target: Array, multipliers: Array, errors: ExecutionErrors) -> Array:
        """Return bounds of executed f_j - f_k, `P' x K` (column k has no meaning)."""
        network, convert = self.network, self._convert
        count, classes = len(bits), network.classes
        multipliers[np.arange(count), target] = 0
        weights = convert(multipliers)
        logits0, margins0 = network.forms_at_zero(bits)
        cotangent = np.broadcast_to(np.eye(classes), (count, classes, classes)).copy()
        cotangent[np.arange(count), :, target] -= 1
        rows = convert(cotangent).reshape(count * classes, classes)
        wide = np.repeat(bits, classes, axis=0)
        slope = network.pull_back(wide, rows, weights.reshape(count * classes, -1))
        slope = slope.reshape(count, classes, -1)
        low, high = convert(self.proofs.low), convert(self.proofs.high)
        corner = np.maximum(slope * low, slope * high).sum(axis=2)
        constant = logits0 - logits0[np.arange(count), target][:, None]
        margins, logits = convert(errors.margins), convert(errors.logits)
        if self.exact:
            pulled = (weights * margins0[:, None, :]).sum(axis=2)
            slack = (weights * margins[:, None, :]).sum(axis=2)
        else:
            pulled = np.matmul(weights, margins0[:, :, None])[:, :, 0]
            slack = np.matmul(weights, margins[:, :, None])[:, :, 0]
        total = constant + pulled + slack + corner
        total = total + (logits + logits[np.arange(count), target][:, None])
        if self.exact and not network.has_square_root:
            return np.asarray(total)
        return np.asarray(total + convert(self._evaluation_error(multipliers, target, errors)))

    def _evaluation_error(self, multipliers: Array, target: Array, errors: ExecutionErrors) -> Array:
        terms = np.matmul(multipliers, (errors.margin_size + errors.margins)[:, :, None])[:, :, 0]
        size = errors.logit_size
        terms = terms + size + size[np.arange(len(target)), target][:, None]
        return 4 * gamma(self.network.evaluation_steps, UNIT64) * terms

    def _addition_error(self, size: Array, change: Array) -> Array:
        """Return the float32 rounding error of adding `change` to a logit of size at most `size`."""
        if self.claim == "real":
            return 0 * (size + change)
        return 2 * self._convert(UNIT32) * (size + abs(change)) + self._convert(TINY32)

    def _li2025_spare(self, part: Array, limit: Array, size: Array) -> Array:
        patches, convert = self.patches, self._convert
        assert patches.alpha is not None
        assert patches.beta is not None
        alpha, beta = convert(patches.alpha[part]), convert(patches.beta[part])
        both = size + size[np.arange(len(part)), patches.target[part]][:, None]
        terms = convert(self.epsilon) + 8 * self._addition_error(both, beta)
        scaled = alpha * limit
        return self._subtract_rounding(-terms - (scaled + beta), terms + abs(scaled) + abs(beta))
