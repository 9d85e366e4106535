"""A set of patches as arrays: patterns, target classes, shifts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import ConfigError, RequestError
from expunge.core.hashing import hash_arrays, hash_json
from expunge.core.show import repr_fields

CORRECTIONS = ("constant", "minimal", "li2025")
GATES = ("exact", "soft")

#: Largest slope of soft gates: it and its product with any pre-activation below 1e19 are finite in float32.
LARGEST_SLOPE = 2.0**64
#: Smallest slope, the smallest normal number of float32: a slope of 0 would open every gate.
SMALLEST_SLOPE = 2.0**-126


@dataclasses.dataclass(frozen=True, eq=False)
class PatchSet:
    """A set of `P` patches.

    An open gate changes the logits as follows, with target class k and every other class j:

    - `constant`: logit k + shift;
    - `minimal`: logit k + shift / 2, logit j - shift / 2 (the sup-norm-minimal affine patch, see docs/patches.md);
    - `li2025`: logit j + (alpha_j - 1) (f_j - f_k) + beta_j.

    Attributes:
        correction: one of `CORRECTIONS`.
        atoms, classes: L and K of the network.
        pattern: `P x ceil(L / 8)` uint8, packed activation bits (see `regions.pack`).
        target: `P` int16, class k.
        label: `P` int16, the class that the base network predicts at the point.
        shift: `P` float32, >= 0.
        group: `P` int32; patches of one group have the same target and shift, and only the largest of their soft gates
            acts.
        alpha, beta: `P x K` float32 (`li2025`), else `P x 0`.
        gate: one of `GATES`.
        slope: slope n of soft gates.
    """

    correction: str
    atoms: int
    classes: int
    pattern: NDArray[np.uint8]
    target: NDArray[np.int16]
    label: NDArray[np.int16]
    shift: NDArray[np.float32]
    group: NDArray[np.int32]
    alpha: NDArray[np.float32]
    beta: NDArray[np.float32]
    gate: str = "exact"
    slope: float = 1.0

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.correction not in CORRECTIONS:
            raise ConfigError(f"unknown correction {self.correction!r}", hint=f"known: {', '.join(CORRECTIONS)}")
        if self.gate not in GATES:
            raise ConfigError(f"unknown gate {self.gate!r}", hint=f"known: {', '.join(GATES)}")
        if not (SMALLEST_SLOPE <= self.slope <= LARGEST_SLOPE and float(self.slope) == self.slope):
            raise ConfigError(
                f"the slope of a soft gate lies in [{SMALLEST_SLOPE:g}, {LARGEST_SLOPE:g}], not {self.slope}",
                where="slope",
            )
        if self.gate == "soft" and not self.atoms:
            raise ConfigError(
                "soft gates need a network with a relu or max pool, and this one has no atoms",
                where="gate",
                hint="use exact gates",
            )
        for name in ("target", "label"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int16))
        object.__setattr__(self, "shift", np.asarray(self.shift, dtype=np.float32))
        object.__setattr__(self, "group", np.asarray(self.group, dtype=np.int32))
        self._check_arrays()

    def _check_arrays(self) -> None:
        """Refuse arrays that do not fit together or hold numbers that no patch may have."""
        count, wide = len(self.target), self.classes if self.correction == "li2025" else 0
        shapes = {"pattern": (count, (self.atoms + 7) // 8), "alpha": (count, wide), "beta": (count, wide)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ConfigError(f"the shape is {getattr(self, name).shape}, not {shape}", where=f"patches.{name}")
        for name in ("label", "shift", "group"):
            if getattr(self, name).shape != (count,):
                raise ConfigError(f"there is not one {name} per patch", where=f"patches.{name}")
        for name in ("target", "label"):
            if count and not 0 <= getattr(self, name).min() <= getattr(self, name).max() < self.classes:
                raise ConfigError(f"a {name} is not a class", where=f"patches.{name}")
        if self.pattern.dtype != np.uint8:
            raise ConfigError(f"the patterns are {self.pattern.dtype}, not uint8", where="patches.pattern")
        if self.atoms % 8 and (self.pattern[:, -1] >> self.atoms % 8).any():
            raise ConfigError("a pattern has bits beyond the atoms of the network", where="patches.pattern")
        if not (np.isfinite(self.shift).all() and np.isfinite(self.beta).all()):
            raise ConfigError("a shift or an entry of beta is not finite", where="patches")
        if not ((self.alpha >= 0) & (self.alpha <= 1)).all():
            raise ConfigError("an entry of alpha lies outside [0, 1]", where="patches.alpha")
        if wide and (self.beta[np.arange(count), self.target] != 0).any():
            raise ConfigError("beta changes the logit of the target", where="patches.beta")

    def require_consistent(self) -> None:
        """Check what a set must hold to be verified: no pattern twice, and one shift and target per soft group.

        Raises:
            ConfigError: two patches have the same pattern, or patches of one soft group differ in shift or target.
        """
        if len(set(self.keys())) < len(self):
            raise ConfigError("two patches have the same pattern", where="patches.pattern")
        if self.gate == "soft":
            _, first, place = np.unique(self.group, return_index=True, return_inverse=True)
            same = [getattr(self, name) == getattr(self, name)[first][place] for name in ("shift", "target")]
            if not all(part.all() for part in same):
                raise ConfigError("patches of one group differ in shift or target", where="patches.group")

    @classmethod
    def empty(cls, correction: str, atoms: int, classes: int, *, gate: str = "exact", slope: float = 1.0) -> PatchSet:
        """Return a set without patches."""
        none, wide = np.zeros(0), classes if correction == "li2025" else 0
        table = np.zeros((0, wide), np.float32)
        pattern = np.zeros((0, (atoms + 7) // 8), np.uint8)
        return cls(correction, atoms, classes, pattern, none, none, none, none, table, table, gate, slope)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.target)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, as they are stored."""
        names = ["pattern", "target", "label", "shift", "group"]
        return {
            name: getattr(self, name) for name in names + (["alpha", "beta"] if self.correction == "li2025" else [])
        }

    @property
    def hash(self) -> str:
        """Hash of arrays and settings."""
        body = {"correction": self.correction, "atoms": self.atoms, "classes": self.classes, "gate": self.gate}
        return hash_json({**body, "slope": float(self.slope), "arrays": hash_arrays(self.arrays())})

    def keys(self) -> list[bytes]:
        """Return the packed patterns as hashable bytes."""
        return [row.tobytes() for row in self.pattern]

    def compute_logit_shift(self) -> NDArray[np.float32]:
        """Return the constant change of every logit, `P x K` (0 for the correction `li2025`)."""
        table = np.zeros((len(self), self.classes), np.float32)
        if self.correction == "li2025":
            return table
        rows = np.arange(len(self))
        if self.correction == "minimal":
            table[:] = -(self.shift / np.float32(2))[:, None]
            table[rows, self.target] = self.shift / np.float32(2)
        else:
            table[rows, self.target] = self.shift
        return table

    def bytes_per_patch(self) -> float:
        """Return the stored bytes per patch, pattern included."""
        return sum(array.nbytes for array in self.arrays().values()) / max(1, len(self))

    def take(self, rows: NDArray[Any]) -> PatchSet:
        """Return the patches at `rows` (indices or bools)."""
        names = ("pattern", "target", "label", "shift", "group", "alpha", "beta")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def with_gate(self, gate: str, slope: float | None = None) -> PatchSet:
        """Return the same patches with another gate."""
        return dataclasses.replace(self, gate=gate, slope=self.slope if slope is None else slope)

    def join(self, later: PatchSet) -> PatchSet:
        """Return these patches followed by those of a later request whose patterns are new.

        Raises:
            RequestError: the sets have different corrections, gates or networks, or a later patch has another target
                for a pattern of this set.
        """
        same = ("correction", "atoms", "classes", "gate", "slope")
        for name in same:
            if getattr(self, name) != getattr(later, name):
                raise RequestError(f"patch sets of different {name} cannot be joined", where="patches")
        here = dict(zip(self.keys(), self.target.tolist(), strict=True))
        new_rows = []
        for row, key in enumerate(later.keys()):
            if key not in here:
                new_rows.append(row)
                here[key] = int(later.target[row])
            elif here[key] != int(later.target[row]):
                raise RequestError(
                    f"the pattern is already patched towards class {here[key]}, not {int(later.target[row])}",
                    where=f"patch {row}",
                    hint="a region has one patch: keep the first target, or patch all points again",
                )
        added = later.take(np.asarray(new_rows, dtype=np.int64))
        offset = int(self.group.max()) + 1 if len(self) else 0
        names = ("pattern", "target", "label", "shift", "alpha", "beta")
        parts: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(added, name)]) for name in names}
        group = np.concatenate([self.group, added.group + offset])
        return dataclasses.replace(self, **parts, group=group)

    def compact(self, still_forgotten: Callable[[PatchSet], bool] | None = None) -> PatchSet:
        """Return the set without duplicate patterns and, with `still_forgotten`, without unneeded patches.

        Args:
            still_forgotten: returns whether a smaller set still forgets every point. Patches are tested for removal in
                order; this helps with soft gates, where one patch may forget several points.
        """
        seen: dict[bytes, int] = {}
        for row, key in enumerate(self.keys()):
            seen.setdefault(key, row)
        unique = self.take(np.asarray(sorted(seen.values()), dtype=np.int64))
        if still_forgotten is None:
            return unique
        is_needed = np.ones(len(unique), dtype=bool)
        for row in range(len(unique)):
            is_needed[row] = False
            is_needed[row] = not still_forgotten(unique.take(is_needed))
        return unique.take(is_needed)
