"""Count copies of the forget set elsewhere: records under other ids that are equal, or nearly so.

An exact copy has the same features, whatever its label. A near copy is a record whose distance is at most `NEAR` times
the usual distance of a record of the retain set to the nearest other one: the median over at most 500 of them. If
records are drawn independently and vary in d directions, the fraction of records with a neighbour that near is about
ln 2 * NEAR^d: 3 % for d = 2, 0.6 % for d = 3, and almost none for images. The fraction among these 500 is reported too
(`Copies.usual`), so that a count can be compared with what is usual in the data. Look-alikes that were planted are
counted, but what is usual is measured without them. Distances are Euclidean, in units of the standard deviation of each
channel (axis 1 of a batch).
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import FileError
from expunge.core.hashing import hash_json
from expunge.core.seeds import derive, mix, numpy_generator
from expunge.core.show import repr_fields
from expunge.data.records import Records, seed_item_reads

from .streams import MOST_ITEMS

#: A near copy is nearer than this fraction of the usual distance to the nearest record.
NEAR = 0.2
#: Records of D_f, and of another part, that are compared by distance; of more, so many are drawn. Equality is counted
#: for all records in memory.
MOST_FORGET, MOST_RECORDS = 2_000, 200_000
#: Records from which the usual distance and the standard deviations are computed.
_USUAL, _SCALE = 500, 2_000
#: Distances are compared in a random projection of this many numbers first; then the candidates exactly.
_PROJECTED = 64
_CHUNK_NUMBERS = 2**22

Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class PartCopies:
    """Copies of D_f in one part of the split.

    Attributes:
        exact: records of D_f that have an exact copy in the part.
        exact_copies: records of the part that are such a copy.
        near: further records of D_f that have a near copy, and no exact one.
        near_copies: further records of the part that are a near copy of a record of D_f.
        compared: records of the part that were compared by distance.
    """

    exact: int
    exact_copies: int
    near: int
    near_copies: int
    compared: int


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of D_f outside it.

    Attributes:
        forget: records of D_f.
        compared: records of D_f that were compared by distance.
        parts: by name of the part.
        distance: the largest distance of a near copy.
        usual: fraction of the retain set with a near copy (not an exact one) in the retain set, for comparison.
    """

    forget: int
    compared: int
    parts: Mapping[str, PartCopies]
    distance: float
    usual: float

    __repr__ = repr_fields

    @property
    def found(self) -> bool:
        """Whether there is any copy."""
        return any(part.exact or part.near for part in self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """The JSON values, as in `scores.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Copies:
        """Read the values of `to_json`.

        Raises:
            FileError: a key is missing or is not a number.
        """
        try:
            parts = {
                str(name): PartCopies(**{field.name: int(part[field.name]) for field in dataclasses.fields(PartCopies)})
                for name, part in body["parts"].items()
            }
            numbers = int(body["forget"]), int(body["compared"])
            return cls(*numbers, parts, float(body["distance"]), float(body["usual"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"has no complete counts of copies ({error!r})"
            raise FileError(what, where="about.copies", hint="see docs/formats/scores.md") from error


_COUNTED: weakref.WeakKeyDictionary[Records, dict[str, Copies]] = weakref.WeakKeyDictionary()


def count_copies(records: Records, forget: Rows, parts: Mapping[str, Rows]) -> Copies:
    """Count the copies of D_f in other parts of the split.

    Takes memory for one projected copy of the records (at most 64 numbers each), and seconds for 60,000 images. The
    result is kept for the lifetime of the records.

    Args:
        records: the records. Of a stream, each compared item is read once, at most `MOST_ITEMS` of a part.
        forget: row numbers of D_f.
        parts: row numbers by part; `retain` is one of them.

    Raises:
        DataError: an item of a stream cannot be read.

    Example:
        >>> features = np.arange(24, dtype=np.float32).reshape(8, 3) ** 2
        >>> features[5] = features[0]
        >>> records = Records("toy", list("abcdefgh"), [0] * 8, ("x",), features)
        >>> copies = count_copies(records, np.arange(2), {"retain": np.arange(2, 8)})
        >>> copies.parts["retain"].exact, copies.parts["retain"].near
        (1, 0)
    """
    forget = np.asarray(forget, dtype=np.int64)
    parts = {name: np.asarray(rows, dtype=np.int64) for name, rows in parts.items()}
    key = hash_json([forget.tolist(), {name: rows.tolist() for name, rows in parts.items()}])
    known = _COUNTED.setdefault(records, {})
    if key not in known:
        with seed_item_reads():
            known[key] = _count(records, forget, parts)
    return known[key]


def describe_copies(copies: Copies, *, name: str = "D_f") -> list[str]:
    """Describe the copies in each part, in one sentence for each part that has any.

    Example:
        >>> retain = PartCopies(exact=1, exact_copies=2, near=0, near_copies=0, compared=9)
        >>> describe_copies(Copies(5, 5, {"retain": retain}, distance=0.1, usual=0.0))
        ['of the records of D_f, 1 of 5 have an exact copy (2 copies there) in the retain set']
    """
    titles = {"retain": "the retain set", "non_members": "the non-member pool"}
    lines = []
    for part, found in copies.parts.items():
        pieces = []
        if found.exact:
            count = f"{found.exact_copies} cop{'y' if found.exact_copies == 1 else 'ies'} there"
            pieces.append(f"{found.exact} of {copies.forget} have an exact copy ({count})")
        if found.near:
            usual = f"{100 * copies.usual:.1f} % of the retain set have one among its other records"
            pieces.append(f"{found.near} of {copies.compared} have a near copy ({found.near_copies} there; {usual})")
        if pieces:
            lines.append(f"of the records of {name}, {' and '.join(pieces)} in {titles.get(part, part)}")
    return lines


def _count(records: Records, forget: Rows, parts: dict[str, Rows]) -> Copies:
    if len(forget) == 0 or not len(parts["retain"]):
        empty = {name: PartCopies(0, 0, 0, 0, 0) for name in parts}
        return Copies(len(forget), 0, empty, 0.0, 0.0)
    most = MOST_RECORDS if records.stream is None else MOST_ITEMS
    view = _View(records, parts["retain"])
    digests, projected = view.read(forget)
    wanted = set(digests)
    drawn = np.flatnonzero(np.isin(forget, _draw(records, forget, MOST_FORGET)))
    read = {}
    for name, rows in parts.items():
        rows = rows if records.stream is None else _draw(records, rows, most)
        read[name] = (rows, *view.read(rows))
    distance, usual = view.measure_usual(*read["retain"])
    found = {}
    for name, (rows, others, points) in read.items():
        copied = np.asarray([digest in wanted for digest in others], dtype=bool)
        present = set(others)
        exact = np.asarray([digest in present for digest in digests], dtype=bool)
        compared = np.flatnonzero(np.isin(rows, _draw(records, rows, most)))
        near_forget, near_rows = view.find_near(
            forget[drawn], projected[drawn], rows[compared], points[compared], distance
        )
        found[name] = PartCopies(
            exact=int(exact.sum()),
            exact_copies=int(copied.sum()),
            near=int((near_forget & ~exact[drawn]).sum()),
            near_copies=int((near_rows & ~copied[compared]).sum()),
            compared=len(compared),
        )
    return Copies(len(forget), len(drawn), found, distance, usual)


def _draw(records: Records, rows: Rows, most: int) -> Rows:
    """At most so many of the rows, drawn by the hash of their ids, in the order of the rows."""
    if len(rows) <= most:
        return rows
    order = np.argsort(mix(records.keys[rows], derive(0, "copies")), kind="stable")[:most]
    return rows[np.sort(order)]


def measure_usual_distance(records: Records, retain: Rows) -> tuple[float, NDArray[np.float64]]:
    """The usual distance of a training record to the nearest other one, and the unit of each channel.

    Args:
        records: records in memory.
        retain: rows of the retain set.

    Returns:
        The median over at most 500 of them, and the standard deviation of each channel, `C x 1 ...`.
    """
    view = _View(records, retain)
    return view.measure_usual(retain, *view.read(retain))[0] / NEAR, view.scale


def measure_nearest(records: Records, rows: Rows, retain: Rows) -> NDArray[np.float64]:
    """The distance of each record to the nearest of the retain set, in units of the standard deviation of each channel.

    Args:
        records: records in memory.
        rows: `N` rows; those that are in `retain` too are compared with the others.
        retain: rows of the retain set.

    Returns:
        `N` distances; infinity if there is no other record.

    Example:
        >>> features = np.asarray([[0.0], [1.0], [3.0], [3.0]], dtype=np.float32)
        >>> records = Records("toy", ["a", "b", "c", "d"], [0, 1, 1, 1], ("no", "yes"), features)
        >>> distances = measure_nearest(records, np.asarray([1, 3]), np.asarray([0, 2]))
        >>> (distances * features[[0, 2]].std()).round(2).tolist()
        [1.0, 0.0]
    """
    view = _View(records, retain)
    best, nearest = np.full(len(rows), np.inf), np.full(len(rows), -1)
    width = int(np.prod(records.input_shape))
    step = max(1, _CHUNK_NUMBERS // max(1, width))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        points = view._scale(view._stack(rows[part]))
        own = np.square(points).sum(axis=1)
        for first in range(0, len(retain), step):
            others = retain[first : first + step]
            there = view._scale(view._stack(others))
            squares = own[:, None] + np.square(there).sum(axis=1) - 2 * (points @ there.T)
            squares[rows[part][:, None] == others] = np.inf
            index = squares.argmin(axis=1)
            value = squares[np.arange(len(points)), index]
            better = value < best[part]
            best[part][better], nearest[part][better] = value[better], others[index[better]]
    found = nearest >= 0
    best[found] = view._distances(rows[found], nearest[found])
    return best


class _View:
    """The records as points: scaled by channel, and projected if they have many numbers."""

    def __init__(self, records: Records, retain: Rows) -> None:
        self.records = records
        usual = retain[self._are_usual(retain)]
        sample = self._stack(
            _draw(records, usual if len(usual) else retain, _SCALE if records.stream is None else _USUAL)
        ).astype(np.float64)
        axes = tuple(axis for axis in range(sample.ndim) if axis != 1)
        std, mean = sample.std(axis=axes), sample.mean(axis=axes)
        shape = (-1, *[1] * (sample.ndim - 2))
        self.scale = np.where(std > 0, std, 1.0).reshape(shape)
        self.mean = mean.reshape(shape)
        width = int(np.prod(records.input_shape))
        self.matrix = None
        if width > _PROJECTED:
            draws = numpy_generator(0, "copies", "projection").standard_normal((width, _PROJECTED))
            self.matrix = draws / np.sqrt(_PROJECTED)

    def _are_usual(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows are not planted look-alikes."""
        planted = self.records.planted
        if planted is None or planted.replaces:
            return np.ones(len(rows), dtype=bool)
        return ~np.isin(self.records.record_ids[rows], planted.record_ids)

    def _stack(self, rows: Rows) -> NDArray[Any]:
        return self.records.read_batch(rows)

    def _scale(self, features: NDArray[Any]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = ((features - self.mean) / self.scale).reshape(len(features), -1)
        return scaled

    def _chunks(self, count: int, width: int) -> Iterator[slice]:
        step = max(1, _CHUNK_NUMBERS // max(1, width))
        return (slice(start, start + step) for start in range(0, count, step))

    def read(self, rows: Rows) -> tuple[list[bytes], NDArray[np.float64]]:
        """Read records once: a digest of each, and its projected point."""
        width = int(np.prod(self.records.input_shape))
        digests: list[bytes] = []
        points = np.empty((len(rows), min(width, _PROJECTED)))
        for part in self._chunks(len(rows), width):
            features = self._stack(rows[part])
            if features.dtype == np.float32:
                features = features + np.float32(0)  # -0.0 becomes 0.0
            digests += [hashlib.blake2b(record.tobytes(), digest_size=16).digest() for record in features]
            scaled = self._scale(features)
            points[part] = scaled if self.matrix is None else scaled @ self.matrix
        return digests, points

    def _distances(self, first: Rows, second: Rows) -> NDArray[np.float64]:
        """The exact distances of pairs of rows."""
        found = np.empty(len(first))
        for part in self._chunks(len(first), int(np.prod(self.records.input_shape))):
            a, b = (self._scale(self._stack(rows[part])) for rows in (first, second))
            found[part] = np.sqrt(np.square(a - b).sum(axis=1))
        return found

    def measure_usual(self, rows: Rows, digests: list[bytes], points: NDArray[np.float64]) -> tuple[float, float]:
        """The distance of a near copy, and the fraction of the retain set that has one, from some of its records."""
        kept = np.flatnonzero(self._are_usual(rows))
        rows, digests, points = rows[kept], [digests[index] for index in kept], points[kept]
        if len(rows) < 3:
            return 0.0, 0.0
        chosen = np.flatnonzero(np.isin(rows, _draw(self.records, rows, _USUAL)))
        others = np.flatnonzero(np.isin(rows, _draw(self.records, rows, MOST_RECORDS)))
        nearest, _ = _find_nearest(points[chosen], points[others], same=(chosen, others))[:2]
        distances = self._distances(rows[chosen], rows[others[nearest]])
        distance = NEAR * float(np.median(distances))
        exact = np.asarray([digests[i] == digests[j] for i, j in zip(chosen, others[nearest], strict=True)])
        return distance, float(((distances <= distance) & ~exact).mean())

    def find_near(
        self, first: Rows, a: NDArray[np.float64], second: Rows, b: NDArray[np.float64], distance: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which rows of each side have a row of the other side within the distance."""
        if len(first) == 0 or len(second) == 0:
            return np.zeros(len(first), dtype=bool), np.zeros(len(second), dtype=bool)
        near_b, near_a, squares_b, squares_a = _find_nearest(a, b)
        rounding = 1e-12 * float(max(np.square(a).sum(axis=1).max(), np.square(b).sum(axis=1).max()))
        flags = []
        for rows, others, nearest, squares in ((first, second, near_b, squares_b), (second, first, near_a, squares_a)):
            near = np.zeros(len(rows), dtype=bool)
            candidates = np.flatnonzero(squares <= 4 * distance**2 + rounding)
            exact = self._distances(rows[candidates], others[nearest[candidates]])
            near[candidates] = exact <= distance
            flags.append(near)
        return flags[0], flags[1]


def _find_nearest(
    a: NDArray[np.float64], b: NDArray[np.float64], same: tuple[Rows, Rows] | None = None
) -> tuple[Rows, Rows, NDArray[np.float64], NDArray[np.float64]]:
    """For each point of `a` the nearest of `b`, for each of `b` the nearest of `a`, and the squared distances.

    With `same`, points with equal numbers are not compared.
    """
    square_a, square_b = (np.square(points).sum(axis=1) for points in (a, b))
    near_a = np.zeros(len(b), dtype=np.int64)
    best_a = np.full(len(b), np.inf)
    near_b = np.zeros(len(a), dtype=np.int64)
    best_b = np.full(len(a), np.inf)
    step = max(1, _CHUNK_NUMBERS // max(1, len(a)))
    for start in range(0, len(b), step):
        part = slice(start, start + step)
        squares = square_a[:, None] + square_b[None, part] - 2 * (a @ b[part].T)
        if same is not None:
            squares[same[0][:, None] == same[1][None, part]] = np.inf
        nearest = squares.argmin(axis=1)
        value = squares[np.arange(len(a)), nearest]
        better = value < best_b
        near_b[better], best_b[better] = nearest[better] + start, value[better]
        near_a[part] = squares.argmin(axis=0)
        best_a[part] = squares[near_a[part], np.arange(squares.shape[1])]
    return near_b, near_a, best_b, best_a
