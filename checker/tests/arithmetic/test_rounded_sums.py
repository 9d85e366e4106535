"""Sums that decide: what float64 loses must not certify a false statement, with fractions, without, or in the library.

Every statement here is false by rational arithmetic on the documented inequality, by less than a float64 sum can see.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from expunge.patches.bounds import verify as library
from expunge.patches.bounds.proof import Proof
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.network.operations import Network, Operation
from expunge.patches.network.regions import Box
from forging import PLAIN, forged, operation

from expunge_check.errors import BadCertificate
from expunge_check.folder.files import Folder
from expunge_check.verify import Checker
from test_mutations import rehashed

WAYS = ("float64", "fractions", "library")


def library_network(folder: Folder) -> Network:
    """The operation list of a folder in the library's form."""
    operations = []
    for entry in folder.network["operations"]:
        attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["attributes"].items()}
        shape = tuple(entry["shape"])
        operations.append(Operation(entry["op"], tuple(entry["inputs"]), shape, attributes, entry["tensors"]))
    tensors = {name: torch.from_numpy(array) for name, array in folder.tensors.items()}
    return Network(tuple(operations), tensors, tuple(folder.network["input_shape"]), folder.network["classes"])


def spares(folder: Folder, way: str) -> Any:
    """Return the spares of the first patches, computed in one of `WAYS`."""
    count = min(16, len(folder.patches["target"]))
    if way != "library":
        return Checker(folder, exact=way == "fractions")._compute_spare(np.arange(count))
    held, proof = folder.patches, folder.proof
    none = np.zeros((len(held["target"]), 0), np.float32)
    settings = {name: folder.settings[name] for name in ("correction", "atoms", "classes", "gate", "slope")}
    patches = PatchSet(**settings, **{"alpha": none, "beta": none, **held})
    box = Box(*(torch.from_numpy(proof[f"box.{end}"]) for end in ("low", "high")))
    rows = Proof(**{name: proof[name] for name in ("count", "scale", "gap", "level")})
    header = folder.header
    arguments = library_network(folder), patches, np.arange(count), rows.take(np.arange(count)), box
    interference = library._Interference.of(patches, header["claim"])
    return library._compute_spare(*arguments, header["claim"], header["epsilon"], interference)


def silent(units: int) -> tuple[list[Any], dict[str, Any]]:
    """Return a network whose two logits are always 0: every bound is 0, and only the shifts matter."""
    steps = [
        operation("input", [], [units]), operation("relu", [0], [units], slope=0.0),
        operation("linear", [1], [2], {"weight": "w"}),
    ]  # fmt: skip
    return steps, {"w": np.zeros((2, units))}


def numbered(count: int, units: int) -> Any:
    """Return `count` different patterns; the first has all bits set."""
    return (2**units - 1 - np.arange(count))[:, None] >> np.arange(units) & 1


