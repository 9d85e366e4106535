from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from patch_networks import NETWORKS, build
from scipy.optimize import linprog
from torch import nn

from expunge.core.errors import ConfigError, RequestError
from expunge.patches.bounds.falsify import falsify
from expunge.patches.bounds.solve import SolveOptions, compute_bounds, solve
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import Box, compute_affine_forms, compute_patterns
from expunge.patches.network.trace import trace


def _case(name, count=4, seed=0):
    model, shape = build(name)
    network = trace(model, shape)
    x = torch.rand(4 * count, *shape, generator=torch.Generator().manual_seed(seed))
    logits, bits = compute_patterns(network, x)
    keep = np.sort(np.unique(bits.numpy(), axis=0, return_index=True)[1])[:count]
    x, logits, bits = x[keep], logits[keep], bits[keep]
    order = logits.argsort(1)
    return model, network, x, bits, order[:, -1], order[:, -2], Box.of(shape)


def _optimum(network, bits, k, box):
    """max over the closed region of f_j - f_k, every j, by HiGHS."""
    forms = compute_affine_forms(network, bits)
    limits = np.stack([box.low.flatten(), box.high.flatten()], 1)
    best = []
    for j in range(network.classes):
        objective = -(forms.F[j] - forms.F[k]).numpy()
        found = linprog(objective, A_ub=-forms.A.numpy(), b_ub=forms.c.numpy(), bounds=limits, method="highs")
        best.append(-found.fun + float(forms.g[j] - forms.g[k]))
    best[k] = -np.inf
    return best


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("solver", ["ascent", "highs"])
def test_bounds_lie_above_the_linear_programs_and_close_to_them(name, solver):
    _, network, _, bits, _, k, box = _case(name, 2)
    found = compute_bounds(network, bits, k, box, SolveOptions(solver=solver, claim="real"))
    for p in range(len(bits)):
        optimum = _optimum(network, bits[p], int(k[p]), box)
        others = np.arange(network.classes) != int(k[p])
        value = found.value[p].numpy()
        assert (value[others] >= np.asarray(optimum)[others] - 1e-9).all()
        loose = 2e-3 if solver == "highs" else 0.01 if name == "mlp" else 0.05
        assert value.max() <= max(optimum) + loose * abs(max(optimum))


@pytest.mark.parametrize(
    ("name", "correction"),
    [*((name, "constant") for name in NETWORKS), ("mlp-deep", "minimal"), ("residual", "li2025")],
)
def test_no_search_finds_a_counterexample(name, correction):
    model, network, x, bits, y, k, box = _case(name, 1)
    patches, _ = solve(network, bits, y, k, box, SolveOptions(correction=correction))
    patched = PatchedModel(model, network, patches)
    for p in range(len(x)):
        found = falsify(network, patched, x[p], int(k[p]), box, samples=600, chains=32)
        assert found.tried > 10
        assert found.worst >= 1e-3


@pytest.mark.parametrize("name", ["mlp", "mlp-deep", "cnn1d", "residual"])
def test_the_same_search_breaks_a_shift_one_percent_below_the_optimum(name):
    model, network, x, bits, y, k, box = _case(name, 2)
    patches, _ = solve(network, bits, y, k, box)
    optimum = np.asarray([max(_optimum(network, bits[p], int(k[p]), box)) for p in range(len(x))])
    weak = dataclasses.replace(patches, shift=(0.99 * optimum).astype(np.float32))
    patched = PatchedModel(model, network, weak)
    for p in range(len(x)):
        assert falsify(network, patched, x[p], int(k[p]), box, samples=200, chains=32).worst < 0


def _legacy_shift(network, bits, x, k, box):
    """The shift by the released code's region: gradients accumulate over neurons and over outputs."""
    forms = compute_affine_forms(network, bits)
    point = x.double().flatten()
    rows, values = forms.A.cumsum(0), forms.A @ point + forms.c
    offset = values - rows @ point
    outputs = forms.F.cumsum(0)
    g = (forms.F @ point + forms.g) - outputs @ point
    limits = np.stack([box.low.flatten(), box.high.flatten()], 1)
    best = -np.inf
    for j in range(network.classes):
        if j != k:
            objective = -(outputs[j] - outputs[k]).numpy()
            found = linprog(objective, A_ub=-rows.numpy(), b_ub=offset.numpy(), bounds=limits, method="highs")
            best = max(best, -found.fun + float(g[j] - g[k]))
    return best


def test_the_search_breaks_the_legacy_patch_of_accumulated_gradients():
    model, network, x, bits, y, k, box = _case("mlp", 6)
    patches, _ = solve(network, bits, y, k, box)
    shifts = [_legacy_shift(network, bits[p], x[p], int(k[p]), box) + 1e-3 for p in range(len(x))]
    legacy = PatchedModel(model, network, dataclasses.replace(patches, shift=np.float32(shifts)))
    with torch.no_grad():
        assert (legacy(x).argmax(1) == k).all(), "at the points themselves the legacy patch looks right"
    broken = [falsify(network, legacy, x[p], int(k[p]), box, samples=200).worst < 0 for p in range(len(x))]
    assert any(broken)


