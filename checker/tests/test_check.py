"""Verdicts on true certificates, on every network of the zoo, against the torch side, and from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checker_case import ROOT, written
from expunge.patches.bounds.dual_ascent import RowSystem
from expunge.patches.network.execute import execute_pattern
from expunge.patches.network.regions import Box
from expunge.patches.network.rounding import bound_execution_error
from expunge.patches.network.trace import trace
from patch_networks import NETWORKS, build
from safetensors.numpy import save_file

from expunge_check.arithmetic.network import Network
from expunge_check.cli import main
from expunge_check.folder.files import read_folder
from expunge_check.verify import CERTIFIED, Checker


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_type_is_certified(name, tmp_path):
    points, _, _ = written(tmp_path / "c", name, count=2)
    report = Checker(read_folder(tmp_path / "c")).check(points)
    assert report.verdicts == [CERTIFIED] * 2
    assert report.replay < 1
    assert not any("outside the box" in note for note in report.notes)
    assert "changes" in report.notes[-1], "the size of the regions is said"


@pytest.mark.parametrize(("correction", "gate", "claim"), [
    ("minimal", "exact", "float32"), ("li2025", "exact", "float32"), ("constant", "soft", "float32"),
    ("constant", "exact", "real"),
])  # fmt: skip
def test_every_correction_is_certified(correction, gate, claim, tmp_path):
    points, _, _ = written(tmp_path / "c", "mlp", correction=correction, gate=gate, claim=claim)
    report = Checker(read_folder(tmp_path / "c")).check(points)
    assert report.verdicts == [CERTIFIED] * 3
    assert report.claim == claim


@pytest.mark.parametrize("name", NETWORKS)
def test_the_two_programs_agree_on_logits_bits_forms_and_errors(name, tmp_path):
    model, shape = build(name)
    network, box = trace(model, shape), Box.of(shape)
    written(tmp_path / "c", name, count=1)
    folder = read_folder(tmp_path / "c")
    other = Network(folder.network, folder.tensors)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(8))
    logits, bits = execute_pattern(network, x, network.tensors)
    again, atoms = other.replay(x.numpy())
    assert np.allclose(again, logits.numpy(), atol=1e-5)
    assert (other.compute_bits(atoms) == bits.numpy()).all()
    assert other.find_well_formed(bits.numpy()).all()
    ours, theirs = (
        bound_execution_error(network, bits, box.low, box.high),
        other.execution_errors(bits.numpy(), box.low.numpy().reshape(-1), box.high.numpy().reshape(-1)),
    )
    for field in ("margins", "logits", "margin_size", "logit_size"):
        assert np.allclose(getattr(ours, field).numpy(), getattr(theirs, field), rtol=1e-6, atol=1e-300)
    weights = torch.rand(6, network.classes, network.atoms, generator=torch.Generator().manual_seed(9)).double()
    system = RowSystem(network, bits, torch.zeros(6, dtype=torch.int64), box, ours.margins, torch.float64)
    slope, _ = system.combined(torch.arange(6), weights)
    cotangent = np.zeros((6, network.classes))
    cotangent[:, 1], cotangent[:, 0] = 1, -1
    assert np.allclose(slope[:, 1].numpy(), other.pull_back(bits.numpy(), cotangent, weights[:, 1].numpy()), atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_rational_arithmetic_agrees(name, tmp_path):
    written(tmp_path / "c", name, count=1)
    folder = read_folder(tmp_path / "c")
    plain, exact = Checker(folder).check(), Checker(folder, exact=True).check()
    assert exact.verdicts == [CERTIFIED]
    assert exact.spare[0] == pytest.approx(plain.spare[0], abs=1e-7)
    assert exact.spare[0] >= plain.spare[0] - 1e-12, "the float bound may only be the more careful one"


def test_runs_from_an_empty_folder_without_torch_or_expunge(small, tmp_path):
    """Only numpy and this package can be imported in the child."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in ("numpy",):
        source = Path(sys.modules[name].__file__).parent
        (libraries / name).symlink_to(source)
        if (source.parent / f"{name}.libs").exists():
            (libraries / f"{name}.libs").symlink_to(source.parent / f"{name}.libs")
    (libraries / "expunge_check").symlink_to(ROOT / "checker" / "src" / "expunge_check")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        "import sys\n"
        "from expunge_check.cli import main\n"
        f"code = main([{str(small)!r}, '--random', '50', '--json', 'out.json'])\n"
        "assert 'torch' not in sys.modules and 'expunge' not in sys.modules and 'scipy' not in sys.modules\n"
        "raise SystemExit(code)\n"
    )
    environment = {"PYTHONPATH": str(libraries), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    body = json.loads((empty / "out.json").read_text())
    assert body["counts"][CERTIFIED] == 3
    assert body["openings"]["random"]["total"] == 50


def test_openings_are_counted_as_torch_sees_them(tmp_path):
    points, patched, _ = written(tmp_path / "c", "mlp")
    x = np.concatenate([points, np.random.default_rng(0).random((300, *points.shape[1:])).astype(np.float32)])
    opened = Checker(read_folder(tmp_path / "c")).find_openings(x)
    assert (opened == (patched.compute_gates(torch.from_numpy(x)).amax(1) > 0).numpy()).all()
    assert opened[: len(points)].all()


def test_command_line_says_what_it_found(small, tmp_path, capsys):
    save_file({"inputs": np.random.default_rng(1).random((20, 6)).astype(np.float32)}, str(tmp_path / "x.safetensors"))
    assert main([str(small), "--inputs", str(tmp_path / "x.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "3 certified" in said
    assert "of 20" in said
    assert "does not show that information was removed" in said
    assert main([str(tmp_path)]) == 2
    assert "no certificate" in capsys.readouterr().err


def test_openings_name_the_inputs_and_small_regions_are_called_so(tmp_path):
    points, _, _ = written(tmp_path / "c", "mlp")
    others = np.random.default_rng(1).random((20, 6)).astype(np.float32)
    save_file({"inputs": np.concatenate([others, points])}, str(tmp_path / "x.safetensors"))
    save_file({"inputs": points}, str(tmp_path / "p.safetensors"))
    arguments = ["--inputs", str(tmp_path / "x.safetensors"), "--points", str(tmp_path / "p.safetensors")]
    assert main([str(tmp_path / "c"), *arguments, "--json", str(tmp_path / "out.json")]) == 0
    body = json.loads((tmp_path / "out.json").read_text())
    found = body["openings"][str(tmp_path / "x.safetensors")]
    assert set(range(20, 23)) <= set(found["rows"])
    assert found["opened"] == len(found["rows"])
    assert "for 0 of 3 points every tested change leaves the region" in body["notes"][-1]
    folder = read_folder(tmp_path / "c")
    weight, bias = folder.tensors["hidden.0.weight"], folder.tensors["hidden.0.bias"]
    bias[:] = 1e-5 - weight @ ((points[0] - 0.4) / 0.3)  # every face passes close by the first point
    checker = Checker(folder)
    checker.patches.bits[0] = checker.network.compute_bits(checker.network.replay(points[:1], np.float32)[1])[0]
    assert "for 1 of 1 points every tested change leaves the region" in checker._describe_regions(points[:1])[0]
