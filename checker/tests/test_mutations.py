"""A thousand mutations with the hashes made to fit again: a false statement is never accepted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from checker_case import written
from truth import true_spares

from expunge_check.errors import BadCertificate
from expunge_check.folder.files import Folder, hash_array, hash_arrays, hash_value, read_folder
from expunge_check.verify import CERTIFIED, FAILED, POINT_ONLY, Checker

MUTATIONS = 1000


def rehashed(folder: Folder) -> Folder:
    """Return the folder with recomputed hashes and the actual gate and correction declared, as a forger would."""
    for name, tensor in folder.tensors.items():
        folder.network["tensors"][name]["hash"] = hash_array(tensor)
    body = {n: folder.network[n] for n in ("input_shape", "classes", "operations", "tensors")}
    settings = folder.settings
    patches = {n: settings[n] for n in ("correction", "atoms", "classes", "gate")}
    patches |= {"slope": float(settings["slope"]), "arrays": hash_arrays(folder.patches)}
    folder.network["hash"], settings["hash"] = hash_value(body), hash_value(patches)
    folder.header["gate"], folder.header["correction"] = settings["gate"], settings["correction"]
    folder.header["hashes"] = {
        "network": hash_value(body), "patches": hash_value(patches),
        "proof": hash_arrays(folder.proof), "replay": hash_arrays(folder.replay),
    }  # fmt: skip
    return folder


def copied(folder: Folder) -> Folder:
    parts = {f.name: getattr(folder, f.name) for f in dataclasses.fields(folder)}
    for name, value in parts.items():
        if name in ("header", "network", "settings", "metadata"):
            parts[name] = json.loads(json.dumps(value))
        else:
            parts[name] = {k: v.copy() for k, v in value.items()}
    return Folder(**parts)


def mutate(folder: Folder, generator: np.random.Generator) -> str:
    """Change one entry and return its name."""
    kind = generator.choice(
        ["level", "scale", "shift", "target", "pattern", "weight", "box", "gap", "count", "epsilon"]
    )
    p, q = folder.patches, folder.proof
    point = int(generator.integers(len(p["target"])))
    factor = float(generator.choice([0, 0.5, 0.9, 0.99, 0.999999, 1.000001, 1.01, 1.1, 2, -1]))
    if kind == "level":
        at = generator.integers(q["level"].size)
        q["level"][at] = np.uint8(min(255, abs(int(q["level"][at]) * factor + generator.integers(-1, 2))))
    elif kind == "scale":
        q["scale"][point, generator.integers(q["scale"].shape[1])] *= np.float32(factor)
    elif kind == "shift":
        p["shift"][point] *= np.float32(factor)
    elif kind == "target":
        p["target"][point] = generator.integers(-1, 5)
    elif kind == "pattern":
        p["pattern"][point, generator.integers(p["pattern"].shape[1])] ^= np.uint8(1 << generator.integers(8))
    elif kind == "weight":
        name = generator.choice(sorted(folder.tensors))
        flat = folder.tensors[name].reshape(-1)
        flat[generator.integers(flat.size)] *= np.float32(factor)
    elif kind == "box":
        side = generator.choice(["box.low", "box.high"])
        q[side].reshape(-1)[generator.integers(q[side].size)] += generator.choice([-1.0, -1e-3, 1e-3, 1.0])
    elif kind == "gap":
        at, way = generator.integers(q["gap"].size), generator.integers(4)
        if way == 0:
            q["gap"] = np.delete(q["gap"], at)
        elif way == 1:
            q["gap"] = np.insert(q["gap"], at, generator.choice([0, 1, 255]))
        else:
            q["gap"][at] = generator.integers(8) if way == 2 else generator.integers(256)
    elif kind == "count":
        q["count"][point, generator.integers(q["count"].shape[1])] += np.uint16(generator.integers(1, 3))
    else:
        folder.header["epsilon"] = float(folder.header["epsilon"]) * factor + float(generator.choice([0, 1e-7, 1e-2]))
    return str(kind)


def test_accepted_exactly_if_a_valid_proof_remains(small: Path):
    """`certified` implies that rational arithmetic agrees; a proof with a positive spare is not refused."""
    original = read_folder(small)
    base = true_spares(original)
    assert all(spare > 0 for spare in base)
    generator = np.random.default_rng(0)
    accepted = refused = malformed = 0
    for _ in range(MUTATIONS):
        folder = copied(original)
        kind = mutate(folder, generator)
        try:
            checker = Checker(rehashed(folder))
            if kind == "weight":
                checker.check_replay()
            spares = checker._compute_spare(np.arange(len(checker.patches)))
            good = (spares >= 0) & checker.is_well_formed & (checker.patches.target != checker.patches.label)
        except BadCertificate:
            malformed += 1
            continue
        truth = true_spares(folder)
        for point in range(3):
            if good[point]:
                assert truth is not None, f"a malformed folder was accepted after {kind}"
                assert truth[point] >= 0, f"a false statement was accepted after {kind}"
                accepted += 1
            else:
                refused += 1
                allowed = truth is None or truth[point] < 1e-8
                same_class = int(folder.patches["target"][point]) == int(folder.patches["label"][point])
                assert allowed or same_class, f"a valid proof was refused after {kind}"
    assert accepted > 500
    assert refused > 100
    assert malformed > 50


def test_changed_weights_are_detected_by_the_hash(small: Path, tmp_path: Path):
    folder = copied(read_folder(small))
    folder.tensors["classifier.bias"][0] += np.float32(1e-3)
    import shutil

    from safetensors.numpy import save_file

    shutil.copytree(small, tmp_path / "c")
    save_file(folder.tensors, str(tmp_path / "c" / "network.safetensors"))
    with pytest.raises(BadCertificate, match="the weights were changed"):
        read_folder(tmp_path / "c")


def test_a_rehashed_change_of_weights_is_detected_by_the_replay(small: Path):
    folder = copied(read_folder(small))
    folder.tensors["classifier.bias"][0] += np.float32(1e-2)
    with pytest.raises(BadCertificate, match="deviate"):
        Checker(rehashed(folder)).check()


def test_a_weak_shift_is_only_flipped_at_the_point_or_failed(tmp_path: Path):
    points, patched, _ = written(tmp_path / "c", "mlp")
    folder = copied(read_folder(tmp_path / "c"))
    gaps = []
    import torch

    with torch.no_grad():
        logits = patched.module(torch.from_numpy(points)).numpy()
    for row, k in enumerate(folder.patches["target"]):
        gaps.append(np.delete(logits[row], k).max() - logits[row, k])
    folder.patches["shift"][0] = np.float32(gaps[0] + 1e-3)
    folder.patches["shift"][1] = np.float32(gaps[1] * 0.5)
    checker = Checker(rehashed(folder))
    checker.check_replay = lambda: 0.0  # the recorded logits are those of the strong shifts
    assert checker.check(points).verdicts == [POINT_ONLY, FAILED, CERTIFIED]