def crowd(tiny: int, place: str, correction: str, epsilon: bool) -> Folder:
    """8,001 patches with gates that are open nearly everywhere; the margin of the first misses epsilon by 2^tiny.

    Its shift is 1. One patch of another target takes back almost all of it, and thousands, by 2^tiny each, the rest
    and once 2^tiny more. The large one stands before the tiny ones or after them.
    """
    steps, tensors = silent(14)
    spare = 2**-48 * (7999 * 2**tiny // 2**-48)
    count = int(spare / 2**tiny) + 1
    shift, target = np.zeros(8001), np.ones(8001, int)
    shift[0], target[0] = 1, 0
    large, rest = (1, 2) if place == "first" else (8000, 7999)
    some = np.delete(np.arange(8001), [0, large, rest])[:count]
    shift[large], shift[rest], shift[some] = 1 - 2.0**-24, 2.0**-24 - spare, 2.0**tiny
    margin = 0.0
    if epsilon:
        margin, shift[rest] = 2.0**-24 - spare, 0
    options = {
        "target": target,
        "shift": shift,
        "correction": correction,
        "gate": "soft",
        "claim": "real",
        "epsilon": margin,
    }
    folder = forged(steps, tensors, numbered(8001, 14), logits=[[0, 0]], **options)
    folder.settings["slope"] = 2.0**-126
    stored = [Fraction(float(s)) for s in folder.patches["shift"]]
    assert stored[0] - sum(stored[1:]) - Fraction(margin) == -(Fraction(2) ** tiny), "the statement is false"
    return rehashed(folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("epsilon", [True, False])
@pytest.mark.parametrize(("tiny", "place"), [(-55, "last"), (-58, "first")])
def test_thousands_of_tiny_interferences_count_next_to_a_large_one(tiny, place, epsilon, way):
    for correction in ("constant", "minimal") if way == "float64" else ("constant",):
        folder = crowd(tiny, place, correction, epsilon)
        assert spares(folder, way)[0] < 0
        gone = np.flatnonzero(folder.patches["shift"] == np.float32(2.0**tiny))[:4000]
        folder.patches["shift"][gone] = 0
        assert spares(rehashed(folder), way)[0] > 0, "without half of them it is true, and certified"


@pytest.mark.parametrize("way", WAYS)
def test_a_margin_lost_in_the_sum_of_epsilon_and_interference(way):
    """2^-54 + 1 is 1 in float64: the shift of 1 looks enough."""
    steps, tensors = silent(2)
    options = {"target": (0, 1), "shift": (1.0, 1.0), "gate": "soft", "claim": "real", "logits": [[0, 0]]}
    folder = forged(steps, tensors, ((1, 1), (1, 0)), epsilon=2.0**-54, **options)
    assert (spares(folder, way) < 0).all()
    folder = forged(steps, tensors, ((1, 1), (1, 0)), epsilon=0.0, **options)
    assert (spares(folder, "fractions") == 0).all(), "a margin of exactly 0 is one of at least 0"


def chain(factors: list[float]) -> tuple[list[Any], dict[str, Any]]:
    """f_0 = 0 and f_1 = the product of factors, at the only input 1 of relevance."""
    names = [f"c{number}" for number in range(len(factors))]
    scaled = [operation("multiply_constant", [i + 1], [2], {"value": name}) for i, name in enumerate(names)]
    steps = [operation("input", [], [2]), operation("relu", [0], [2], slope=0.0), *scaled]
    return steps, {f"c{i}": [0.0, v] for i, v in enumerate(factors)}


@pytest.mark.parametrize("way", WAYS)
def test_the_sign_is_tested_before_it_becomes_a_float(way):
    """f_1 - f_0 is 2^-1341: no float64, but above 0."""
    steps, tensors = chain([2.0**-149] * 9)
    folder = forged(steps, tensors, ((1, 1),), shift=0.0, claim="real", epsilon=0.0, logits=[[0, 0]])
    assert (spares(folder, way) < 0).all()
    folder.patches["shift"][:] = 2.0**-149
    assert (spares(rehashed(folder), way) > 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_the_constant_part_of_a_form_is_a_fraction_too(way):
    """1 + 2^-60 - 1 of three biases is 0 in float64."""
    steps = [
        operation("input", [], [3]), operation("linear", [0], [3], {"weight": "w", "bias": "b"}),
        operation("relu", [1], [3], slope=0.0), operation("linear", [2], [2], {"weight": "v"}),
    ]  # fmt: skip
    tensors = {"w": np.zeros((3, 3)), "b": [1, 2.0**-60, 1], "v": [[0, 0, 0], [1, 1, -1]]}
    folder = forged(steps, tensors, ((1, 1, 1),), shift=0.0, claim="real", epsilon=0.0, logits=[[0, 0]])
    assert (spares(folder, way) < 0).all()
    folder.patches["shift"][:] = 2.0**-60
    assert (spares(rehashed(folder), "fractions") == 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_product_with_alpha_that_underflows(way):
    """alpha x limit is 2^-1149, which is 0 in float64."""
    steps, tensors = chain([2.0**-125] * 8)
    folder = forged(steps, tensors, ((1, 1),), correction="li2025", claim="real", epsilon=0.0, logits=[[0, 0]])
    folder.patches["alpha"][:], folder.patches["beta"][:] = 2.0**-149, 0
    assert (spares(rehashed(folder), way) < 0).all()
    folder.patches["beta"][0, 1] = -(2.0**-149)
    assert (spares(rehashed(folder), way) > 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_half_of_the_smallest_shift_is_not_zero(way):
    """A shift of 2^-149 moves the logits of a minimal patch by 2^-150 each way, which float32 rounds to 0."""
    steps, tensors = silent(2)
    folder = forged(
        steps, tensors, ((1, 1), (1, 0), (0, 1)), target=(0, 1, 1), shift=2.0**-149, correction="minimal", gate="soft",
        claim="real", epsilon=0.0, logits=[[0, 0]],
    )  # fmt: skip
    assert spares(folder, way)[0] < 0


@pytest.mark.parametrize("exact", [False, True])
def test_an_epsilon_that_float64_rounds_is_refused(exact):
    with pytest.raises(BadCertificate, match="is not a float64 number"):
        Checker(forged(PLAIN, epsilon=2**53 + 1, shift=1e30, claim="real"), exact=exact)
    Checker(forged(PLAIN, epsilon=2**53, shift=1e30, claim="real"), exact=exact)


def test_nothing_but_fractions_decides(monkeypatch):
    """A float among the exact numbers is an error."""
    checker = Checker(forged(), exact=True)
    network = checker.network
    monkeypatch.setattr(network, "forms_at_zero", lambda bits, whole=network.forms_at_zero: [
        part * 1.0 for part in whole(bits)
    ])  # fmt: skip
    checker.check_replay = lambda: 0.0
    with pytest.raises(BadCertificate, match="among exact numbers"):
        checker.check()
