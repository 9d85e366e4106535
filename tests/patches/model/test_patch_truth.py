"""Claims about certificates against brute force: a million region points, fifty linear programs, broken patches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from patch_networks import build
from scipy.optimize import linprog
from torch import nn

from expunge.patches.bounds.falsify import falsify
from expunge.patches.bounds.solve import solve
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import Box, compute_affine_forms, compute_patterns
from expunge.patches.network.trace import trace


def optimum(network, bits, k, box):
    """max over the closed region of f_j - f_k and j, by HiGHS, for j != k."""
    forms = compute_affine_forms(network, bits)
    limits = np.stack([box.low.flatten(), box.high.flatten()], 1)
    best = -np.inf
    for j in range(network.classes):
        if j != k:
            objective = -(forms.F[j] - forms.F[k]).numpy()
            found = linprog(objective, A_ub=-forms.A.numpy(), b_ub=forms.c.numpy(), bounds=limits, method="highs")
            best = max(best, -found.fun + float(forms.g[j] - forms.g[k]))
    return best


@pytest.fixture(scope="module")
def tiny():
    """Two patched points of a small MLP."""
    model, shape = build("mlp")
    network, box = trace(model, shape), Box.of(shape)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(4))
    logits, bits = compute_patterns(network, x)
    order = logits.argsort(1)
    patches, proof = solve(network, bits, order[:, -1], order[:, -2], box)
    return model, network, x, bits, order[:, -2], box, patches, proof


def test_a_million_region_points_hold_no_counterexample(tiny):
    model, network, x, _, k, box, patches, _ = tiny
    patched = PatchedModel(model, network, patches)
    tried = 0
    for p in range(2):
        found = falsify(network, patched, x[p], int(k[p]), box, samples=640_000, chains=4096)
        tried += found.tried
        assert found.worst >= 1e-3
    assert tried >= 1_000_000


def test_the_same_search_finds_what_is_there(tiny):
    """A shift one per cent below the optimum has counterexamples, and so has the optimum of another class."""
    model, network, x, bits, k, box, patches, _ = tiny
    best = np.asarray([optimum(network, bits[p], int(k[p]), box) for p in range(2)])
    weak = PatchedModel(model, network, dataclasses.replace(patches, shift=(0.99 * best).astype(np.float32)))
    for p in range(2):
        assert falsify(network, weak, x[p], int(k[p]), box, samples=2_000).worst < 0


def test_every_search_alone_reaches_close_to_the_optimum(tiny):
    """Without linear programs: the walks come near the worst point of the region, and never beyond it."""
    from expunge.patches.bounds.falsify import _Tracker, _walk

    model, network, x, bits, k, box, patches, _ = tiny
    none = PatchedModel(model, network, patches.take(np.zeros(0, np.int64)))
    for p in range(2):
        tracker = _Tracker(none, bits[p], int(k[p]))
        _walk(compute_affine_forms(network, bits[p]), x[p], int(k[p]), box, tracker, 30_000, 64, 0)
        best = optimum(network, bits[p], int(k[p]), box)
        assert -tracker.worst <= best + 1e-5
        assert -tracker.worst >= 0.8 * best


def test_fifty_constant_shifts_are_within_a_per_cent_of_the_linear_programs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5)).eval()
    network, box = trace(model, (20,)), Box.of((20,))
    x = torch.rand(50, 20, generator=torch.Generator().manual_seed(1))
    logits, bits = compute_patterns(network, x)
    order = logits.argsort(1)
    patches, proof = solve(network, bits, order[:, -1], order[:, -2], box)
    best = np.asarray([optimum(network, bits[p], int(order[p, -2]), box) for p in range(50)]) + 1e-3
    assert (patches.shift >= best).all()
    assert (patches.shift <= 1.01 * best).all()
    assert (verify_patches(network, patches, proof, box, claim="float32", epsilon=1e-3) >= 0).all()
    weaker = dataclasses.replace(patches, shift=(0.99 * best).astype(np.float32))
    assert (verify_patches(network, weaker, proof, box, claim="float32", epsilon=1e-3) < 0).all()


def test_a_patched_model_moves_to_a_gpu_and_back(tiny):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    model, network, x, _, _, _, patches, _ = tiny
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        there = patched.to("cuda")(x.cuda()).cpu()
        assert torch.allclose(there, patched.to("cpu")(x), atol=1e-5)
