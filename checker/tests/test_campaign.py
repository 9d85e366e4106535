"""Many forged certificates at the edge of what is true, judged by rational arithmetic; and everything else they say.

Two thousand and more with EXPUNGE_MUTATIONS=2000; a small sample of the same draws otherwise.
"""

from __future__ import annotations

import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checker_case import written
from forging import forged, operation, save
from test_rounded_sums import spares

from expunge_check.errors import BadCertificate
from expunge_check.folder.declarations import PROGRAMS
from expunge_check.folder.files import Folder, read_folder
from expunge_check.verify import CERTIFIED, Checker
from test_mutations import copied, rehashed

MUTATIONS = int(os.environ.get("EXPUNGE_MUTATIONS", "120"))
#: Sizes of shifts, weights and biases: subnormals, numbers that vanish beside others, numbers near float32's ends.
SCALES = (-149, -140, -126, -100, -60, -55, -30, -24, -1, 0, 1, 30, 60, 100, 126)


def drawn(draws: np.random.Generator, count: int, low: int = -149, high: int = 126) -> Any:
    """Positive float32 numbers of all sizes, with few or many bits."""
    scale = draws.choice([s for s in SCALES if low <= s <= high], count)
    bits = np.where(draws.random(count) < 0.5, 1.0, 1 + draws.integers(0, 2**23, count) / 2**23)
    return np.asarray(np.ldexp(bits, scale), np.float32)


def case(draws: np.random.Generator) -> tuple[Folder, list[Fraction], list[Fraction]]:
    """Return a folder, and for each patch its exact spare and the largest f_label - f_target of its region.

    Every unit has an input of its own in [0, 1], so a region is a box, on which an affine function has its maximum at a
    corner: the truth is a sum of fractions, without any multipliers, bound or operation list.
    """
    units, classes = int(draws.integers(2, 7)), int(draws.integers(2, 5))
    many = int(min(2**units, draws.choice([1, 2, 3, 8, 60])))
    correction = str(draws.choice(["constant", "constant", "minimal", "li2025"]))
    gate = "exact" if correction == "li2025" else str(draws.choice(["soft", "soft", "soft", "exact"]))
    sizes = draws.random() < 0.5
    weight = drawn(draws, units, -30, 30) if sizes else np.ones(units, np.float32)
    table = drawn(draws, units * classes, -60, 30).reshape(classes, units) * draws.choice([-1, 0, 1], (classes, units))
    bias = drawn(draws, classes, -149, 30) * draws.choice([-1, 0, 0, 1], classes)
    if draws.random() < 0.4:
        table[:], bias[:] = 0, 0
    steps = [
        operation("input", [], [units]), operation("multiply_constant", [0], [units], {"value": "a"}),
        operation("relu", [1], [units], slope=0.0),
        operation("linear", [2], [classes], {"weight": "v", "bias": "b"}),
    ]  # fmt: skip
    tensors = {"a": weight, "v": table.astype(np.float32), "b": bias.astype(np.float32)}
    bits = (draws.permutation(2**units)[:many, None] >> np.arange(units)) & 1
    target = draws.integers(0, classes, many)
    label = (target + draws.integers(1, classes, many)) % classes
    shift = drawn(draws, many) * draws.choice([1, 1, 1, 1, 1, -1, 0], many)
    group = np.arange(many)
    for p in range(1, many):
        if draws.random() < 0.2:
            other = int(draws.integers(p))
            group[p], shift[p], target[p] = group[other], shift[other], target[other]
    label = np.where(label == target, (target + 1) % classes, label)
    claim = "real" if draws.random() < 0.8 else "float32"
    folder = forged(
        steps, tensors, bits, target=target, label=label, shift=shift, correction=correction, gate=gate, group=group,
        claim=claim, epsilon=0.0, logits=[[0.0] * classes],
    )  # fmt: skip
    if correction == "li2025":
        folder.patches["alpha"][:] = np.minimum(1, drawn(draws, many * classes, -149, 0)).reshape(many, classes)
        folder.patches["beta"][:] = -drawn(draws, many * classes).reshape(many, classes)
        folder.patches["beta"][np.arange(many), target] = 0
    folder.settings["slope"] = float(2.0 ** draws.choice([-126, 0, 64]))
    spare, highest = truth(folder, tensors, bits)
    at = int(draws.integers(many))
    epsilon = max(Fraction(0), spare[at])
    near = float(min(epsilon, Fraction(10) ** 300))
    step = draws.choice(["hit", "above", "above", "below", "zero", "huge", "tiny"])
    choices = {
        "hit": near, "above": math.nextafter(near, math.inf), "below": math.nextafter(near, 0.0), "zero": 0.0,
        "huge": float(2.0 ** draws.integers(100, 1023)), "tiny": 2.0**-1074,
    }  # fmt: skip
    folder.header["epsilon"] = choices[str(step)]
    return rehashed(folder), [s - Fraction(choices[str(step)]) for s in spare], highest


