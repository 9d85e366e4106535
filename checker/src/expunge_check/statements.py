"""What the files say, decoded and checked for form: patches, proofs, the box."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import shown
from .files import BadCertificate, Folder
from .schema import is_number, is_whole

Array = NDArray[Any]
#: Slopes of soft gates that float32 holds, with their product with any pre-activation below 1e19: beyond, the module's
#: own slope would be infinite or 0.
SLOPES = (2.0**-126, 2.0**64)


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """The patches of a folder.

    Attributes:
        kind, gate, slope: how they act.
        bits: `P x L` bool.
        pattern: `P x bytes`, the same packed.
        target, label: `P`.
        shift: `P` float64 (exact values of the stored float32).
        group: `P`.
        alpha, beta: `P x K` float64, or None.
    """

    kind: str
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

    def change(self, classes: int) -> Array:
        """`P x K` constant change of each logit on an open gate (zero for the kind paper)."""
        table = np.zeros((len(self), classes))
        rows = np.arange(len(self))
        if self.kind == "constant":
            table[rows, self.target] = self.shift
        elif self.kind == "minimal":
            table[:] = -(self.shift / 2)[:, None]
            table[rows, self.target] = self.shift / 2
        return table

    def apply(self, logits: Array, gates: Array) -> Array:
        """Logits `B x K` of the patched network from the base's and the gates `B x P` (exact gates, or no paper)."""
        if self.alpha is None or self.beta is None:
            return logits + gates @ self._grouped_change(logits.shape[1], gates)
        out = logits.copy()
        for row, patch in zip(*np.nonzero(gates), strict=True):
            base = logits[row, self.target[patch]]
            change = (self.alpha[patch] - 1) * (logits[row] - base) + self.beta[patch]
            out[row] = out[row] + gates[row, patch] * change
        return out

    def _grouped_change(self, classes: int, gates: Array) -> Array:
        return self.change(classes)


def _need(arrays: dict[str, Array], name: str, kind: Any, dims: int) -> Array:
    found = arrays.get(name)
    if found is None or found.dtype != kind or found.ndim != dims:
        raise BadCertificate(f"the array {name} is missing or not {np.dtype(kind).name} of {dims} axes")
    return found


def _only(arrays: dict[str, Array], names: tuple[str, ...]) -> None:
    strange = sorted(set(arrays) - set(names))
    if strange:
        raise BadCertificate(f"there is an array {shown(strange[0])} that no format knows")


def read_patches(folder: Folder, atoms: int, classes: int) -> Patches:
    """Decode the patches.

    Raises:
        BadCertificate: shapes or settings do not fit, patterns repeat, or numbers are out of range.
    """
    held, settings = folder.patches, folder.settings
    names = ("pattern", "target", "label", "shift", "group")
    _only(held, (*names, "alpha", "beta") if settings.get("kind") == "paper" else names)
    kind, gate = settings.get("kind"), settings.get("gate")
    if kind not in ("constant", "minimal", "paper") or gate not in ("exact", "soft"):
        raise BadCertificate(f"unknown kind of patch {kind!r} or gate {gate!r}")
    if settings.get("atoms") != atoms or settings.get("classes") != classes:
        raise BadCertificate("the patches are for a network of another size")
    if not (is_whole(settings["atoms"]) and is_whole(settings["classes"]) and is_number(settings["slope"])):
        raise BadCertificate("the atoms, classes or slope of the patches are of the wrong type")
    slope = float(settings["slope"])
    pattern = _need(held, "pattern", np.uint8, 2)
    target, label = _need(held, "target", np.int16, 1), _need(held, "label", np.int16, 1)
    shift, group = _need(held, "shift", np.float32, 1), _need(held, "group", np.int32, 1)
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
    if not SLOPES[0] <= slope <= SLOPES[1]:
        raise BadCertificate(f"the slope {slope:g} of the gates lies outside [2^-126, 2^64]: float32 cannot hold it")
    alpha = beta = None
    if kind == "paper":
        alpha, beta = (_need(held, name, np.float32, 2).astype(np.float64) for name in ("alpha", "beta"))
        if alpha.shape != (count, classes) or beta.shape != (count, classes):
            raise BadCertificate("alpha and beta are not P x K")
        if not (np.isfinite(alpha) & (alpha >= 0) & (alpha <= 1)).all() or not np.isfinite(beta).all():
            raise BadCertificate("alpha lies outside [0, 1] or beta is not finite")
        if (beta[np.arange(count), target] != 0).any():
            raise BadCertificate("beta changes the target's own logit")
    patches = Patches(
        kind, gate, slope, bits[:, :atoms], pattern, target.astype(np.int64), label.astype(np.int64),
        shift.astype(np.float64), group.astype(np.int64), alpha, beta,
    )  # fmt: skip
    if gate == "soft":
        for number in np.unique(patches.group):
            same = patches.group == number
            if len(np.unique(patches.shift[same])) > 1 or len(np.unique(patches.target[same])) > 1:
                raise BadCertificate("patches of one group differ in shift or target")
    return patches


