"""Estimates of the memory and work of a check, from shapes and counts alone, before the check begins.

All estimates are upper bounds. Memory is the sum of a fixed part and a part per patch or record that are processed
together; their number is chosen so that the sum fits the limit. With `--exact` a number is a Python fraction, whose
bits grow with every product.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .folder.files import Folder
from .folder.reading import JSON_PART
from .limits import Limits

#: Work of reading or writing one number, of one call of numpy, and of one operation on small fractions.
NUMBER, CALL, FRACTION = 10, 50_000, 50_000
#: Bytes of a small fraction, and bits above which its operations grow.
FRACTION_BYTES, FRACTION_BITS = 256, 2000
#: Temporary copies of its numbers that an operation may need besides inputs and result.
COPIES = 4
#: Maximum number of patches, and of records, processed together.
CHUNK, BATCH = 32, 256
#: Maximum number of stored bits that a product for soft gates takes at a time.
GATES = 2**22


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one operation for one record.

    Attributes:
        out: numbers in the result.
        touched: numbers in inputs, padded inputs, windows and result.
        products: multiply-adds.
        calls: calls of numpy, independent of the number of records.
        loops: steps of a Python loop.
        coefficients: number of coefficients.
    """

    out: int
    touched: int
    products: int
    calls: int
    loops: int
    coefficients: int

    @property
    def scratch(self) -> int:
        """Numbers in temporary arrays."""
        return COPIES * self.touched


def estimate_cost(entry: Mapping[str, Any], inputs: list[tuple[int, ...]], tensors: Mapping[str, Any]) -> Cost:
    """Return upper bounds of the cost of an operation of network.json whose recorded shapes are correct."""
    op, at, shape = entry["op"], entry["attributes"], tuple(entry["shape"])
    out, before = math.prod(shape), sum(math.prod(s) for s in inputs)
    coefficients = [tensors[name] for name in entry["tensors"].values()]
    touched, products, calls, loops = out + before, out, 10 + 2 * len(inputs), 0
    if op == "linear":
        products = out * int(tensors[entry["tensors"]["weight"]].shape[1])
    elif op in ("conv", "average_pool", "max_pool"):
        first, weight = inputs[0], tensors[entry["tensors"]["weight"]].shape if op == "conv" else ()
        kernel, groups = (weight[2:], at["groups"]) if op == "conv" else (at["kernel"], 1)
        places, plane = math.prod(kernel), 1
        for axis, size in enumerate(kernel):
            dilation = at["dilation"][axis] if "dilation" in at else 1
            reach = (shape[1 + axis] - 1) * at["stride"][axis] + dilation * (size - 1) + 1
            plane *= at["padding"][axis] + max(first[1 + axis], reach)
        touched += first[0] * plane
        products = out * (math.prod(weight[1:]) if op == "conv" else places * NUMBER)
        calls += 10 * places * groups
        touched += out * places if op == "max_pool" else 0
        loops = math.prod(shape[1:]) if op == "average_pool" else 0
    return Cost(out, touched, products, calls, loops, sum(t.size for t in coefficients))