def truth(folder: Folder, tensors: dict[str, Any], bits: Any) -> tuple[list[Fraction], list[Fraction]]:
    """Return the spare at epsilon 0 in real arithmetic and the largest f_label - f_target of each patch."""
    p = {name: array.tolist() for name, array in folder.patches.items()}
    correction, gate = folder.settings["correction"], folder.settings["gate"]
    a, v, b = ([[Fraction(float(x)) for x in row] for row in np.atleast_2d(tensors[n])] for n in ("a", "v", "b"))
    groups = {g: i for i, g in reversed(list(enumerate(p["group"])))}
    changes = {g: _change(correction, p["target"][i], Fraction(p["shift"][i]), len(v)) for g, i in groups.items()}
    out, highest = [], []
    for row, k in enumerate(p["target"]):
        rooms = []
        for j in set(range(len(v))) - {k}:
            corner = [
                max(Fraction(0), (x - y) * w) for x, y, w, on in zip(v[j], v[k], a[0], bits[row], strict=True) if on
            ]
            most = sum(corner, b[0][j] - b[0][k])
            if j == p["label"][row]:
                highest.append(most)
            if correction == "li2025":
                rooms.append(-Fraction(p["alpha"][row][j]) * most - Fraction(p["beta"][row][j]))
                continue
            own = _change(correction, k, Fraction(p["shift"][row]), len(v))
            harm = [c[j] - c[k] for g, c in changes.items() if g != p["group"][row]] if gate == "soft" else []
            rooms.append(own[k] - own[j] - most - sum((h for h in harm if h > 0), Fraction(0)))
        out.append(min(rooms))
    return out, highest


def _change(correction: str, target: int, shift: Fraction, classes: int) -> list[Fraction]:
    other = -shift / 2 if correction == "minimal" else Fraction(0)
    return [shift + other if j == target else other for j in range(classes)]


def test_at_the_edge_of_truth():
    """Fractions certify exactly the true statements; float64 and the library certify none that is false, and those with
    some spare."""
    draws, counts = np.random.default_rng(10), {"true": 0, "false": 0, "near": 0, "accepted": 0}
    for number in range(MUTATIONS):
        folder, spare, highest = case(draws)
        real, size = folder.header["claim"] == "real", len(spare)
        some = min(16, size)
        exact = spares(folder, "fractions")
        plain, ours = spares(folder, "float64"), spares(folder, "library")
        scale = Fraction(folder.header["epsilon"]) + sum(Fraction(float(abs(s))) for s in folder.patches["shift"])
        scale += sum(Fraction(float(abs(v))) for name in "vb" for v in folder.tensors[name].ravel()) * max(
            Fraction(1), *(Fraction(float(v)) for v in folder.tensors["a"])
        )
        if folder.settings["correction"] == "li2025":
            scale += sum(Fraction(float(-b)) for b in folder.patches["beta"].ravel())
        close = scale / 2**40 + Fraction(1, 2**1000)  # a label can be refuted only as far as bounds are tight
        loose = close if real else scale / 2**10 + Fraction(1, 2**100)
        for p in range(some):
            held = spare[p] >= 0 and highest[p] >= 0
            counts["true" if held else "false"] += 1
            counts["near"] += abs(spare[p]) <= scale / 2**50
            for way, found in (("fractions", exact), ("float64", plain), ("library", ours)):
                if found[p] >= 0:
                    labelled = highest[p] >= (0 if real and way == "fractions" else -loose)
                    assert spare[p] >= 0, f"case {number}, patch {p}: a false statement was accepted ({way})"
                    assert labelled, f"case {number}, patch {p}: a false label was accepted ({way})"
                    assert Fraction(float(found[p])) <= spare[p], f"case {number}, patch {p}: {way} claims too much"
                    counts["accepted"] += 1
            if real:
                assert (exact[p] >= 0) == held, f"case {number}, patch {p}: fractions refuse what is true"
                if held and spare[p] > close:
                    assert plain[p] >= 0 <= ours[p], f"case {number}, patch {p}: a true statement was refused"
    assert min(counts.values()) > MUTATIONS // 3, counts


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all parts of a JSON value, without itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in items for found in ((*path, key), *leaves(part, (*path, key)))]