@dataclasses.dataclass(frozen=True, eq=False)
class Proofs:
    """Multipliers of all points in compressed rows, and the box."""

    count: Array
    scale: Array
    index: Array
    worth: Array
    low: Array
    high: Array
    ends: Array

    def dense(self, points: Array, atoms: int) -> Array:
        """Multipliers `P' x K x L` of a run of consecutive points, float64."""
        classes = self.count.shape[1]
        table = np.zeros((len(points) * classes, atoms))
        first, last = int(points[0]) * classes, (int(points[-1]) + 1) * classes
        start = int(self.ends[first - 1]) if first else 0
        stop = int(self.ends[last - 1]) if last else 0
        counts = self.count.reshape(-1)[first:last]
        rows = np.repeat(np.arange(last - first), counts)
        scale = self.scale.reshape(-1)[first:last].astype(np.float64)
        np.add.at(table, (rows, self.index[start:stop]), self.worth[start:stop] * scale[rows])
        return table.reshape(len(points), classes, atoms)


def _atoms(gap: Array, count: Array) -> tuple[Array, Array]:
    """Atoms of all entries, and which entries only refine the one before.

    An entry is a step within its row; a byte 255 lengthens the step that follows it by 255; a step of 0 refines.

    Raises:
        BadCertificate: a row begins with a step of 0, the bytes end within a step, or there are more or fewer steps
            than counted.
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
        raise BadCertificate("a row of a proof begins with a refinement of nothing")
    passed = np.r_[0, index][starts]  # what the rows before have walked
    return index - np.repeat(passed, count) - 1, steps == 0


def read_proofs(folder: Folder, points: int, classes: int, atoms: int, inputs: int) -> Proofs:
    """Decode the proofs; multipliers must be finite and not negative, atoms must exist and rise within a row.

    Raises:
        BadCertificate: they are not.
    """
    held = folder.proof
    _only(held, ("count", "gap", "level", "scale", "box.low", "box.high"))
    count = _need(held, "count", np.uint16 if atoms < 2**15 else np.uint32, 2)
    scale = _need(held, "scale", np.float32, 2)
    gap, level = _need(held, "gap", np.uint8, 1), _need(held, "level", np.uint8, 1)
    if count.shape != (points, classes) or scale.shape != (points, classes):
        raise BadCertificate("the proofs are not P x K")
    ends = np.cumsum(count.reshape(-1).astype(np.int64))
    total = int(ends[-1]) if len(ends) else 0
    if len(level) != total:
        raise BadCertificate("the proofs have more or fewer entries than their counts say")
    index, finer = _atoms(gap, count.reshape(-1))
    worth = np.where(finer, 2.0 * level, level.astype(np.float64) ** 2)
    if total and int(index.max()) >= atoms:
        raise BadCertificate("a proof speaks of an atom that does not exist")
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise BadCertificate("a multiplier is negative or not finite")
    low, high = (
        _need(held, "box.low", np.float64, held["box.low"].ndim if "box.low" in held else 1),
        held.get("box.high"),
    )
    if high is None or high.dtype != np.float64 or low.size != inputs or high.size != inputs:
        raise BadCertificate("the box does not fit the input")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise BadCertificate("the box is empty or not finite")
    return Proofs(count, scale, index, worth, low.reshape(-1), high.reshape(-1), ends)
