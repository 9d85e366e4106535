"""How often the numbers of a tensor are read before the work is charged: once, however many operations name it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from forging import forged, operation

from expunge_check.arithmetic.shapes import check_operations
from expunge_check.budget import Budget
from expunge_check.errors import TooLarge
from expunge_check.limits import DEFAULT, Limits

UNITS = 3


class Counted(np.ndarray):
    """An array that counts the numpy functions that read it, in `Counted.reads`."""

    reads = 0

    def __array_ufunc__(self, function, method, *inputs, **options):
        Counted.reads += 1
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        return getattr(function, method)(*plain, **options)


@pytest.fixture
def reads(monkeypatch):
    monkeypatch.setattr(Counted, "reads", 0)
    return lambda: Counted.reads


def repeated(times, op):
    """A network that applies one operation with the same tensors again and again."""
    names, at = {
        "batch_norm": ({"mean": "m", "variance": "v"}, {"epsilon": 1.0}),
        "divide_constant": ({"value": "v"}, {}),
        "multiply_constant": ({"value": "v"}, {}),
        "add_constant": ({"value": "v"}, {"sign": 1}),
        "linear": ({"weight": "w"}, {}),
    }[op]
    steps = [operation("input", [], [UNITS])]
    steps += [operation(op, [i], [UNITS], names, **at) for i in range(times)]
    steps.append(operation("relu", [times], [UNITS], slope=0.0))
    whole = {"m": np.ones(UNITS), "v": [1.0, 3.0, 5.0], "w": np.eye(UNITS)}
    tensors = {name: whole[name] for name in names.values()}
    folder = forged(steps, tensors, [[1] * UNITS], logits=np.zeros((1, UNITS)))
    return dataclasses.replace(folder, tensors={name: t.view(Counted) for name, t in folder.tensors.items()})


@pytest.mark.parametrize("op", ["batch_norm", "divide_constant", "multiply_constant", "add_constant", "linear"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_tensor_of_many_operations_is_read_once(op, exact, reads):
    counts = []
    for times in (1, 20):
        folder, before = repeated(times, op), reads()
        check_operations(folder.network, folder.tensors)
        Budget(folder, DEFAULT, exact=exact)
        counts.append(reads() - before)
    assert counts[0] == counts[1]
    assert (counts[0] > 0) == (exact or op == "batch_norm"), "the count sees every read"


@pytest.mark.parametrize("limits", [Limits(work=1e6), Limits(memory=1e3)])
def test_no_tensor_is_read_before_shapes_alone_exceed_a_limit(limits, reads):
    folder = repeated(20, "divide_constant")
    before = reads()
    with pytest.raises(TooLarge):
        Budget(folder, limits, exact=True)
    assert reads() == before


@pytest.mark.parametrize("op", ["divide_constant", "linear"])
def test_the_bits_of_every_use_are_counted(op):
    one, two, many = (Budget(repeated(times, op), DEFAULT, exact=True).bits for times in (1, 2, 20))
    assert many - one == 19 * (two - one) > 19 * 24