def test_the_sup_norm_minimal_affine_patch_is_half_the_constant_shift():
    """The full linear program over all affine patches (Farkas multipliers), against the closed form of `minimal`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    network, box, epsilon = trace(model, (3,)), Box.of((3,)), 1e-3
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    logits, bits = compute_patterns(network, x)
    y, k = logits.argmax(1), logits.argsort(1)[:, -2]
    settings = SolveOptions(correction="minimal", solver="highs", claim="real", epsilon=epsilon)
    patches, _ = solve(network, bits, y, k, box, settings)
    for p in range(3):
        assert (
            abs(_minimal_norm(compute_affine_forms(network, bits[p]), int(k[p]), epsilon) - patches.shift[p] / 2) < 1e-6
        )


def _minimal_norm(forms, k, epsilon):
    d, classes = forms.F.shape[1], forms.F.shape[0]
    G = np.vstack([-forms.A.numpy(), np.eye(d), -np.eye(d)])
    h = np.concatenate([forms.c.numpy(), np.ones(d), np.zeros(d)])
    m, start = len(h), classes * d + classes + 1
    blocks = 2 * classes + classes - 1
    size = start + blocks * m
    equal, equal_right, upper, upper_right = [], [], [], []

    def imply(block, slope, slope_right, constant, constant_right):
        """slope(c) u + ... <= 0 on {G u <= h}: G^T r = slope, h^T r <= -constant, r >= 0."""
        at = start + block * m
        for i in range(d):
            row = np.zeros(size)
            row[at : at + m] = G[:, i]
            row -= slope[i]
            equal.append(row)
            equal_right.append(slope_right[i])
        row = np.zeros(size)
        row[at : at + m] = h
        row += constant
        upper.append(row)
        upper_right.append(constant_right)

    def coefficient(i, sign):
        slope = np.zeros((d, size))
        slope[np.arange(d), i * d + np.arange(d)] = sign
        constant = np.zeros(size)
        constant[classes * d + i] = sign
        return slope, constant

    block = 0
    for i in range(classes):
        for sign in (1, -1):
            slope, constant = coefficient(i, sign)
            constant[start - 1] = -1
            imply(block, slope, np.zeros(d), constant, 0.0)
            block += 1
    for j in range(classes):
        if j != k:
            one, two = coefficient(j, 1), coefficient(k, -1)
            imply(
                block, one[0] + two[0], (forms.F[j] - forms.F[k]).numpy(), one[1] + two[1],
                -epsilon - float(forms.g[j] - forms.g[k]),
            )  # fmt: skip
            block += 1
    objective = np.zeros(size)
    objective[start - 1] = 1
    limits = [(None, None)] * start + [(0, None)] * (size - start)
    found = linprog(
        objective, A_ub=np.array(upper), b_ub=upper_right, A_eq=np.array(equal), b_eq=equal_right, bounds=limits
    )
    assert found.status == 0
    return found.fun


def test_li2025_scales_only_if_the_range_does_not_fit():
    _, network, _, bits, y, k, box = _case("mlp", 3)
    free, _ = solve(network, bits, y, k, box, SolveOptions(correction="li2025", floor=None))
    assert (free.alpha == 1).all()
    tight, _ = solve(network, bits, y, k, box, SolveOptions(correction="li2025", floor=-0.5))
    assert (tight.alpha < 1).any()
    assert (tight.beta[np.arange(3), k] == 0).all()


def test_invalid_requests_are_errors():
    _, network, _, bits, y, k, box = _case("mlp", 2)
    with pytest.raises(RequestError, match="own class"):
        solve(network, bits, y, y, box)
    with pytest.raises(ConfigError, match="unknown solver"):
        SolveOptions(solver="simplex")
    with pytest.raises(ConfigError, match="epsilon"):
        SolveOptions(epsilon=-1.0)
    with pytest.raises(ConfigError, match="floor"):
        solve(network, bits, y, k, box, SolveOptions(correction="li2025", floor=1.0))
    away = Box.of(network.input_shape, 1000.0, 1001.0)
    with pytest.raises(RequestError, match="no solution"):
        solve(network, bits, y, k, away, SolveOptions(solver="highs", claim="real"))


def test_no_points_give_no_patches():
    model, network, x, bits, y, k, box = _case("mlp", 2)
    patches, proof = solve(network, bits[:0], y[:0], k[:0], box)
    assert len(patches) == 0
    assert len(proof.count) == 0
    with torch.no_grad():
        assert torch.equal(PatchedModel(model, network, patches)(x), model(x))


def test_later_requests_join_and_duplicates_are_removed():
    _, network, _, bits, y, k, box = _case("mlp", 4)
    first, _ = solve(network, bits[:3], y[:3], k[:3], box)
    later, _ = solve(network, bits[2:], y[2:], k[2:], box)
    joined = first.join(later)
    assert len(joined) == 4
    assert len(set(joined.keys())) == 4
    twice = PatchSet(**{**first.__dict__, **{n: np.concatenate([getattr(first, n)] * 2) for n in (
        "pattern", "target", "label", "shift", "group", "alpha", "beta")}})  # fmt: skip
    assert len(twice.compact()) == 3
    other = dataclasses.replace(later, target=(later.target + 1) % network.classes)
    with pytest.raises(RequestError, match="already patched"):
        first.join(other)
