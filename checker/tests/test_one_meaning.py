"""Folders that mean one thing to the checker and another to who executes or reads them: refused or counted by both."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from expunge.core.errors import FileError
from expunge.patches.certificate import load_network, save_network
from expunge.patches.network.trace import trace
from forged import executed, library_spares
from forging import PLAIN, forged, operation, save
from safetensors.numpy import load_file, save_file
from torch import nn

from expunge_check.cli import main
from expunge_check.errors import BadCertificate, escape
from expunge_check.folder import reading
from expunge_check.folder.files import read_folder
from expunge_check.verify import CERTIFIED, FAILED, Checker
from test_mutations import rehashed

LARGEST = float(np.finfo(np.float32).max)


def refuses(folder, match):
    with pytest.raises(BadCertificate, match=match):
        Checker(rehashed(folder))


# float32 numbers that an execution forms


def batch_norm(variance, epsilon):
    """f = (x0 w / sqrt(variance + epsilon), 1/2) on relu(x): in real numbers x0 and 1/2."""
    weight = np.float32(np.sqrt(variance + epsilon))
    steps = [
        operation("input", [], [2]), operation("relu", [0], [2], slope=0.0),
        operation("batch_norm", [1], [2], {"mean": "m", "variance": "v", "weight": "w"}, epsilon=epsilon),
        operation("add_constant", [2], [2], {"value": "c"}, sign=1),
    ]  # fmt: skip
    tensors = {"m": [0, 0], "v": [variance] * 2, "w": [weight, 0], "c": [0, 0.5]}
    folder = forged(steps, tensors, shift=0.2, inputs=[[0.45, 0.5]])
    folder.proof["box.low"][:] = 0.4
    return rehashed(folder)


@pytest.mark.parametrize("variance", [LARGEST, LARGEST / 2 * 1.01])
def test_a_variance_that_overflows_with_its_epsilon(variance, tmp_path):
    """The executed 1 / sqrt is 0, so the patched network keeps answering class 1."""
    folder = batch_norm(variance, LARGEST)
    for exact in (False, True):
        assert Checker(folder, exact=exact).check().verdicts == [FAILED]
    place = save(folder, tmp_path / "c")
    assert library_spares(place)[0] < 0
    found = executed(place, np.asarray([[0.45, 0.5], [0.9, 0.5]]))
    assert (found[:, 0] < found[:, 1]).all(), "the statement is false"


def test_a_large_variance_that_does_not_overflow_is_certified():
    assert Checker(batch_norm(2.0**125, 2.0**125)).check().verdicts == [CERTIFIED]


# numbers


@pytest.mark.parametrize("value", [2**53 + 1, 10**19 + 1, -0.0, True, 0.1])
@pytest.mark.parametrize("name", ["value", "slope", "epsilon", "gate", "header"])
def test_numbers_that_would_be_rounded_are_refused(name, value, tmp_path):
    if value == 0.1 and name in ("epsilon", "gate", "header"):
        return  # float64 numbers
    steps, tensors = copy.deepcopy(PLAIN), {"w": np.eye(2)}
    if name == "value":
        steps = [steps[0], operation("pad", [0], [2], pairs=[0, 0], value=value), *steps[1:]]
    elif name == "slope":
        steps[2]["attributes"]["slope"] = value
    elif name == "epsilon":
        steps.append(operation("batch_norm", [2], [2], {"mean": "m", "variance": "v"}, epsilon=value))
        tensors |= {"m": [0, 0], "v": [1, 1]}
    for index in range(2, len(steps)):
        steps[index]["inputs"] = [index - 1]
    folder = forged()
    folder.network["operations"] = steps
    folder.network["tensors"] = {n: {"shape": list(np.shape(t))} for n, t in tensors.items()}
    folder.tensors.clear()
    folder.tensors.update({n: np.asarray(t, np.float32) for n, t in tensors.items()})
    if name == "gate":
        folder.settings["slope"] = value
    elif name == "header":
        folder.header["epsilon"] = value
    refuses(folder, "wrong type|float32 number|float64 number|outside")
    if name in ("value", "slope") and type(value) is not bool and value:
        with pytest.raises(FileError, match="not a float32 number"):
            load_network(save(rehashed(folder), tmp_path / "c"))


def test_a_padding_that_float64_rounds_hides_a_false_statement():
    """f_1 = 2^53 + 1 - 2^53 = 1 in truth and 0 where the padding is rounded; the shift is 1/2."""
    steps = [
        operation("input", [], [2]), operation("relu", [0], [2], slope=0.0),
        operation("linear", [1], [1], {"weight": "w"}), operation("pad", [2], [2], pairs=[0, 1], value=2.0**53),
        operation("add_constant", [3], [2], {"value": "c"}, sign=1),
    ]  # fmt: skip
    folder = forged(steps, {"w": [[0, 0]], "c": [0, -(2.0**53)]}, shift=0.5, claim="real", epsilon=0.25)
    assert Checker(folder, exact=True).check().verdicts == [CERTIFIED]
    folder.network["operations"][3]["attributes"]["value"] = 2**53 + 1
    refuses(folder, "wrong type")


@pytest.mark.parametrize("text", ["-0.0", "1e-400", "-1e-400", "9007199254740993"])
def test_an_epsilon_that_is_printed_as_another_number(text, tmp_path, capsys):
    place = save(forged(), tmp_path / "c")
    whole = (place / "certificate.json").read_text()
    (place / "certificate.json").write_text(whole.replace('"epsilon": 0.001', f'"epsilon": {text}'))
    assert main([str(place)]) == 2
    assert "float64" in capsys.readouterr().err


# attributes that are empty or reach beyond


def test_a_mean_over_no_axis_is_a_mean_over_everything_in_torch(tmp_path):
    steps = [*copy.deepcopy(PLAIN), operation("mean", [2], [2], axes=[], keep=True)]
    folder = forged()
    folder.network["operations"] = steps
    refuses(folder, "names no axis")
    with pytest.raises(FileError, match="names no axis"):
        load_network(save(rehashed(folder), tmp_path / "c"))


PLANE = [operation("input", [], [2, 3]), operation("relu", [0], [2, 3], slope=0.0)]


def pool(shape, kernel=1, stride=1, padding=0):
    at = {"kernel": [kernel], "stride": [stride], "padding": [padding]}
    return operation("average_pool", [1], shape, count_padding=True, adaptive=False, **at)


LAST = operation("mean", [2], [2], axes=[1], keep=False)
DEGENERATE = {
    "an average pool rounded up": (pool([2, 2], kernel=2, stride=2), r"does not make \(2, 2\)"),
    "an average pool padded by more than half": (pool([2, 5], padding=1), "above half"),
    "a kernel of 0": (pool([2, 4], kernel=0), "kernel below 1"),
    "a pad that cuts off more than there is": (operation("pad", [1], [2, 2], pairs=[3, -4], value=0.0), "padding"),
    "a slice of nothing": (operation("slice", [1], [2, 0], axis=1, start=0, stop=0, step=1), "has no shape"),
    "a permutation of nothing": (operation("permute", [1], [2, 3], axes=[]), "names 0 axes of 2"),
    "a concatenation of nothing": (operation("concat", [], [2, 3], axis=0), "has 0 inputs"),
    "a reshape to nothing": (operation("reshape", [1], []), "cannot be the recorded"),
    "no groups": (
        operation("conv", [1], [2, 3], {"weight": "w"}, stride=[1], padding=[0], dilation=[1], groups=0), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEGENERATE)
def test_empty_attributes_and_windows_that_torch_lacks_are_refused(case):
    folder = forged([*PLANE, operation("pad", [1], [2, 3], pairs=[], value=0.0), LAST], {}, np.ones((1, 6)), shift=1.1)
    assert Checker(folder).check().verdicts == [CERTIFIED]
    folder.network["operations"][2], message = DEGENERATE[case]
    if case == "no groups":
        folder.tensors["w"] = np.ones((2, 2, 1), np.float32)
        folder.network["tensors"]["w"] = {"shape": [2, 2, 1]}
    refuses(folder, message or None)


def test_empty_attributes_that_are_accepted_mean_the_same_in_torch(tmp_path):
    steps = [
        *PLANE, operation("pad", [1], [2, 3], pairs=[], value=0.0), operation("concat", [2], [2, 3], axis=1),
        operation("slice", [3], [2, 3], axis=1, start=-3, stop=9, step=1),
        operation("pad", [4], [2, 3], pairs=[2, -2], value=1.0), operation("mean", [5], [2], axes=[1], keep=False),
        operation("reshape", [6], [1, 2, 1]), operation("reshape", [7], [2]),
    ]  # fmt: skip
    x = np.random.default_rng(0).random((4, 2, 3), dtype=np.float32)
    folder = forged(steps, {}, np.ones((1, 6)), inputs=x, shift=1.1)
    place = save(folder, tmp_path / "c")
    assert np.allclose(executed(place, x, patched=False), Checker(folder).network.replay(x)[0], atol=1e-6)


# names


PROSE = "This certificate was audited by Dr. Jane Doe, Data Protection Officer"


@pytest.mark.parametrize(
    "name", [PROSE, "", "a b", "a\u00a0b", "\u0430", "\u3164", "\u2800", "\u115f", "w\ufe0f", "x" * 201]
)
def test_names_of_tensors_are_no_prose(name, tmp_path):
    steps = copy.deepcopy(PLAIN)
    steps[1]["tensors"] = {"weight": name}
    folder = forged()
    folder.network.update(operations=steps, tensors={name: {"shape": [2, 2]}})
    folder.tensors[name] = folder.tensors.pop("w")
    refuses(folder, "not the name of a tensor")
    if name:
        with pytest.raises(FileError, match="name"):
            load_network(save(rehashed(folder), tmp_path / "c"))


def test_every_tensor_is_used():
    folder = forged()
    folder.tensors["audited.by"] = np.zeros(1, np.float32)
    folder.network["tensors"]["audited.by"] = {"shape": [1]}
    refuses(folder, "no operation uses the tensor 'audited.by'")


def test_the_library_maps_names_that_the_format_lacks(tmp_path):
    """Names with spaces, of other alphabets, and of a module called `constant`; the values stay those of the model."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"my layer": nn.Linear(3, 3), "π": nn.Linear(3, 3), "plain_1": nn.Linear(3, 3)})
            self.constant = nn.ParameterList([torch.rand(3), torch.rand(3)])

        def forward(self, x):
            x = x + torch.tensor([1.0, 2.0, 3.0])
            for layer in self.layers.values():
                x = torch.relu(layer(x))
            return x * self.constant[0] - self.constant[1]

    network = trace(Named(), (3,))
    assert {"layers.plain_1.weight", "layers.plain_1.bias"} < set(network.tensors)
    assert len(network.tensors) == 9
    save_network(network, tmp_path)
    body = json.loads((tmp_path / "network.json").read_text())
    assert set(body["tensors"]) == set(network.tensors)
    assert all(name.isascii() and " " not in name for name in network.tensors)
    assert load_network(tmp_path).hash == network.hash


