"""What a certificate of a small MLP proves, in rational arithmetic and by direct formulas.

No operation list is read and no code of the checker is used. Covers layers z = W x + b of any depth, every correction
and both gates, after docs/patches.md and docs/formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from expunge_check.folder.files import Folder

Row = list[Fraction]


def _rows(array: Any) -> list[Row]:
    return [[Fraction(float(v)) for v in row] for row in np.atleast_2d(array)]


def _gamma(n: int, unit: Fraction) -> Fraction:
    return n * unit / (1 - n * unit)


def _times(matrix: list[Row], x: Row) -> Row:
    return [sum((a * v for a, v in zip(row, x, strict=True) if v), Fraction(0)) for row in matrix]


def _absolute(matrix: list[Row]) -> list[Row]:
    return [[abs(v) for v in row] for row in matrix]


class Truth:
    """The layers, box and settings of a folder as fractions; float32 terms are 0 for the claim `real`."""

    def __init__(self, folder: Folder) -> None:
        t, q = folder.tensors, folder.proof
        names = sorted(n.rsplit(".", 1)[0] for n in t if n.startswith("hidden.") and n.endswith(".weight"))
        self.layers = [(_rows(t[f"{n}.weight"]), _rows(t[f"{n}.bias"])[0]) for n in [*names, "classifier"]]
        self.mean, self.deviation = (_rows(t[f"normalise.{n}"].reshape(-1))[0] for n in ("mean", "deviation"))
        self.low, self.high = (_rows(q[f"box.{n}"].reshape(-1))[0] for n in ("low", "high"))
        self.transposed = [[list(column) for column in zip(*weight, strict=True)] for weight, _ in self.layers]
        self.positive = [_absolute(weight) for weight, _ in self.layers]
        self.widths = [len(weight) for weight, _ in self.layers[:-1]]
        self.classes = len(self.layers[-1][0])
        real = folder.header["claim"] == "real"
        self.unit = Fraction(0) if real else Fraction(1, 2**24)
        self.tiny = Fraction(0) if real else Fraction(1, 2**126)
        self.first = self._layer(0, *self._input())

    def split(self, row: Any) -> list[list[Any]]:
        """A row over all units as one list a layer."""
        ends = np.cumsum([0, *self.widths])
        return [list(row[ends[i] : ends[i + 1]]) for i in range(len(self.widths))]

    def _input(self) -> tuple[Row, Row]:
        """Absolute sums and errors of the normalised input."""
        u, tiny, d = self.unit, self.tiny, self.deviation
        s = [max(abs(a), abs(b)) + abs(m) for a, b, m in zip(self.low, self.high, self.mean, strict=True)]
        e = [_gamma(2, u) * v + 2 * tiny for v in s]
        s, e = ([v / abs(n) for v, n in zip(x, d, strict=True)] for x in (s, e))
        return s, [a + _gamma(2, u) * (v + a) + 2 * tiny for v, a in zip(s, e, strict=True)]

    def _layer(self, number: int, s: Row, e: Row) -> tuple[Row, Row]:
        """Absolute sums and errors of W x + b, of those of x."""
        weight, bias = self.layers[number]
        n, a = len(weight[0]) + 2, _times(self.positive[number], e)
        s = [v + abs(b) for v, b in zip(_times(self.positive[number], s), bias, strict=True)]
        return s, [x + _gamma(n, self.unit) * (v + x) + n * self.tiny for v, x in zip(s, a, strict=True)]

    def sizes(self, bits: list[list[int]]) -> tuple[list[Row], Row, Row]:
        """Errors of the margins of each layer, and errors and absolute sums of the logits."""
        (s, e), margins = self.first, []
        for number, on in enumerate(bits):
            margins.append(e)
            s, e = ([v if bit else Fraction(0) for v, bit in zip(x, on, strict=True)] for x in (s, e))
            s, e = self._layer(number + 1, s, e)
        return margins, e, s

    def bound(self, bits: list[list[int]], lam: list[Row], j: int, k: int, margins: list[Row]) -> Fraction:
        """The largest f_j - f_k + sum lam (q + e) over the box, the errors of the logits not yet added."""
        weight, bias = self.layers[-1]
        total = bias[j] - bias[k]
        back = [a - b for a, b in zip(weight[j], weight[k], strict=True)]
        for number in reversed(range(len(bits))):
            bias = self.layers[number][1]
            units = zip(back, bits[number], lam[number], strict=True)
            back = [(c if on else 0) + (x if on else -x) for c, on, x in units]
            total += sum(c * b for c, b in zip(back, bias, strict=True) if c)
            total += sum(x * e for x, e in zip(lam[number], margins[number], strict=True) if x)
            back = _times(self.transposed[number], back)
        for c, m, d, low, high in zip(back, self.mean, self.deviation, self.low, self.high, strict=True):
            slope = c / d
            total += slope * ((high if slope > 0 else low) - m)
        return total


def multipliers(folder: Folder, atoms: int) -> list[list[Row]] | None:
    """`P x K x L` multipliers, read byte by byte; None where the bytes do not fit together."""
    q = folder.proof
    counts = q["count"].astype(int)
    if int((q["gap"] < 255).sum()) != counts.sum() or q["level"].size != counts.sum() or 255 in q["gap"][-1:]:
        return None
    if (q["scale"] < 0).any():
        return None
    gaps: Iterator[int] = iter(q["gap"].tolist())
    levels: Iterator[int] = iter(q["level"].tolist())
    table = []
    for point in range(len(counts)):
        rows = []
        for j in range(counts.shape[1]):
            lam, index, scale = [Fraction(0)] * atoms, -1, Fraction(float(q["scale"][point, j]))
            for _ in range(counts[point, j]):
                step = token = next(gaps)
                while token == 255:
                    token = next(gaps)
                    step += token
                index, level = index + step, next(levels)
                if not 0 <= index < atoms:
                    return None
                lam[index] += (level**2 if step else 2 * level) * scale
            rows.append(lam)
        table.append(rows)
    return table


def _sound(folder: Folder, truth: Truth) -> bool:
    """Return whether the patches and the box are valid."""
    p, correction, gate = folder.patches, folder.settings["correction"], folder.settings["gate"]
    count, classes = len(p["target"]), truth.classes
    if len({row.tobytes() for row in p["pattern"]}) < count or any(
        a > b for a, b in zip(truth.low, truth.high, strict=True)
    ):
        return False
    if np.unpackbits(p["pattern"], axis=1, bitorder="little")[:, sum(truth.widths) :].any():
        return False
    if any(not 0 <= int(p[name][i]) < classes for name in ("target", "label") for i in range(count)):
        return False
    if correction == "li2025":
        if any(not 0 <= float(v) <= 1 for v in p["alpha"].ravel()) or any(
            p["beta"][i, p["target"][i]] for i in range(count)
        ):
            return False
        return bool(np.isfinite(p["beta"]).all())
    pairs = {(int(p["group"][i]), float(p["shift"][i]), int(p["target"][i])) for i in range(count)}
    return gate == "exact" or len(pairs) == len({group for group, _, _ in pairs})


def _changes(folder: Folder, classes: int) -> list[Row]:
    """Return what each patch adds to each logit on an open gate."""
    out = []
    for k, shift in zip(folder.patches["target"].tolist(), folder.patches["shift"], strict=True):
        s = Fraction(float(shift))
        other = -s / 2 if folder.settings["correction"] == "minimal" else Fraction(0)
        out.append([s + other if j == k else other for j in range(classes)])
    return out


def true_spares(folder: Folder) -> list[Fraction] | None:
    """Return the spare of each patch, or None if the files are malformed."""
    truth, p = Truth(folder), folder.patches
    settings, epsilon = folder.settings, Fraction(float(folder.header["epsilon"]))
    u, tiny, classes, count = truth.unit, truth.tiny, truth.classes, len(p["target"])
    table = multipliers(folder, sum(truth.widths))
    if table is None or not _sound(folder, truth):
        return None
    change, group = _changes(folder, classes), p["group"].tolist()
    first = {g: i for i, g in reversed(list(enumerate(group)))}
    out = []
    for point in range(count):
        k, label = int(p["target"][point]), int(p["label"][point])
        if k == label or (settings["correction"] == "li2025" and settings["gate"] == "soft"):
            out.append(Fraction(-1))
            continue
        bits = truth.split(np.unpackbits(p["pattern"][point], bitorder="little"))
        margins, errors, sums = truth.sizes(bits)
        size = [a + b for a, b in zip(errors, sums, strict=True)]
        spares = []
        for j in set(range(classes)) - {k}:
            bound = truth.bound(bits, truth.split(table[point][j]), j, k, margins) + errors[j] + errors[k]
            if j == label and bound < 0:  # the base predicts the label nowhere in the region
                spares.append(Fraction(-1))
            if settings["correction"] == "li2025":
                alpha, beta = (Fraction(float(p[n][point, j])) for n in ("alpha", "beta"))
                lost = 8 * (2 * u * (size[j] + size[k] + abs(beta)) + tiny)
                spares.append(-epsilon - lost - alpha * bound - beta)
                continue
            shift = Fraction(float(p["shift"][point]))
            lost = 2 * u * (size[k] + abs(shift)) + tiny
            if settings["correction"] == "minimal":
                lost += 2 * u * (size[j] + abs(shift)) + tiny
            if settings["gate"] == "soft":
                rows = [change[i] for g, i in first.items() if g != group[point]]
                lost += sum(max(Fraction(0), row[j] - row[k]) for row in rows)
                everything = sum(abs(v) for i in first.values() for v in change[i])
                lost += 2 * _gamma(len(first) + 3, u) * (everything + 1) if u else 0
            spares.append(shift - epsilon - lost - bound)
        out.append(min(spares))
    return out
