"""Changes of many soft gates may be added to a large logit one after another: each addition is rounded."""

from __future__ import annotations

import numpy as np
import torch
from forged import library_spares
from forging import forged, operation, save

from expunge_check.arithmetic.network import Network
from expunge_check.cli import main
from expunge_check.verify import CERTIFIED, Checker
from test_mutations import rehashed

LARGE = 2.0**20 + 2.0**19  # neighbours in float32 are 0.125 apart
UNITS = 8


def many_soft_patches(count: int, shift: float, own: float, size: float):
    """A patch towards class 0 on a region where f_0 = f_1 = `size`, and `count` patches towards class 1 elsewhere.

    Patterns of the others are infeasible, which is allowed: their gates are assumed to be open where that does harm.
    """
    gain = 105.5
    first, bias = np.zeros((UNITS, UNITS)), np.full(UNITS, 0.25)
    bias[0] = 1
    last = np.zeros((3, UNITS))
    last[0, 0], last[1, 0] = gain, -gain
    steps = [
        operation("input", [], [UNITS]), operation("linear", [0], [UNITS], {"weight": "first", "bias": "bias"}),
        operation("relu", [1], [UNITS], slope=0.0), operation("linear", [2], [3], {"weight": "last"}),
        operation("add_constant", [3], [3], {"value": "centre"}, sign=1),
        operation("add_constant", [4], [3], {"value": "large"}, sign=1),
    ]  # fmt: skip
    tensors = {"first": first, "bias": bias, "last": last, "centre": [-gain, 0, 0], "large": [size] * 3}
    others = [[0] + [(number >> place) & 1 for place in range(UNITS - 1)] for number in range(count)]
    folder = forged(
        steps, tensors, np.asarray([[1] * UNITS, *others]), target=np.asarray([0] + [1] * count),
        label=[2] * (count + 1), shift=np.asarray([own] + [shift] * count), claim="float32", epsilon=1e-3, gate="soft",
        logits=[[0, 0, 0]],
    )  # fmt: skip
    folder.settings["slope"] = 2.0**-60
    rehashed(folder)
    checker = Checker(folder)
    base, atoms = Network(folder.network, folder.tensors).replay(folder.replay["inputs"])
    gates = checker.compute_gates(checker.network, folder.replay["inputs"], atoms)
    folder.replay["base_logits"] = base.astype(np.float32)
    folder.replay["logits"] = checker.patches.apply(base, gates).astype(np.float32)
    return rehashed(folder)


def test_changes_that_are_added_one_after_another_may_lose_the_margin(tmp_path):
    count, shift, own = 100, 1.0626, 1.5
    folder = many_soft_patches(count, shift, own, LARGE)
    logit = [torch.tensor(LARGE), torch.tensor(LARGE)]
    logit[0] = logit[0] + own
    for _ in range(count):
        logit[1] = logit[1] + torch.tensor(shift)
    in_turn = float(logit[0] - logit[1])
    at_once = float((torch.tensor(LARGE) + own) - (torch.tensor(LARGE) + torch.tensor(shift) * count))
    assert in_turn < at_once, "each addition rounds up to the next multiple of 0.125"
    for exact in (False, True):
        assert Checker(folder, exact=exact).check().verdicts[0] != CERTIFIED
    place = save(folder, tmp_path / "c")
    assert library_spares(place)[0] < 0
    assert main([str(place)]) != 0


def test_the_bound_counts_the_groups_that_change_a_logit():
    """gamma_m for each logit: m = groups with this target and 3; all groups for minimal corrections."""
    from fractions import Fraction

    from expunge_check.arithmetic.interference import Interference

    target, shift, group = np.asarray([0, 1, 1, 1]), np.asarray([1.0, 2.0, 2.0, 0.5]), np.asarray([0, 1, 1, 2])
    unit = Fraction(1, 2**24)
    for correction, counts in (("constant", (1, 2, 0)), ("minimal", (3, 3, 3))):
        found = Interference(correction, target, shift, group, 3, rounded=True)
        assert found.adding == [(n + 3) * unit / (1 - (n + 3) * unit) for n in counts]
        size = np.asarray([[Fraction(2), Fraction(3), Fraction(5)]], dtype=object)
        lost = found.adding_error(size, np.asarray([0]), exact=True)[0]
        assert lost[1] == 3 * found.adding[1] + 2 * found.adding[0]
    assert Interference("constant", target, shift, group, 3, rounded=False).adding == [0, 0, 0]
