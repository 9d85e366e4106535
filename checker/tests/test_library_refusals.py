"""The library verifies nothing that the checker refuses: malformed sets, statements, boxes and proofs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from expunge.core.errors import ConfigError, FileError
from expunge.patches.bounds.proof import Proof
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.certificate import load_network, load_patches
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.network.regions import Box
from forged import executed
from forging import forged, operation, save
from test_rounded_sums import library_network

from expunge_check.errors import BadCertificate
from expunge_check.verify import CERTIFIED, Checker
from test_mutations import rehashed


def refuses(folder, match):
    with pytest.raises(BadCertificate, match=match):
        Checker(rehashed(folder))


def verified(folder, **changes):
    held, proof = folder.patches, folder.proof
    none = np.zeros((len(held["target"]), 0), np.float32)
    settings = {name: folder.settings[name] for name in ("correction", "atoms", "classes", "gate", "slope")}
    patches = PatchSet(**settings, **{"alpha": none, "beta": none, **held})
    box = Box(*(torch.from_numpy(proof[f"box.{end}"]) for end in ("low", "high")))
    rows = Proof(**{name: proof[name] for name in ("count", "scale", "gap", "level")})
    statement = {"claim": folder.header["claim"], "epsilon": folder.header["epsilon"], **changes}
    return verify_patches(library_network(folder), patches, rows, box, **statement)


TWO = {"bits": ((1, 1), (1, 0)), "claim": "real"}


def edit(place, name, value, at=...):
    return lambda folder: getattr(folder, place)[name].__setitem__(at, value)


def entry(count, gap, level, scale=1.0):
    def change(folder):
        folder.proof["count"][0, 1] = count
        folder.proof["scale"][0, 1] = scale
        folder.proof.update(gap=np.asarray(gap, np.uint8), level=np.asarray(level, np.uint8))

    return change


MALFORMED = {
    "a negative scale": ({}, entry(1, [2], [1], -1.0)),
    "a scale without end": ({}, entry(1, [2], [1], np.inf)),
    "fewer entries than counted": ({}, entry(2, [2], [1])),
    "an atom that does not exist": ({}, entry(1, [3], [1])),
    "a refinement of nothing": ({}, entry(1, [0], [1])),
    "gaps that end within an entry": ({}, entry(1, [2, 255], [1])),
    "alpha below 0": ({"correction": "li2025"}, edit("patches", "alpha", -1, (0, 1))),
    "alpha no number": ({"correction": "li2025"}, edit("patches", "alpha", np.nan, (0, 1))),
    "beta of the target": ({"correction": "li2025"}, edit("patches", "beta", -9, (0, 0))),
    "beta without end": ({"correction": "li2025"}, edit("patches", "beta", -np.inf, (0, 1))),
    "a shift without end": ({}, edit("patches", "shift", np.inf)),
    "a target that is no class": ({}, edit("patches", "target", 2)),
    "a label that is no class": ({}, edit("patches", "label", -1)),
    "bits beyond the atoms": ({}, edit("patches", "pattern", 7)),
    "a pattern twice": ({**TWO, "target": (0, 1), "shift": (2.0, 5.0)}, edit("patches", "pattern", 3)),
    "a group of two targets": (
        {**TWO, "target": (0, 1), "shift": 5.0, "gate": "soft"}, edit("patches", "group", 0),
    ),
    "a group of two shifts": ({**TWO, "shift": (2.0, 5.0), "gate": "soft"}, edit("patches", "group", 0)),
    "a slope that float64 rounds": ({"gate": "soft"}, lambda folder: folder.settings.update(slope=2**53 + 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_the_library_verifies_nothing_that_the_checker_refuses(case):
    options, change = MALFORMED[case]
    folder = forged(**options)
    assert verified(folder).shape == (len(folder.patches["target"]),)
    change(folder)
    with pytest.raises(BadCertificate):
        Checker(rehashed(folder)).check()
    with pytest.raises(ConfigError):
        verified(folder)


@pytest.mark.parametrize("changes", [{"epsilon": -1.0}, {"epsilon": float("nan")}, {"epsilon": np.inf}, {"claim": "x"}])
def test_the_library_verifies_no_statement_that_the_checker_refuses(changes):
    with pytest.raises(ConfigError):
        verified(forged(claim="real"), **changes)


def test_the_library_verifies_no_other_network_proof_or_box():
    folder = forged(claim="real", bits=((1, 1), (1, 0)))
    for name in ("count", "scale"):
        folder.proof[name] = folder.proof[name][:1]
    with pytest.raises(ConfigError, match="one proof per patch"):
        verified(folder)
    folder = forged(claim="real")
    for name in ("box.low", "box.high"):
        folder.proof[name] = folder.proof[name][None]
    with pytest.raises(ConfigError, match="shape of a record"):
        verified(folder)
    refuses(folder, "box")


def test_the_library_loads_no_pattern_twice(tmp_path):
    folder = forged(**TWO, target=(0, 1), shift=(2.0, 5.0))
    folder.patches["pattern"][:] = 3
    with pytest.raises(FileError, match="same pattern"):
        load_patches(save(rehashed(folder), tmp_path / "c") / "patches.safetensors")


def averaged(*middle):
    """The mean of two inputs, a number without axes, is worked on and then makes two logits."""
    first = [operation("input", [], [2]), operation("mean", [0], [], axes=[0], keep=False)]
    whole = [*first, *middle]
    last = len(whole) - 1
    return [*whole, operation("reshape", [last], [1]), operation("linear", [last + 1], [2], {"weight": "w"})]


def test_no_relu_acts_on_a_number_without_axes(tmp_path):
    steps = averaged(operation("relu", [1], [], slope=0.0))
    with pytest.raises(BadCertificate, match="relu has a result without axes"):
        forged(steps, {"w": [[1], [0]]})
    folder = forged(averaged(operation("reshape", [1], [])), {"w": [[1], [0]]}, np.zeros((1, 0)))
    folder.network["operations"] = steps
    with pytest.raises(FileError, match="relu has a result without axes"):
        load_network(save(rehashed(folder), tmp_path / "c"))


@pytest.mark.parametrize("middle", [
    operation("add_constant", [1], [], {"value": "c"}, sign=1), operation("multiply_constant", [1], [], {"value": "c"}),
    operation("add", [1, 1], [], sign=1), operation("permute", [1], [], axes=[]),
    operation("pad", [1], [], pairs=[], value=1.0), operation("reshape", [1], []),
], ids=lambda middle: middle["op"])  # fmt: skip
def test_what_is_certified_of_a_number_without_axes_is_executed(middle, tmp_path):
    tensors = {"w": [[0], [1]], **({"c": 0.5} if middle["tensors"] else {})}
    folder = forged(averaged(middle), tensors, np.zeros((1, 0)), shift=5.0)
    assert Checker(folder).check().verdicts == [CERTIFIED]
    recorded = folder.replay["logits"]
    assert executed(save(folder, tmp_path / "c"), np.full((3, 2), 0.5)) == pytest.approx(np.repeat(recorded, 3, axis=0))


def test_soft_gates_need_atoms(tmp_path):
    steps = [operation("input", [], [2]), operation("linear", [0], [2], {"weight": "w"})]
    folder = forged(steps, {"w": np.eye(2)}, np.zeros((1, 0)))
    assert Checker(folder).check().verdicts == [CERTIFIED]
    exact = executed(save(folder, tmp_path / "exact"), np.full((3, 2), 0.5))
    assert exact == pytest.approx(np.repeat(folder.replay["logits"], 3, axis=0))
    folder.settings["gate"] = "soft"
    refuses(folder, "no relu or max pool")
    with pytest.raises(FileError, match="need a network with a relu or max pool"):
        load_patches(save(rehashed(folder), tmp_path / "soft") / "patches.safetensors")
    with pytest.raises(ConfigError, match="need a network with a relu or max pool"):
        PatchSet.empty("constant", atoms=0, classes=2).with_gate("soft")
