"""The memory that is estimated from shapes is an upper bound of what a check takes, on random operation lists."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from forging import forged, operation

from expunge_check.errors import TooLarge
from expunge_check.limits import Limits
from expunge_check.verify import Checker


def window(draws, shape, kind, kernel):
    """Return attributes of a window and the resulting shape, or None if it does not fit."""
    step, pad = int(draws.integers(1, 3)), int(draws.integers(0, kernel // 2 + 1))
    plane = [(n + 2 * pad - kernel) // step + 1 for n in shape[1:]]
    if min(plane) < 1:
        return None
    at = {"stride": [step] * 2, "padding": [pad] * 2}
    if kind == "conv":
        at |= {"dilation": [1, 1], "groups": 1}
    elif kind == "max_pool":
        at |= {"kernel": [kernel] * 2, "dilation": [1, 1]}
    else:
        at |= {"kernel": [kernel] * 2, "count_padding": True, "adaptive": False}
    return at, plane


def random_list(draws):
    """Return operations, tensors and the number of atoms of a random network on a plane."""
    shape = [int(draws.integers(1, 6)), int(draws.integers(4, 20)), int(draws.integers(4, 20))]
    operations, tensors, atoms = [operation("input", [], shape)], {}, 0
    for number in range(int(draws.integers(2, 8))):
        kind, before, name = str(draws.choice(KINDS)), len(operations) - 1, f"t{number}"
        after, at, named, inputs = list(shape), {}, {}, [before]
        if kind in ("conv", "max_pool", "average_pool"):
            kernel = int(draws.integers(1, 5))
            found = window(draws, shape, kind, kernel)
            if found is None:
                continue
            at, after[1:] = found
            if kind == "conv":
                after[0] = int(draws.integers(1, 8))
                tensors[name], named = draws.normal(size=(after[0], shape[0], kernel, kernel)), {"weight": name}
        elif kind == "batch_norm":
            tensors |= {name: draws.normal(size=shape[0]), f"{name}v": np.ones(shape[0])}
            named, at = {"mean": name, "variance": f"{name}v"}, {"epsilon": 0.0}
        elif kind == "multiply_constant":
            tensors[name], named = draws.normal(size=shape), {"value": name}
        elif kind == "add":
            inputs, at = [before, before], {"sign": 1}
        elif kind == "concat":
            inputs, at, after[0] = [before] * 2, {"axis": 0}, 2 * shape[0]
        elif kind == "pad":
            at, after[1:] = {"pairs": [1, 1, 1, 1], "value": 0.0}, [n + 2 for n in shape[1:]]
        elif kind == "permute":
            at, after = {"axes": [0, 2, 1]}, [shape[0], shape[2], shape[1]]
        elif kind == "mean":
            at, after[2] = {"axes": [2], "keep": True}, 1
        else:
            at = {"slope": 0.0}
        shape = after
        operations.append(operation(kind, inputs, shape, named, **at))
        atoms += math.prod(shape) if kind == "relu" else 0
        atoms += math.prod(shape) * kernel**2 if kind == "max_pool" else 0
    flat, classes = math.prod(shape), int(draws.integers(2, 20))
    tensors["last"] = draws.normal(size=(classes, flat))
    operations.append(operation("reshape", [len(operations) - 1], [flat]))
    operations.append(operation("linear", [len(operations) - 1], [classes], {"weight": "last"}))
    operations.append(operation("relu", [len(operations) - 1], [classes], slope=0.0))
    return operations, tensors, atoms + classes


KINDS = (
    "conv", "max_pool", "average_pool", "batch_norm", "multiply_constant", "add", "concat", "pad", "permute", "mean",
    "relu",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize("fraction", [None, 0.5])
def test_estimated_memory_is_an_upper_bound(fraction, monkeypatch):
    """With the default limits, and with half of the estimate as the limit, which needs smaller chunks."""
    draws, ratios = np.random.default_rng(3), []
    monkeypatch.setattr(Checker, "check_replay", lambda _: 0.0)  # the recorded logits are blank
    while len(ratios) < 25:
        operations, tensors, atoms = random_list(draws)
        if atoms >= 2**15:  # `forged` writes narrow counts
            continue
        bits = np.unique(draws.random((int(draws.integers(1, 30)), atoms)) < 0.5, axis=0)
        gate = str(draws.choice(["exact", "soft"]))
        blank = np.zeros((1, operations[-1]["shape"][0]))
        folder = forged(operations, tensors, bits, logits=blank, gate=gate)
        try:
            estimated = Checker(folder).budget.memory
            limits = Limits() if fraction is None else Limits(memory=fraction * estimated)
            tracemalloc.start()
            checker = Checker(folder, limits=limits)
            checker.check()
        except TooLarge:  # one patch alone is
            continue
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < checker.budget.memory <= limits.memory
        ratios.append(checker.budget.memory / peak)
    assert max(ratios) < 30  # and it is not so large that honest certificates would be refused