class Growth:
    """Estimates by how many bits the fractions of a network grow.

    Many operations may name the same tensor, so the numbers of each tensor are read once.

    Args:
        tensors: the tensors of the list.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._count_factors = functools.cache(lambda name: _factor_bits(tensors[name]))
        self._count_odd = functools.cache(lambda name: _odd_bits(tensors[name]))

    def estimate(self, entry: Mapping[str, Any], inputs: list[tuple[int, ...]]) -> int:
        """Return the number of bits by which numerator and denominator may grow in an operation of network.json."""
        op, at, names = entry["op"], entry["attributes"], entry["tensors"].values()
        bits = _attribute_bits(op, at, tuple(entry["shape"]), inputs)
        if op == "divide_constant":
            bits += self._count_odd(entry["tensors"]["value"])
        return bits + sum(self._count_factors(name) for name in names)


def _attribute_bits(op: str, at: Mapping[str, Any], shape: tuple[int, ...], inputs: list[tuple[int, ...]]) -> int:
    """Return the bits by which fractions may grow in an operation, without those of its tensors."""
    bits = 8 + (64 if op == "batch_norm" else 0)
    if op == "average_pool":  # each number of places that is divided by may be a factor of a denominator
        pairs = zip(at["kernel"], shape[1:], strict=True)
        counts = 1 if at["count_padding"] else math.prod(min(kernel, places) for kernel, places in pairs)
        most = math.prod(at["kernel"])
        bits += min(counts * most.bit_length(), 2 * most)  # the least common multiple of 1 to n is at most 3^n
    if op == "mean":
        bits += math.prod(inputs[0]).bit_length()
    if "slope" in at or "value" in at:
        bits += 300
    return bits


def _factor_bits(array: Any) -> int:
    """Return the bits by which a sum of products with the numbers of a tensor may grow."""
    found = abs(array[array != 0])
    if not found.size:
        return 0
    most, least = (math.log2(float(end)) for end in (found.max(), found.min()))
    return 24 + int(most - least + abs(most)) + int(array.size).bit_length()


def _odd_bits(divisors: Any) -> int:
    """Return the bits of the odd factors of all different divisors: a sum of quotients may have their product below."""
    whole = np.unique(np.ldexp(abs(np.frexp(divisors)[0].astype(np.float64)), 24).astype(np.int64))
    odd = np.unique(whole // (whole & -whole))
    return int(np.ceil(np.log2(odd[odd > 1])).sum())


def _longest(arrays: Mapping[str, Any]) -> int:
    """Return the largest number of rows of arrays that should have the same number."""
    return max((int(array.shape[0]) for array in arrays.values() if array.ndim), default=0)


class Budget:
    """Memory and work of checking one folder.

    Attributes:
        chunk: number of patches to process together.
        batch: number of records to replay together.
        memory: estimated bytes of the check of the patches with this chunk.
        bits: number of bits by which fractions may grow (0 without `exact`).
        spent: work counted so far.

    Raises:
        TooLarge: the check of the patches or of the recorded inputs exceeds a limit.
    """

    def __init__(self, folder: Folder, limits: Limits, *, exact: bool = False) -> None:
        self.limits, body = limits, folder.network
        shapes = [tuple(entry["shape"]) for entry in body["operations"]]
        self.costs = [
            estimate_cost(entry, [shapes[i] for i in entry["inputs"]], folder.tensors) for entry in body["operations"]
        ]
        self.inputs, self.classes = math.prod(body["input_shape"]), int(body["classes"])
        pairs = zip(body["operations"], self.costs, strict=True)
        self.atoms = sum(
            c.out * (math.prod(e["attributes"]["kernel"]) if e["op"] == "max_pool" else 1)
            for e, c in pairs
            if e["op"] in ("relu", "max_pool")
        )
        self.patches, self.soft = _longest(folder.patches), folder.settings.get("gate") == "soft"
        self.squeezed = folder.settings.get("correction") == "li2025"
        self.entries = sum(folder.proof[name].size for name in ("gap", "level") if name in folder.proof)
        self.records = _longest(folder.replay)
        self.results = sum(c.out for c in self.costs)
        self.scratch = max((c.scratch for c in self.costs), default=0)
        self.products = sum(c.products + NUMBER * c.scratch for c in self.costs)
        self.fractions = sum(c.products + 4 * c.touched for c in self.costs)
        self.overhead = sum(CALL * c.calls + NUMBER * CALL * c.loops / 100 for c in self.costs)
        self.coefficients = sum(c.coefficients for c in self.costs)
        self.exact = exact
        self._charge(folder, 0)
        if exact:  # the numbers of the tensors are read only if the check fits the limits with short fractions
            growth = Growth(folder.tensors)
            entries = body["operations"]
            self._charge(folder, sum(growth.estimate(e, [shapes[i] for i in e["inputs"]]) for e in entries))

    def _charge(self, folder: Folder, bits: int) -> None:
        """Compare memory and work with the limits, for fractions that grow by `bits`."""
        self.bits, self.spent = bits, 0.0
        self._fit(folder)
        self._charge_patches()

    # memory ---------------------------------------------------------------------------------------------------------

    def _fit(self, folder: Folder) -> None:
        """Choose how many patches and records are processed together."""
        number = FRACTION_BYTES + self.bits // 4 if self.exact else 8
        rows = self.classes
        forward = 8 * (2 * self.results + 4 * self.atoms + 2 * self.scratch)
        values = number * (self.results + 2 * self.atoms + self.scratch)
        backward = number * (self.results + 2 * self.atoms + self.scratch + 5 * self.inputs + 4 * self.classes)
        per_patch = forward + values + rows * (backward + 9 * self.atoms) + number * rows * self.atoms * self.exact
        per_record = 8 * (self.results + 4 * self.atoms + self.scratch + 4 * self.inputs) + self.patches * (
            48 + (self.atoms + 7) // 8
        )
        self.fixed_memory = self._fixed_memory(folder, number)
        least = self.fixed_memory + max(per_patch + 64 * self.entries / max(1, self.patches), forward + per_record)
        self.limits.check_memory(least * JSON_PART / (JSON_PART - 1), "the check")
        room = self.limits.memory * (JSON_PART - 1) / JSON_PART - self.fixed_memory
        self.per_record = max(1, per_record)
        self.chunk = int(max(1, min(CHUNK, room // max(1, per_patch))))
        self.batch = int(max(1, min(BATCH, room // self.per_record)))
        self.memory = self.fixed_memory + max(
            min(self.chunk, self.patches) * per_patch + 64 * self.entries, forward + per_record
        )

    def _fixed_memory(self, folder: Folder, number: int) -> float:
        parts = (folder.tensors, folder.patches, folder.proof, folder.replay)
        files = sum(array.nbytes for part in parts for array in part.values())
        tensors = sum(array.size for array in folder.tensors.values())
        weights = 8 * (2 * tensors + 4 * self.coefficients) + (
            number * (tensors + self.coefficients) if self.exact else 0
        )
        patterns = self.patches * (3 * self.atoms + 4 * ((self.atoms + 7) // 8) + 200)
        tables = 8 * self.patches * self.classes * (12 if self.soft else 8)
        blocks = 24 * min(max(GATES, self.atoms), self.patches * self.atoms) if self.soft else 0
        return files + weights + patterns + tables + blocks + 64 * self.entries + 4000 * len(self.costs)

    # work -----------------------------------------------------------------------------------------------------------

    def _charge_patches(self) -> None:
        count, rows = self.patches, self.patches * self.classes
        chunks = -(-count // self.chunk)
        table = NUMBER * rows
        around = 12 * self.atoms + 8 * self.inputs + 6 * self.classes
        if self.exact:
            growth = 1 + (self.bits / FRACTION_BITS) ** 2
            forms = FRACTION * growth * (self.fractions * (count + rows) + around * rows)
        else:
            forms = self.products * (count + rows) + NUMBER * around * rows
        errors = 2 * self.products * count + chunks * (3 * NUMBER * self.coefficients + 6 * self.overhead + 4 * table)
        setup = 20 * NUMBER * (count * self.atoms + self.coefficients) + 100 * NUMBER * (self.entries + rows)
        if self.soft:
            interference = FRACTION * (2 * count + self.classes + rows * self.exact)
            setup += interference + 4 * table + 100 * NUMBER * count
        once = self._replay() + self._open() + self._call()
        replay = self.records * (once + 2 * self.products + 6 * NUMBER * self.coefficients + 4 * self.overhead)
        self.spend(forms + errors + setup + replay, "the check")

    def _replay(self) -> float:
        """Return the work of replaying a record twice, without overhead."""
        return 2 * self.products + 4 * NUMBER * self.atoms + NUMBER * self.inputs * 4

    def _open(self) -> float:
        """Return the work of the gates of one record and of its patched logits."""
        gates = self.patches * NUMBER * (8 * self.classes + self.atoms / 8)
        if self.soft:
            gates += self.patches * (2 * self.atoms + NUMBER * 20)
            gates += 10 * CALL if self.squeezed else 0
        return gates

    def _call(self) -> float:
        """Return the work of one call for the gates of any number of records."""
        stored = 6 * NUMBER * self.patches * self.atoms + 20 * NUMBER * self.patches if self.soft else 0
        return stored + CALL * (20 + 10 * self.patches * self.atoms / GATES)

    def spend(self, work: float, what: str) -> None:
        """Count work before it is done.

        Raises:
            TooLarge: the total exceeds the limit.
        """
        self.spent += work
        self.limits.check_work(self.spent, what)

    def spend_replays(self, records: int, what: str, *, times: int = 1) -> None:
        """Count the work and memory of records before they are replayed `times` times.

        Raises:
            TooLarge: a limit is exceeded.
        """
        needed = self.fixed_memory + 32.0 * records * max(1, self.inputs)
        self.limits.check_memory(needed + self.per_record, what)
        self.batch = int(max(1, min(self.batch, (self.limits.memory - needed) // self.per_record)))
        calls = (3 * self.overhead + 3 * NUMBER * self.coefficients + self._call()) * -(-records // self.batch)
        self.spend(times * (records * (self._replay() + self._open()) + calls), what)

    def spend_points(self, points: int) -> None:
        """Count the work of the points: their replays, and 128 changes of up to 50 of them."""
        self.spend_replays(2 * points, "the check of the points")
        self.spend_replays(128, "the check of the points", times=min(50, points))