@pytest.mark.parametrize("character", "\u3164\u115f\u1160\uffa0\u2800\ufe0f\U000e0100\u034f\u17b4\u180b")
def test_blank_characters_are_escaped(character):
    assert character not in escape(f"a{character}b")


# files and what is printed


def test_the_weights_have_no_metadata(tmp_path):
    place = save(forged(), tmp_path / "c")
    at = place / "network.safetensors"
    save_file(load_file(str(at)), str(at), metadata={"expunge": "{}"})
    with pytest.raises(BadCertificate, match="metadata"):
        read_folder(place)


def test_a_link_put_in_place_between_the_two_looks(tmp_path, monkeypatch, capsys):
    place = save(forged(), tmp_path / "c")
    (tmp_path / "elsewhere").write_bytes((place / "proof.safetensors").read_bytes())
    look = Path.is_symlink

    def swap(path):
        found = look(path)
        if path.name == "proof.safetensors" and not found:
            path.unlink()
            path.symlink_to(tmp_path / "elsewhere")
        return found

    monkeypatch.setattr(Path, "is_symlink", swap)
    assert reading._NO_FOLLOW
    assert main([str(place)]) == 2
    assert "proof.safetensors cannot be read: it is a link" in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("gate", ["exact", "soft"])
def test_points_without_end_are_judged_in_silence(value, gate, tmp_path, capsys, recwarn):
    place = save(forged(gate=gate), tmp_path / "c")
    save_file({"inputs": np.full((1, 2), value, np.float32)}, str(tmp_path / "p"))
    assert main([str(place), "--points", str(tmp_path / "p"), "--inputs", str(tmp_path / "p")]) == 1
    assert capsys.readouterr().err == ""
    assert not recwarn.list


