from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_networks import build
from torch import nn

from expunge.core.errors import ConfigError
from expunge.patches.network import regions
from expunge.patches.network.execute import Region, cast, compute_atom_values, split_bits
from expunge.patches.network.regions import (
    Box,
    _columns,
    _rows,
    compute_affine_forms,
    compute_margin_norms,
    compute_patterns,
    matches_pattern,
    measure_region,
    measure_regions,
    pack,
    unpack,
)
from expunge.patches.network.rounding import bound_execution_error
from expunge.patches.network.trace import trace


def _draw(shape, count, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_affine_forms_reproduce_the_network_on_its_region(any_network):
    model, shape = any_network
    network = trace(model, shape)
    x = _draw(shape, 1)
    _, bits = compute_patterns(network, x)
    forms = compute_affine_forms(network, bits[0])
    near = x.double() + 1e-4 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(1)).double()
    tensors = cast(network.tensors, torch.float64)
    logits, values = compute_atom_values(network, near, tensors)
    inside = (split_bits(network, values) == bits).all(1)
    assert inside.any()
    flat = near.flatten(1)
    assert torch.allclose(logits[inside], (flat @ forms.F.T + forms.g)[inside], atol=1e-10)
    margins = flat @ forms.A.T + forms.c
    assert (margins[inside] >= -1e-12).all()
    assert ((margins >= 1e-9).all(1) <= inside).all()


def test_forward_and_reverse_passes_give_the_same_forms(any_network):
    model, shape = any_network
    network = trace(model, shape)
    bits = compute_patterns(network, _draw(shape, 1))[1][0]
    forms = compute_affine_forms(network, bits)
    ahead, back = torch.cat(list(_columns(network, bits, block=5))).T, torch.cat(list(_rows(network, bits, block=7)))
    assert torch.allclose(ahead, back, atol=1e-12)
    assert torch.allclose(torch.cat([forms.F, forms.A]), back, atol=1e-12)
    assert torch.allclose(compute_margin_norms(network, bits), forms.A.norm(dim=1), atol=1e-12)


def test_affine_forms_are_the_finite_differences(any_network):
    model, shape = any_network
    network = trace(model, shape)
    x = _draw(shape, 1)
    forms = compute_affine_forms(network, compute_patterns(network, x)[1][0])
    double = model.double()
    step, start = 1e-7, x.double()
    with torch.no_grad():
        base = double(start)[0]
        for i in range(0, network.inputs, 7):
            moved = start.clone()
            moved.view(-1)[i] += step
            difference = (double(moved)[0] - base) / step
            assert torch.allclose(difference, forms.F[:, i], atol=1e-5)
    model.float()


def test_every_input_obeys_exactly_its_own_region(any_network):
    """Brute force: an input lies in the open region of a pattern exactly where the network's bits equal it."""
    model, shape = any_network
    network = trace(model, shape)
    x = _draw(shape, 40).double()
    tensors = cast(network.tensors, torch.float64)
    bits = split_bits(network, compute_atom_values(network, x, tensors)[1])
    for row in range(8):
        _, margins = Region(network, bits[row].expand(len(x), -1), tensors)(x)
        same = (bits == bits[row]).all(1)
        assert torch.equal((margins >= 0).all(1) | same, same | (margins.min(1).values == 0))
        assert (margins[same] >= 0).all()


def test_ties_in_a_max_pool_go_to_the_first_place():
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(2, 2))
    network = trace(model, (4,))
    x = torch.tensor([[1.0, 1.0, 0.0, 2.0], [3.0, 1.0, -1.0, -1.0]])
    bits = compute_patterns(network, x)[1]
    assert bits.int().tolist() == [[1, 0, 0, 1], [1, 0, 1, 0]]


def test_executed_numbers_stay_within_their_error_bound(any_network):
    model, shape = any_network
    network = trace(model, shape)
    x = _draw(shape, 64)
    logits, bits = compute_patterns(network, x)
    box = Box.of(shape)
    error = bound_execution_error(network, bits, box.low, box.high)
    with torch.no_grad():
        exact, margins = Region(network, bits, cast(network.tensors, torch.float64))(x.double())
    assert ((exact - logits.double()).abs() <= error.logits).all()
    assert (margins >= -error.margins).all()
    assert (exact.abs() <= error.logit_size + 1e-9).all()
    assert (margins.abs() <= error.margin_size + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_packed_bits_come_back(length, count, seed):
    bits = torch.from_numpy(np.random.default_rng(seed).random((count, length)) < 0.5)
    packed = pack(bits)
    assert packed.shape == (count, (length + 7) // 8)
    assert torch.equal(unpack(packed, length), bits)


def test_radius_is_the_distance_to_the_nearest_face():
    model, shape = build("mlp")
    network = trace(model, shape)
    x = _draw(shape, 1)[0]
    bits = compute_patterns(network, x[None])[1][0]
    size = measure_region(network, x, Box.of(shape), reach=1e-3)
    forms = compute_affine_forms(network, bits)
    margins = forms.A @ x.double() + forms.c
    nearest = (margins / forms.A.norm(dim=1)).argmin()
    direction = -forms.A[nearest] / forms.A[nearest].norm()
    for factor, inside in ((0.999, True), (1.001, False)):
        moved = x.double() + factor * size.radius * direction
        values = compute_atom_values(network, moved[None], cast(network.tensors, torch.float64))[1]
        assert bool((split_bits(network, values)[0] == bits).all()) is inside
    assert 0 <= size.flips <= 1
    assert 0 <= size.nearby <= 1


def test_radii_are_computed_within_a_work_limit(monkeypatch):
    model, shape = build("mlp")
    network = trace(model, shape)
    monkeypatch.setattr(regions, "_RADIUS_WORK", 2 * network.inputs * network.atoms)
    points = _draw(shape, 4)
    sizes = measure_regions(network, points, Box.of(shape))
    assert [size.radius is None for size in sizes] == [False, False, True, True]
    assert sizes[1] == measure_region(network, points[1], Box.of(shape))


def test_a_region_of_one_point_is_reported():
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model[0].weight.mul_(100)
        x = torch.full((3,), 0.5)
        model[0].bias.copy_(-(model[0].weight @ x) + 1e-3)
    network = trace(model, (3,))
    assert measure_region(network, x, Box.of((3,)), reach=0.1).point_only
    assert matches_pattern(network, x[None], compute_patterns(network, x[None])[1][0]).all()


def test_an_impossible_box_is_refused():
    with pytest.raises(ConfigError, match="lower bound above"):
        Box.of((2,), 1.0, 0.0)
    with pytest.raises(ConfigError, match="finite"):
        Box.of((2,), 0.0, float("inf"))
