"""What the checker refuses: one change of a certificate that is accepted as it stands, and the refusal it must meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from forging import PLAIN, forged, operation

from expunge_check.errors import BadCertificate
from expunge_check.folder.files import Folder
from expunge_check.verify import CERTIFIED, FAILED, Checker
from test_mutations import rehashed


def setting(place: str, name: str, value: Any) -> Callable[[Folder], None]:
    """A change of one entry of the header, the settings or network.json."""
    return lambda folder: getattr(folder, place).__setitem__(name, value)


def array(place: str, name: str, value: Any, at: Any = ...) -> Callable[[Folder], None]:
    """A change of some numbers of an array."""
    return lambda folder: getattr(folder, place)[name].__setitem__(at, value)


def entry(number: int, name: str, value: Any) -> Callable[[Folder], None]:
    """A change of one operation."""
    return lambda folder: folder.network["operations"][number].__setitem__(name, value)


def attribute(number: int, name: str, value: Any) -> Callable[[Folder], None]:
    """A change of an attribute of one operation."""
    return lambda folder: folder.network["operations"][number]["attributes"].__setitem__(name, value)


def test_the_forged_certificates_are_accepted_as_they_stand():
    for options in ({}, {"correction": "li2025"}, {"gate": "soft"}, {"correction": "minimal"}, {"claim": "real"}):
        report = Checker(forged(**options)).check()
        assert report.verdicts == [CERTIFIED], options
        assert report.passed
        assert report.replay < 1
    two = forged(bits=((1, 1), (1, 0)), gate="soft", group=(3, 3))
    assert Checker(two).check().verdicts == [CERTIFIED] * 2


PATCHES = {
    "no patch": ({"bits": np.zeros((0, 2))}, lambda folder: None, "no patch"),
    "a pattern twice": (
        {"bits": ((1, 1), (1, 0))}, array("patches", "pattern", 3), "same pattern",
    ),
    "alpha below 0": ({"correction": "li2025"}, array("patches", "alpha", -0.1, (0, 1)), "alpha lies outside"),
    "alpha above 1": ({"correction": "li2025"}, array("patches", "alpha", 1.1, (0, 1)), "alpha lies outside"),
    "alpha no number": ({"correction": "li2025"}, array("patches", "alpha", np.nan, (0, 1)), "alpha lies outside"),
    "beta infinite": ({"correction": "li2025"}, array("patches", "beta", -np.inf, (0, 1)), "beta is not finite"),
    "beta of the target": ({"correction": "li2025"}, array("patches", "beta", 0.5, (0, 0)), "target's own logit"),
    "a shift infinite": ({}, array("patches", "shift", np.inf), "shift is not finite"),
    "target no class": ({}, array("patches", "target", 2), "not a class"),
    "label no class": ({}, array("patches", "label", -1), "not a class"),
    "a slope beyond float32": ({"gate": "soft"}, setting("settings", "slope", 1e300), "is not a float32 number"),
    "a slope that float32 loses": ({"gate": "soft"}, setting("settings", "slope", 1e-60), "is not a float32 number"),
    "a slope of 0": ({"gate": "soft"}, setting("settings", "slope", 0), "is not a float32 number"),
    "a slope in words": ({"gate": "soft"}, setting("settings", "slope", "1.0"), "wrong type"),
    "atoms as a fraction": ({}, setting("settings", "atoms", 2.0), "wrong type"),
}  # fmt: skip
GROUPS = {
    "shift": ({"shift": (1.1, 1.2)}, "differ in shift or target"),
    "target": ({"target": (0, 1)}, "differ in shift or target"),
}
STATEMENT = {
    "a box without a number": (array("proof", "box.low", np.nan, 0), "box is empty or not finite"),
    "a box without a beginning": (array("proof", "box.low", -np.inf, 0), "box is empty or not finite"),
    "a box without an end": (array("proof", "box.high", np.inf, 0), "box is empty or not finite"),
    "a box from right to left": (array("proof", "box.low", 1.5, 0), "box is empty or not finite"),
    "a negative multiplier": (array("proof", "scale", -1.0, (0, 1)), "negative or not finite"),
    "epsilon true": (setting("header", "epsilon", True), "epsilon"),
    "epsilon beyond float64": (setting("header", "epsilon", 10**400), "epsilon"),
    "epsilon no number": (setting("header", "epsilon", float("nan")), "epsilon"),
    "epsilon below 0": (setting("header", "epsilon", -1e-3), "epsilon"),
    "more points than patches": (setting("header", "points", 2), "declares 2 points"),
    "points true": (setting("header", "points", True), "declares True points"),
    "no count of points": (lambda folder: folder.header.pop("points"), "has no points"),
}
NETWORK = {
    "a relu with a slope below 0": (attribute(2, "slope", -0.5), "slope outside"),
    "a relu with slope 1": (attribute(2, "slope", 1.0), "slope outside"),
    "a relu that grows": (attribute(2, "slope", 1.5), "slope outside"),
    "a slope true": (attribute(2, "slope", True), "slope of the wrong type"),
    "a reference to 1.9": (entry(2, "inputs", [1.9]), "no list of integers"),
    "a reference to true": (entry(2, "inputs", [True]), "no list of integers"),
    "a shape of 2.7": (entry(2, "shape", [2.7]), "no list of integers"),
    "a shape below 0": (entry(2, "shape", [-2]), "no list of integers"),
    "a shape beyond all memory": (entry(2, "shape", [10**30]), "no list of integers"),
    "classes as a fraction": (setting("network", "classes", 2.0), "wrong type"),
    "an input shape of 2.0": (setting("network", "input_shape", [2.0]), "wrong type"),
    "an unknown operation": (entry(2, "op", "sigmoid"), "unknown op"),
    "a relu of two results": (entry(2, "inputs", [1, 0]), "has 2 inputs"),
    "an attribute too many": (attribute(2, "ceiling", 6.0), "exactly the attributes"),
    "an attribute too few": (lambda f: f.network["operations"][2]["attributes"].clear(), "exactly the attributes"),
    "a tensor without a name": (entry(1, "tensors", {"weight": 1}), "does not name its tensors"),
    "an adaptive pool that leaves places out": (
        lambda f: f.network["operations"].insert(
            1,
            operation(
                "average_pool", [0], [2, 1], kernel=[1], stride=[2], padding=[0], count_padding=True, adaptive=True
            ),
        ),
        "does not make",
    ),
    "a pool of no plane": (
        lambda f: f.network["operations"].insert(
            1, operation("average_pool", [0], [2], kernel=[], stride=[], padding=[], count_padding=True, adaptive=False)
        ),
        "needs one kernel for each axis",
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_unsound_patches_are_refused(name):
    options, change, message = PATCHES[name]
    if name == "no patch":
        options = {**options, "logits": [[0.5, 0.5]]}
    folder = forged(**options)
    change(folder)
    with pytest.raises(BadCertificate, match=message):
        Checker(rehashed(folder)).check()


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_with_soft_gates_has_one_shift_and_one_target(name):
    options, message = GROUPS[name]
    folder = forged(bits=((1, 1), (1, 0)), gate="soft", **options)
    folder.patches["group"][:] = 3
    with pytest.raises(BadCertificate, match=message):
        Checker(rehashed(folder)).check()


@pytest.mark.parametrize(("cases", "name"), [(cases, name) for cases in (STATEMENT, NETWORK) for name in cases])
def test_invalid_statements_and_networks_are_refused(cases, name):
    change, message = cases[name]
    folder = forged()
    change(folder)
    with pytest.raises(BadCertificate, match=message):
        Checker(rehashed(folder)).check()


@pytest.mark.parametrize(("name", "value", "message"), [
    ("base_logits", [[np.nan, 0.5]], "finite"),
    ("logits", [[np.nan, np.nan]], "finite"),
    ("logits", [[np.inf, 0.5]], "finite"),
    ("base_logits", [0.5], "n x K"),
    ("logits", [[0.5]], "n x K"),
    ("inputs", [[np.nan, 0.5]], "outside the box"),
    ("inputs", [[1.5, 0.5]], "outside the box"),
    ("inputs", [[3e38, 3e38]], "outside the box"),
    ("logits", [[1.61, 0.5]], "deviate"),
    ("base_logits", [[0.51, 0.5]], "deviate"),
])  # fmt: skip
def test_recorded_logits_are_numbers_of_inputs_in_the_box(name, value, message):
    folder = forged()
    assert np.allclose(folder.replay["logits"], [[1.6, 0.5]])
    folder.replay[name] = np.asarray(value, np.float32)
    with pytest.raises(BadCertificate, match=message):
        Checker(rehashed(folder)).check()


def test_recorded_logits_are_float32():
    folder = forged()
    folder.replay["logits"] = folder.replay["logits"].astype(np.float64)
    with pytest.raises(BadCertificate, match="float32"):
        Checker(rehashed(folder)).check()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_recorded_logits_are_not_compared_by_an_infinite_bound():
    """Twelve layers of +-3e38 cancel to 0 at equal inputs, but what rounding could do there has no bound."""
    layers = [operation("linear", [i], [2], {"weight": "w"}) for i in range(12)]
    operations = [PLAIN[0], *layers, operation("relu", [12], [2], slope=0.0)]
    with pytest.raises(BadCertificate, match="finite"):
        Checker(forged(operations, {"w": [[3e38, -3e38], [3e38, -3e38]]}, logits=[[5.0, 7.0]])).check_replay()


def test_a_li2025_patch_with_a_soft_gate_fails():
    """Gates of other regions would scale logits, which no inequality covers."""
    folder = forged(correction="li2025")
    folder.settings["gate"] = "soft"
    assert Checker(rehashed(folder)).check().verdicts == [FAILED]


def test_a_target_that_is_the_label_forgets_nothing():
    folder = forged()
    folder.patches["label"][:] = folder.patches["target"]
    assert Checker(rehashed(folder)).check().verdicts == [FAILED]


def test_exact_gates_open_by_float32_bits():
    """1 + 2^-30 - 1 is 0 in float32, so the bit is 0; in float64 it would be 1 and another gate would open."""
    operations = [PLAIN[0], operation("linear", [0], [2], {"weight": "w", "bias": "b"}), PLAIN[2]]
    tensors = {"w": [[1, 2.0**-30], [1, 0]], "b": [-1, 0]}
    folder = forged(operations, tensors, bits=((0, 1), (1, 1)), target=(0, 1), shift=(2.0, 5.0), inputs=[[1, 1]])
    assert np.allclose(folder.replay["logits"], [[2, 1]])
    checker, x = Checker(folder), np.ones((1, 2), np.float32)
    _, atoms = checker.network.replay(x)
    assert atoms[0, 0] == 2.0**-30
    assert checker.compute_gates(checker.network, x, atoms).tolist() == [[1.0, 0.0]]
    report = checker.check(np.ones((2, 2), np.float32))
    assert report.verdicts[0] == CERTIFIED
    assert report.strays == 1, "the point has the bits of the first pattern only"


@pytest.mark.parametrize("bits", [(0, 1, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0)])
def test_every_window_has_one_winner_on_a_real_place(bits):
    """Windows (padding, a) and (b, padding): only 0110 has a winner that is not on padding in both."""
    pool = operation("max_pool", [0], [1, 2], kernel=[2], stride=[2], padding=[1], dilation=[1])
    operations = [operation("input", [], [1, 2]), pool, operation("reshape", [1], [2])]
    folder = forged(operations, {}, bits=(bits,), shift=5.0)
    assert Checker(folder).check().verdicts == [CERTIFIED if bits == (0, 1, 1, 0) else FAILED]