def test_a_label_that_is_the_target_is_never_observed():
    """Without points too such a patch fails; with them the point counts as mislabelled though the base answers it."""
    folder = forged(label=[0], target=0)
    checker = Checker(folder)
    inside, labelled = checker.observe_points(np.asarray([[0.75, 0.25]], np.float32))
    assert inside.all()
    assert not labelled.any()


def test_the_square_root_is_float64_even_in_fractions(monkeypatch):
    """1 / sqrt(v) is rounded down, so x / sqrt(v) seems to leave the room that it lacks by less than a rounding."""
    variance, high = next(
        (np.float32(v), h)
        for v in range(2, 100)
        for h in [float(np.sqrt(v))]
        if Fraction(1 / np.sqrt(float(v))) ** 2 * v < 1 and Fraction(1 / np.sqrt(float(v))) * Fraction(h) < 1
    )
    seeming = Fraction(1 / np.sqrt(float(variance))) * Fraction(high)
    epsilon = np.nextafter(float(1 - seeming), 0)
    assert epsilon > 0
    assert Fraction(high) ** 2 / Fraction(float(variance)) > (1 - Fraction(epsilon)) ** 2, "the statement is false"
    steps = [
        operation("input", [], [2]), operation("relu", [0], [2], slope=0.0),
        operation("batch_norm", [1], [2], {"mean": "m", "variance": "v"}, epsilon=0.0),
    ]  # fmt: skip
    folder = forged(steps, {"m": [0, 0], "v": [variance] * 2}, claim="real", epsilon=float(epsilon), shift=1.0)
    folder.proof["box.high"][1] = high
    folder = rehashed(folder)
    assert Checker(folder, exact=True).check().verdicts == [FAILED]
    checker = Checker(folder, exact=True)
    monkeypatch.setattr(checker, "_evaluation_error", lambda multipliers, *_: np.zeros(multipliers.shape[:2]))
    assert checker.check().verdicts == [CERTIFIED]  # so the term is what refuses it
