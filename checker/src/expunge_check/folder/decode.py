"""Decodes and validates the arrays of a certificate: patches, proofs, the input box."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import BadCertificate, quote

from .files import Folder
from .schema import is_integer, is_number

Array = NDArray[Any]
#: Range of slopes. In it the slope, and its product with any pre-activation below 1e19, is finite in float32; outside,
#: the slope of the executed module would be infinite or 0.
SLOPES = (2.0**-126, 2.0**64)


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """The patches of a certificate.

    Attributes:
        correction, gate, slope: how the patches act.
        bits: `P x L` bool.
        pattern: `P x bytes`, the packed bits.
        target, label: classes, `P`.
        shift: `P` float64 (exact values of the stored float32).
        group: `P`.
        alpha, beta: `P x K` float64, or None.
    """

    correction: str
    gate: str
    slope: float
    bits: Array
    pattern: Array
    target: Array
    label: Array
    shift: Array
    group: Array
    alpha: Array | None
    beta: Array | None

    def __len__(self) -> int:
        return len(self.target)

    @functools.cached_property
    def groups(self) -> tuple[Array, Array]:
        """The patches in an order in which groups are whole, and where each group begins."""
        order = np.argsort(self.group, kind="stable")
        return order, np.unique(self.group[order], return_index=True)[1]

    def change(self, classes: int) -> Array:
        """Return the constant change of each logit on an open gate, `P x K` (0 for the correction li2025)."""
        table = np.zeros((len(self), classes))
        rows = np.arange(len(self))
        if self.correction == "constant":
            table[rows, self.target] = self.shift
        elif self.correction == "minimal":
            table[:] = -(self.shift / 2)[:, None]
            table[rows, self.target] = self.shift / 2
        return table

    def apply(self, logits: Array, gates: Array) -> Array:
        """Return the logits `B x K` of the patched network from those of the base and the gates `B x P`."""
        if self.alpha is None or self.beta is None:
            return logits + gates @ self._grouped_change(logits.shape[1], gates)
        out = logits.copy()
        for row, gate in enumerate(gates):
            on = np.flatnonzero(gate)
            base = logits[row, self.target[on]][:, None]
            out[row] += gate[on] @ ((self.alpha[on] - 1) * (logits[row] - base) + self.beta[on])
        return out

    def _grouped_change(self, classes: int, gates: Array) -> Array:
        return self.change(classes)


def _get_array(arrays: dict[str, Array], name: str, dtype: Any, dims: int) -> Array:
    found = arrays.get(name)
    if found is None or found.dtype != dtype or found.ndim != dims:
        raise BadCertificate(f"the array {name} is missing or not {np.dtype(dtype).name} of {dims} axes")
    return found


def _require_only(arrays: dict[str, Array], names: tuple[str, ...]) -> None:
    strange = sorted(set(arrays) - set(names))
    if strange:
        raise BadCertificate(f"there is an array {quote(strange[0])} that the format does not have")


def read_patches(folder: Folder, atoms: int, classes: int) -> Patches:
    """Decode the patches.

    Raises:
        BadCertificate: shapes or settings do not fit, patterns repeat, or numbers are out of range.
    """
    arrays, settings = folder.patches, folder.settings
    names = ("pattern", "target", "label", "shift", "group")
    _require_only(arrays, (*names, "alpha", "beta") if settings.get("correction") == "li2025" else names)
    correction, gate = settings.get("correction"), settings.get("gate")
    if correction not in ("constant", "minimal", "li2025") or gate not in ("exact", "soft"):
        raise BadCertificate(f"unknown correction {correction!r} or gate {gate!r}")
    if settings.get("atoms") != atoms or settings.get("classes") != classes:
        raise BadCertificate("the patches are for a network of another size")
    if not (is_integer(settings["atoms"]) and is_integer(settings["classes"]) and is_number(settings["slope"])):
        raise BadCertificate("the atoms, classes or slope of the patches are of the wrong type")
    slope = float(settings["slope"])
    pattern = _get_array(arrays, "pattern", np.uint8, 2)
    target, label = _get_array(arrays, "target", np.int16, 1), _get_array(arrays, "label", np.int16, 1)
    shift, group = _get_array(arrays, "shift", np.float32, 1), _get_array(arrays, "group", np.int32, 1)
    count = len(target)
    if not all(len(a) == count for a in (pattern, label, shift, group)) or pattern.shape[1] != (atoms + 7) // 8:
        raise BadCertificate("the arrays of the patches have different lengths")
    bits = np.unpackbits(pattern, axis=1, bitorder="little").astype(bool)
    if bits[:, atoms:].any():
        raise BadCertificate("a pattern has bits beyond the network's atoms")
    if len(np.unique(pattern, axis=0)) != count:
        raise BadCertificate("two patches have the same pattern")
    if not count:
        raise BadCertificate("there is no patch, so there is nothing to certify")
    if min(target.min(), label.min()) < 0 or max(target.max(), label.max()) >= classes:
        raise BadCertificate("a target or label is not a class")
    if not np.isfinite(shift).all():
        raise BadCertificate("a shift is not finite")
    if gate == "soft" and not atoms:
        raise BadCertificate("the gates are soft, but the network has no relu or max pool, so they have no atoms")
    if not SLOPES[0] <= slope <= SLOPES[1]:
        raise BadCertificate(
            f"the slope {slope:g} of the gates is outside [2^-126, 2^64], so it is not a float32 number"
        )
    alpha = beta = None
    if correction == "li2025":
        alpha, beta = (_get_array(arrays, name, np.float32, 2).astype(np.float64) for name in ("alpha", "beta"))
        if alpha.shape != (count, classes) or beta.shape != (count, classes):
            raise BadCertificate("alpha and beta are not P x K")
        if not (np.isfinite(alpha) & (alpha >= 0) & (alpha <= 1)).all() or not np.isfinite(beta).all():
            raise BadCertificate("alpha lies outside [0, 1] or beta is not finite")
        if (beta[np.arange(count), target] != 0).any():
            raise BadCertificate("beta changes the target's own logit")
    patches = Patches(
        correction, gate, slope, bits[:, :atoms], pattern, target.astype(np.int64), label.astype(np.int64),
        shift.astype(np.float64), group.astype(np.int64), alpha, beta,
    )  # fmt: skip
    if gate == "soft":
        order, starts = patches.groups
        first = np.repeat(order[starts], np.diff(np.r_[starts, count]))
        if any((array[order] != array[first]).any() for array in (patches.shift, patches.target)):
            raise BadCertificate("patches of one group differ in shift or target")
    return patches


@dataclasses.dataclass(frozen=True, eq=False)
class Proofs:
    """Multipliers of all points in compressed rows, and the input box."""

    count: Array
    scale: Array
    index: Array
    value: Array
    low: Array
    high: Array
    ends: Array

    def dense(self, points: Array, atoms: int) -> Array:
        """Return the multipliers `P' x K x L` float64 of consecutive points."""
        classes = self.count.shape[1]
        table = np.zeros((len(points) * classes, atoms))
        first, last = int(points[0]) * classes, (int(points[-1]) + 1) * classes
        start = int(self.ends[first - 1]) if first else 0
        stop = int(self.ends[last - 1]) if last else 0
        counts = self.count.reshape(-1)[first:last]
        rows = np.repeat(np.arange(last - first), counts)
        scale = self.scale.reshape(-1)[first:last].astype(np.float64)
        np.add.at(table, (rows, self.index[start:stop]), self.value[start:stop] * scale[rows])
        return table.reshape(len(points), classes, atoms)


def _atoms(gap: Array, count: Array) -> tuple[Array, Array]:
    """Return the atoms of all entries, and which entries refine the previous one.

    An entry is a step within its row. A byte 255 adds 255 to the following step. A step of 0 is a refinement.

    Raises:
        BadCertificate: a row begins with a refinement, the bytes end within a step, or the number of steps is wrong.
    """
    entry = gap < 255
    if len(gap) and not entry[-1]:
        raise BadCertificate("the entries of a proof end within a step")
    if int(entry.sum()) != int(count.sum()):
        raise BadCertificate("the proofs have more or fewer entries than their counts say")
    steps = np.add.reduceat(gap.astype(np.int64), np.flatnonzero(np.r_[True, entry[:-1]])) if len(gap) else gap
    index = np.cumsum(steps, dtype=np.int64)
    starts = np.cumsum(count, dtype=np.int64) - count
    if (steps[starts[count > 0]] == 0).any():
        raise BadCertificate("a row of a proof begins with a refinement")
    passed = np.r_[0, index][starts]  # position reached by the previous rows
    return index - np.repeat(passed, count) - 1, steps == 0


def read_proofs(folder: Folder, points: int, classes: int, atoms: int, shape: tuple[int, ...]) -> Proofs:
    """Decode the proofs and the box.

    Raises:
        BadCertificate: a multiplier is negative or not finite, an atom does not exist, atoms decrease within a row, or
            the arrays do not fit.
    """
    arrays = folder.proof
    _require_only(arrays, ("count", "gap", "level", "scale", "box.low", "box.high"))
    count = _get_array(arrays, "count", np.uint16 if atoms < 2**15 else np.uint32, 2)
    scale = _get_array(arrays, "scale", np.float32, 2)
    gap, level = _get_array(arrays, "gap", np.uint8, 1), _get_array(arrays, "level", np.uint8, 1)
    if count.shape != (points, classes) or scale.shape != (points, classes):
        raise BadCertificate("the proofs are not P x K")
    ends = np.cumsum(count.reshape(-1).astype(np.int64))
    total = int(ends[-1]) if len(ends) else 0
    if len(level) != total:
        raise BadCertificate("the proofs have more or fewer entries than their counts say")
    index, is_refinement = _atoms(gap, count.reshape(-1))
    value = np.where(is_refinement, 2.0 * level, level.astype(np.float64) ** 2)
    if total and int(index.max()) >= atoms:
        raise BadCertificate("a proof refers to an atom that does not exist")
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise BadCertificate("a multiplier is negative or not finite")
    low, high = (_get_array(arrays, name, np.float64, len(shape)) for name in ("box.low", "box.high"))
    if low.shape != shape or high.shape != shape:
        raise BadCertificate("the box does not fit the input")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise BadCertificate("the box is empty or not finite")
    return Proofs(count, scale, index, value, low.reshape(-1), high.reshape(-1), ends)
