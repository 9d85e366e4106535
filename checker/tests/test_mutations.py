"""A thousand mutations with the hashes made to fit again: a false statement is never accepted."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from checker_case import written
from expunge_check.files import BadCertificate, Folder, hash_array, hash_arrays, hash_value, read_folder
from expunge_check.verify import CERTIFIED, FAILED, POINT_ONLY, Checker

MUTATIONS = 1000


def rehashed(folder: Folder) -> Folder:
    """The folder with every hash recomputed, as a forger would."""
    for name, tensor in folder.tensors.items():
        folder.network["tensors"][name]["hash"] = hash_array(tensor)
    body = {n: folder.network[n] for n in ("input_shape", "classes", "operations", "tensors")}
    settings = folder.settings
    patches = {n: settings[n] for n in ("kind", "atoms", "classes", "gate")}
    patches |= {"slope": float(settings["slope"]), "arrays": hash_arrays(folder.patches)}
    folder.header["hashes"] = {
        "network": hash_value(body), "patches": hash_value(patches),
        "proof": hash_arrays(folder.proof), "replay": hash_arrays(folder.replay),
    }  # fmt: skip
    return folder


def copied(folder: Folder) -> Folder:
    parts = {f.name: getattr(folder, f.name) for f in dataclasses.fields(folder)}
    for name, value in parts.items():
        if name in ("header", "network", "settings"):
            parts[name] = json.loads(json.dumps(value))
        else:
            parts[name] = {k: v.copy() for k, v in value.items()}
    return Folder(**parts)


def true_spares(folder: Folder) -> list[Fraction] | None:
    """The tightest inequality of every point in rational arithmetic, by a direct formula for a one-layer MLP.

    Written anew here: no operation list, no shared code. None where the files are not even well formed.
    """
    F = lambda a: [[Fraction(float(v)) for v in row] for row in np.atleast_2d(a)]  # noqa: E731
    t, p, q = folder.tensors, folder.patches, folder.proof
    mean, deviation = F(t["normalise.mean"].reshape(-1))[0], F(t["normalise.deviation"].reshape(-1))[0]
    W, b = F(t["hidden.0.weight"]), F(t["hidden.0.bias"])[0]
    V, c = F(t["classifier.weight"]), F(t["classifier.bias"])[0]
    low, high = F(q["box.low"].reshape(-1))[0], F(q["box.high"].reshape(-1))[0]
    L, d, K = len(W), len(W[0]), len(V)
    u = Fraction(1, 2**24)
    g = lambda n: n * u / (1 - n * u)  # noqa: E731
    tiny = Fraction(1, 2**126)
    x1 = [max(abs(low[i]), abs(high[i])) for i in range(d)]
    s1 = [x1[i] + abs(mean[i]) for i in range(d)]
    e1 = [g(2) * s1[i] + 2 * tiny for i in range(d)]
    s2 = [s1[i] / deviation[i] for i in range(d)]
    e2 = [e1[i] / deviation[i] + g(2) * (s2[i] + e1[i] / deviation[i]) + 2 * tiny for i in range(d)]
    n = d + 2
    s3 = [sum(abs(W[j][i]) * s2[i] for i in range(d)) + abs(b[j]) for j in range(L)]
    a3 = [sum(abs(W[j][i]) * e2[i] for i in range(d)) for j in range(L)]
    e3 = [a3[j] + g(n) * (s3[j] + a3[j]) + n * tiny for j in range(L)]
    out, start = [], 0
    counts = q["count"].astype(int)
    if int((q["gap"] < 255).sum()) != counts.sum() or q["level"].size != counts.sum() or 255 in q["gap"][-1:]:
        return None
    tokens = iter(q["gap"].tolist())
    for point in range(len(p["target"])):
        bits = np.unpackbits(p["pattern"][point], bitorder="little")[:L]
        k, shift = int(p["target"][point]), Fraction(float(p["shift"][point]))
        s4 = [sum(abs(V[r][j]) * s3[j] for j in range(L) if bits[j]) + abs(c[r]) for r in range(K)]
        a4 = [sum(abs(V[r][j]) * e3[j] for j in range(L) if bits[j]) for r in range(K)]
        e4 = [a4[r] + g(L + 2) * (s4[r] + a4[r]) + (L + 2) * tiny for r in range(K)]
        spare = None
        for r in range(K):
            stop = start + counts[point, r]
            lam = [Fraction(0)] * L
            if q["scale"][point, r] < 0:
                return None
            index = -1
            for level in q["level"][start:stop]:
                step = token = next(tokens)
                while token == 255:
                    token = next(tokens)
                    step += token
                index += step
                if index >= L or index < 0:
                    return None
                worth = int(level) ** 2 if step else 2 * int(level)
                lam[index] += worth * Fraction(float(q["scale"][point, r]))
            start = stop
            if r == k:
                continue
            weight = [(V[r][j] - V[k][j] if bits[j] else 0) + lam[j] * (1 if bits[j] else -1) for j in range(L)]
            slope = [sum(weight[j] * W[j][i] for j in range(L)) / deviation[i] for i in range(d)]
            total = c[r] - c[k] + sum(weight[j] * b[j] for j in range(L))
            total += sum(max(slope[i] * low[i], slope[i] * high[i]) - slope[i] * mean[i] for i in range(d))
            total += sum(lam[j] * e3[j] for j in range(L)) + e4[r] + e4[k]
            lost = 2 * u * (s4[k] + e4[k] + abs(shift)) + tiny
            value = shift - Fraction(float(folder.header["epsilon"])) - lost - total
            spare = value if spare is None else min(spare, value)
        out.append(spare)
    return out


def mutate(folder: Folder, generator: np.random.Generator) -> str:
    """Change one thing somewhere; the name of what was changed."""
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


def test_accepted_exactly_where_a_valid_proof_remains(small: Path):
    """`certified` implies that rational arithmetic agrees; a proof with room to spare is not refused."""
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
            spares = checker._spare(np.arange(len(checker.patches)))
            good = (spares >= 0) & checker.fine & (checker.patches.target != checker.patches.label)
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


def test_changed_weights_are_noticed_by_the_hash(small: Path, tmp_path: Path):
    folder = copied(read_folder(small))
    folder.tensors["classifier.bias"][0] += np.float32(1e-3)
    import shutil

    from safetensors.numpy import save_file

    shutil.copytree(small, tmp_path / "c")
    save_file(folder.tensors, str(tmp_path / "c" / "network.safetensors"))
    with pytest.raises(BadCertificate, match="the weights were changed"):
        read_folder(tmp_path / "c")


def test_a_rehashed_change_of_weights_is_noticed_by_the_replay(small: Path):
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