def altered(value: Any, draws: np.random.Generator) -> Any:
    """Return a value that replaces a JSON value: another type, another string, or one entry more or less."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        whole = [float(value), str(value), [value], value + 1, None, *[True] * (value == 1)]
        return whole[draws.integers(len(whole))]
    if isinstance(value, float):
        return [str(value), True, [value], None][draws.integers(4)]
    if isinstance(value, str):
        whole = [
            value + " TF32 included",
            "",
            value.upper() + "!",
            value[:-1],
            1,
            None,
            [value],
            "valid on any hardware",
        ]
        return whole[draws.integers(len(whole))]
    if isinstance(value, list):
        again, fewer = [*value, *(value[-1:] or [0])], value[1:] if value else [1]
        return [[*value, "all hardware"], again, fewer, {}, None][draws.integers(5)]
    note = {**value, "note": "signed by A. Person"}
    return [note, [], None, dict(list(value.items())[1:]) if value else note][draws.integers(4)]


def mutation(folder: Folder, draws: np.random.Generator) -> str:
    """Change, add or delete one entry anywhere, then correct the hashes unless they were changed."""
    place = str(draws.choice(["header", "header", "network", "settings", "metadata"]))
    body = getattr(folder, place)
    paths = [path for path in leaves(body) if place != "metadata" or len(path) > 1]
    path = paths[draws.integers(len(paths))]
    held = body
    for key in path[:-1]:
        held = held[key]
    before = json.dumps(held[path[-1]])
    way = draws.choice(["alter", "alter", "alter", "delete", "add"])
    if way == "delete":
        del held[path[-1]]
    elif way == "add" and isinstance(held, dict):
        held[f"{path[-1]} "] = held[path[-1]]
    else:
        held[path[-1]] = altered(held[path[-1]], draws)
    texts = {name: folder.header.get(name) for name in ("gate", "correction", "hashes")}
    own = folder.network.get("hash"), folder.settings.get("hash")
    if "hash" not in path and "hashes" not in path:
        try:
            rehashed(folder)
        except (LookupError, TypeError, ValueError, AttributeError):
            return f"{place} {path} {way} {before}"
        for name in ("gate", "correction"):
            if name in path or texts[name] is None:
                folder.header[name] = texts[name]
                if name in path and way == "delete":
                    del folder.header[name]
        if path == ("hash",) and place == "network":
            folder.network["hash"] = own[0]
    return f"{place} {path} {way} {before}"


def harmless(original: Folder, folder: Folder) -> bool:
    """Return whether the folder declares the same as the original; only release numbers may be missing or different."""
    for name in ("network", "settings", "metadata"):
        if json.dumps(getattr(folder, name), sort_keys=True) != json.dumps(getattr(original, name), sort_keys=True):
            return False
    one, other = ({k: v for k, v in f.header.items() if k != "versions"} for f in (original, folder))
    versions = folder.header.get("versions")
    plain = isinstance(versions, dict) and all(
        k in PROGRAMS and isinstance(v, str) and re.fullmatch(r"\d+(\.\d+)*(rc\d+)?", v) for k, v in versions.items()
    )
    return plain and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize(
    ("correction", "gate", "claim"), [("constant", "soft", "float32"), ("li2025", "exact", "real")]
)
def test_every_entry_of_a_folder_is_compared(correction, gate, claim, tmp_path: Path):
    written(tmp_path / "honest", "mlp", correction=correction, gate=gate, claim=claim)
    original = read_folder(tmp_path / "honest")
    draws, refused, kept = np.random.default_rng(11), 0, 0
    for number in range(MUTATIONS // 2):
        folder = copied(original)
        what = mutation(folder, draws)
        try:
            place = save(folder, tmp_path / "c")
            report = Checker(read_folder(place)).check()
            passed = report.passed
        except BadCertificate:
            passed = False
        if harmless(original, folder):
            assert passed, f"mutation {number}: {what}: an honest folder was refused"
            assert report.verdicts == [CERTIFIED] * 3
            kept += 1
        else:
            assert not passed, f"mutation {number}: {what}: nobody compared it"
            refused += 1
    assert refused > MUTATIONS // 4
    assert kept > 0
