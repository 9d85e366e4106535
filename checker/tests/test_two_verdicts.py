"""The library and the checker give the same verdicts and spares for the same proofs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from checker_case import written
from expunge.patches.bounds.proof import Proof
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.network.regions import Box
from patch_networks import NETWORKS

from expunge_check.folder.files import read_folder
from expunge_check.verify import Checker


@pytest.mark.parametrize(
    ("name", "correction", "gate", "claim"),
    [
        *((name, "constant", "exact", "float32") for name in NETWORKS),
        ("mlp", "minimal", "exact", "float32"),
        ("mlp", "li2025", "exact", "float32"),
        ("mlp", "constant", "soft", "float32"),
        ("mlp-deep", "constant", "exact", "real"),
    ],
)
def test_the_library_has_the_spares_of_the_checker(name, correction, gate, claim, tmp_path):
    _, patched, patches = written(tmp_path / "c", name, correction=correction, gate=gate, claim=claim)
    folder = read_folder(tmp_path / "c")
    proof = Proof(**{n: folder.proof[n] for n in ("count", "scale", "gap", "level")})
    box = Box.of(patched.network.input_shape)
    weak = dataclasses.replace(patches, shift=patches.shift * np.float32(0.9), beta=patches.beta * np.float32(0.9))
    for some, certified in ((patches, True), (weak, False)):
        ours = verify_patches(patched.network, some, proof, box, claim=claim, epsilon=1e-3)
        folder.patches["shift"], theirs = some.shift, None
        if correction == "li2025":
            folder.patches["beta"] = some.beta
        theirs = Checker(folder)._compute_spare(np.arange(len(some)))
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        assert ((ours >= 0) == certified).all()


def test_both_read_the_same_multipliers_over_long_gaps():
    """Rows with gaps beyond 255, empty rows, full rows: the checker's atoms are the library's."""
    import torch

    from expunge_check.folder.decode import _atoms

    draws = np.random.default_rng(0)
    for density in (0.0, 0.002, 0.05, 1.0):
        table = draws.exponential(size=(4, 3, 1300)) * (draws.random((4, 3, 1300)) < density)
        table[1, 1] = 0
        proof = Proof.compress(torch.from_numpy(table))
        atom = np.nonzero(proof.dense(1300).numpy())[2]
        index, finer = _atoms(proof.gap, proof.count.reshape(-1))
        assert np.array_equal(index[~finer], atom)
        assert np.array_equal(index[finer], index[np.flatnonzero(finer) - 1])
        assert not density or finer.any()


@pytest.mark.parametrize(
    ("gap", "count", "message"),
    [
        ([0, 1], [2], "refinement"),
        ([1, 0, 2], [1, 2], "refinement"),
        ([3, 255], [1], "within a step"),
        ([3], [2], "more or fewer"),
        ([3, 2], [1], "more or"),
    ],
)
def test_damaged_gaps_are_refused(gap, count, message):
    from expunge_check.errors import BadCertificate
    from expunge_check.folder.decode import _atoms

    with pytest.raises(BadCertificate, match=message):
        _atoms(np.asarray(gap, np.uint8), np.asarray(count, np.uint16))
