"""The operation list: replay of inputs, affine forms of regions, error bounds of the execution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge_check.errors import BadCertificate, quote
from expunge_check.limits import LIMIT

from .operations import Step
from .rational import to_fractions
from .shapes import check_operations
from .step_errors import count_backward_roundings, find_peak, max_per_record, underflow_error

Array = NDArray[Any]
UNIT32 = 2.0**-24
UNIT64 = 2.0**-53
TINY32 = 2.0**-126
TINY64 = 2.0**-1022
#: Executed numbers must stay below this, half of the largest power of two in float32.
OVERFLOW = 2.0**127
_UP = 1.0 + 1e-9


def gamma(n: float, unit: float) -> float:
    """Return n u / (1 - n u)."""
    if n * unit >= 0.5:
        raise BadCertificate("the network is too deep for a rounding bound")
    return n * unit / (1 - n * unit)


@dataclasses.dataclass(frozen=True, eq=False)
class ExecutionErrors:
    """Error bounds of the execution over a box, for `B` patterns.

    Attributes:
        margins, logits: errors, `B x L` and `B x K`.
        margin_size, logit_size: bounds on the absolute values of margins and logits.
        peak: `B`, the largest absolute number that may occur in an execution, in any order.
        underflow: `B`, how much underflow in a float64 reverse pass may change a bound.
    """

    margins: Array
    logits: Array
    margin_size: Array
    logit_size: Array
    peak: Array
    underflow: Array


class Network:
    """An operation list in one number type.

    Args:
        body: network.json.
        tensors: float32 arrays.
        exact: compute with fractions instead of float64.

    Raises:
        BadCertificate: the list is malformed.
    """

    def __init__(self, body: Mapping[str, Any], tensors: Mapping[str, Array], *, exact: bool = False) -> None:
        self.body, self.exact = body, exact
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise BadCertificate(f"tensor {quote(name)} is not finite float32")
        self.raw = dict(tensors)
        self.input_shape = tuple(int(n) for n in body["input_shape"])
        self.classes = int(body["classes"])
        self.entries = list(body["operations"])
        self.shapes = [tuple(int(n) for n in entry["shape"]) for entry in self.entries]
        check_operations(body, tensors)
        self.atom_slices: dict[int, slice] = {}
        self.atoms = 0
        for number, entry in enumerate(self.entries):
            size = math.prod(self.shapes[number])
            if entry["op"] == "max_pool":
                size *= math.prod(int(v) for v in entry["attributes"]["kernel"])
            elif entry["op"] != "relu":
                continue
            self.atom_slices[number] = slice(self.atoms, self.atoms + size)
            self.atoms += size
        if self.atoms > LIMIT or math.prod(self.input_shape) > LIMIT:
            raise BadCertificate("the network is too large")
        if exact:
            self.tensors: dict[str, Array] = {name: to_fractions(tensor) for name, tensor in tensors.items()}
        else:
            self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self.steps = self._steps(self.tensors)
        self.path = sum(step.count_roundings() + 2 for step in self.steps.values()) + 2 * len(self.entries)
        shared = self.atoms + math.prod(self.input_shape)
        back = sum(
            count_backward_roundings(step) + 1 for step in self.steps.values()
        )  # the error bound takes 4 times the steps
        self.evaluation_steps = max(self.path + shared, (back + shared + 8) // 3 + 1)
        self.has_square_root = any(step.op == "batch_norm" for step in self.steps.values())  # rounded in float64

    def _steps(self, tensors: Mapping[str, Array], **options: bool) -> dict[int, Step]:
        steps = {}
        for number, entry in enumerate(self.entries):
            if entry["op"] != "input":
                shapes = [self.shapes[int(i)] for i in entry["inputs"]]
                if entry["op"] in ("relu", "max_pool"):
                    plain = {**entry, "tensors": {}}
                    steps[number] = Step(plain, shapes, tensors, **options)
                else:
                    steps[number] = Step(entry, shapes, tensors, **options)
        return steps

    def _inputs(self, number: int) -> list[int]:
        return [int(i) for i in self.entries[number]["inputs"]]

    # the network itself ------------------------------------------------------------------------------------------

    def replay(self, x: Array, dtype: Any = np.float64) -> tuple[Array, Array]:
        """Return logits `B x K` and values of the atoms `B x L`, in float64 or float32."""
        steps = self.steps if dtype == np.float64 else self._steps(self.raw)
        values: list[Array] = [x.astype(dtype)]
        atoms = []
        for number in range(1, len(self.entries)):
            step, inputs = steps[number], [values[i] for i in self._inputs(number)]
            if step.op == "relu":
                atoms.append(inputs[0].reshape(len(x), -1))
                slope = inputs[0].dtype.type(step.attributes["slope"])
                values.append(np.where(inputs[0] > 0, inputs[0], inputs[0] * slope))
            elif step.op == "max_pool":
                spread = step.gather_windows(inputs[0])
                atoms.append(spread.reshape(len(x), -1))
                values.append(spread.max(axis=-1).reshape(len(x), *step.shape))
            else:
                values.append(step.forward(inputs))
        return values[-1], np.concatenate(atoms, axis=1) if atoms else np.zeros((len(x), 0))

    def compute_bits(self, atoms: Array) -> Array:
        """Return activation bits `B x L`: z > 0 for a relu; for a max pool, 1 at the first position of the maximum."""
        parts = []
        for number, place in self.atom_slices.items():
            part = atoms[:, place]
            if self.entries[number]["op"] == "relu":
                parts.append(part > 0)
            else:
                spread = part.reshape(len(part), -1, self._width(number))
                first = spread.argmax(axis=-1)
                parts.append((np.arange(spread.shape[-1]) == first[..., None]).reshape(len(part), -1))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(atoms), 0), dtype=bool)

    def _width(self, number: int) -> int:
        return math.prod(int(v) for v in self.entries[number]["attributes"]["kernel"])

    def find_well_formed(self, bits: Array) -> Array:
        """Return which patterns have exactly one winner, not on padding, in every max-pool window, `B` bool."""
        is_valid = np.ones(len(bits), dtype=bool)
        for number, place in self.atom_slices.items():
            if self.entries[number]["op"] == "max_pool":
                step = self.steps[number]
                real = np.isfinite(step.gather_windows(np.zeros((1, *step.shapes[0]))))[0]
                chosen = bits[:, place].reshape(len(bits), *real.shape)
                is_valid &= (chosen.sum(-1) == 1).all((1, 2)) & ~(chosen & ~real).any((1, 2, 3))
        return is_valid

    # the affine forms of regions ---------------------------------------------------------------------------------

    def forms_at_zero(self, bits: Array) -> tuple[Array, Array]:
        """Return logits `B x K` and margins `B x L` of the affine forms at the zero input."""
        start = np.zeros((len(bits), *self.input_shape))
        values: list[Array] = [to_fractions(start) if self.exact else start]
        margins = []
        for number in range(1, len(self.entries)):
            step, inputs = self.steps[number], [values[i] for i in self._inputs(number)]
            if number not in self.atom_slices:
                values.append(step.forward(inputs))
                continue
            on = bits[:, self.atom_slices[number]]
            if step.op == "relu":
                flat = inputs[0].reshape(len(bits), -1)
                margins.append(np.where(on, flat, -flat))
                values.append(np.where(on.reshape(inputs[0].shape), inputs[0], inputs[0] * self._slope(step)))
            else:
                spread, real = self._gather_real_windows(step, inputs[0])
                won = np.where(on.reshape(spread.shape), spread, 0).sum(axis=-1)
                margins.append(np.where(real, won[..., None] - spread, 0).reshape(len(bits), -1))
                values.append(won.reshape(len(bits), *step.shape))
        return values[-1], np.concatenate(margins, axis=1) if margins else np.zeros((len(bits), 0))

    def _slope(self, step: Step) -> Any:
        from fractions import Fraction

        return Fraction(float(step.attributes["slope"])) if self.exact else float(step.attributes["slope"])

    @staticmethod
    def _gather_real_windows(step: Step, value: Array) -> tuple[Array, Array]:
        real = np.isfinite(step.gather_windows(np.zeros((1, *step.shapes[0]))))
        spread = step.gather_windows(value)
        return np.where(real, spread, 0), real

    def pull_back(self, bits: Array, logits: Array, margins: Array) -> Array:
        """Return the gradient `B x d` of <logits, f> + <margins, q> on the regions of `bits`, by one reverse pass."""
        count = len(bits)
        cotangents: list[Array | None] = [None] * len(self.entries)
        cotangents[-1] = logits
        for number in range(len(self.entries) - 1, 0, -1):
            step, c = self.steps[number], cotangents[number]
            cotangents[number] = None
            if number in self.atom_slices:
                backs = [self._backward_choice(number, step, bits, c, margins[:, self.atom_slices[number]])]
            elif c is None:
                continue
            else:
                backs = step.backward(c)
            for i, back in zip(self._inputs(number), backs, strict=True):
                previous = cotangents[i]
                cotangents[i] = back if previous is None else previous + back
        first = cotangents[0]
        if first is None:
            raise BadCertificate("the logits do not depend on the input")
        return first.reshape(count, -1)

    def _backward_choice(self, number: int, step: Step, bits: Array, c: Array | None, weights: Array) -> Array:
        on = bits[:, self.atom_slices[number]]
        shape = (len(bits), *step.shapes[0])
        if step.op == "relu":
            back = np.where(on, weights, -weights).reshape(shape)
            return back if c is None else back + np.where(on.reshape(shape), c, c * self._slope(step))
        width = self._width(number)
        _, real = self._gather_real_windows(step, np.zeros((1, *step.shapes[0])))
        chosen = on.reshape(len(bits), step.shape[0], -1, width)
        weights = np.where(real, weights.reshape(chosen.shape), 0)
        at_winner = weights.sum(axis=-1)
        if c is not None:
            at_winner = at_winner + c.reshape(at_winner.shape)
        return step.scatter_windows(np.where(chosen, at_winner[..., None], 0) - weights)

    # rounding ----------------------------------------------------------------------------------------------------

    def execution_errors(
        self, bits: Array, low: Array, high: Array, *, unit: float = UNIT32, tiny: float = TINY32
    ) -> ExecutionErrors:
        """Return error bounds of the execution on the regions of `bits` over the box; see docs/patches.md.

        Args:
            bits: `B x L` patterns.
            low: lower bounds of the box, `d`.
            high: upper bounds of the box.
            unit: relative error of a rounding (0: only underflow counts).
            tiny: absolute error of a product that underflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._execution_errors(bits, np.maximum(abs(low), abs(high)), unit, tiny)

    def _execution_errors(self, bits: Array, reach: Array, unit: float, tiny: float) -> ExecutionErrors:
        tensors = {name: tensor.astype(np.float64) for name, tensor in self.raw.items()}
        full = self._steps(tensors, absolute=True)
        linear = self._steps(tensors, absolute=True, constants=False)
        size0 = np.broadcast_to(reach.reshape(1, *self.input_shape), (len(bits), *self.input_shape))
        sizes, errors = [size0], [np.zeros_like(size0)]
        most, underflow = (
            max_per_record(size0),
            np.full(len(bits), float(self.atoms + math.prod(self.input_shape) + 16)),
        )
        found: tuple[list[Array], list[Array]] = ([], [])
        for number in range(1, len(self.entries)):
            step = full[number]
            x, e = [sizes[i] for i in self._inputs(number)], [errors[i] for i in self._inputs(number)]
            for a, b in zip(x, e, strict=True):
                underflow = underflow + (count_backward_roundings(step) + 1) * (1 + a + b).reshape(len(bits), -1).sum(
                    axis=1
                )
            if number in self.atom_slices:
                on = bits[:, self.atom_slices[number]]
                if step.op == "relu":
                    found[0].append(x[0].reshape(len(bits), -1))
                    found[1].append(e[0].reshape(len(bits), -1))
                    mask, slope = on.reshape(x[0].shape), float(step.attributes["slope"])
                    off = slope * e[0] + 2 * unit * slope * (x[0] + e[0]) + (tiny if slope else 0.0)
                    sizes.append(np.where(mask, x[0], slope * x[0]))
                    errors.append(np.where(mask, e[0], off))
                else:
                    for values, kept, out in ((x[0], sizes, found[0]), (e[0], errors, found[1])):
                        spread, _ = self._gather_real_windows(step, values)
                        won = np.where(on.reshape(spread.shape), spread, 0).sum(axis=-1)
                        out.append((spread + won[..., None]).reshape(len(bits), -1))
                        kept.append(won.reshape(len(bits), *step.shape))
                continue
            size, error = step.forward(x), linear[number].forward(e)
            if step.count_roundings():
                up = _UP + 4 * step.count_roundings() * UNIT64  # sizes and errors are float64 sums themselves
                size, error = size * up, error * up
                lost = underflow_error(step, x[0] + e[0], tiny)
                error = error + gamma(step.count_roundings(), unit) * (size + error) + lost
            sizes.append(size)
            errors.append(error * _UP)
            most = np.maximum(most, find_peak(step, x[0] + e[0], sizes[-1] + errors[-1]))
        join = [np.concatenate(parts, axis=1) if parts else np.zeros((len(bits), 0)) for parts in found]
        return ExecutionErrors(join[1], errors[-1], join[0], sizes[-1], most, 4 * TINY64 * underflow)
