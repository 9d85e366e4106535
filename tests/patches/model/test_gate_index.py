from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_networks import build
from torch import nn

from expunge.patches.model import gate_index as near
from expunge.patches.model.gates import compute_unit_costs
from expunge.patches.model.patch_set import PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import compute_atom_values
from expunge.patches.network.regions import compute_patterns, pack
from expunge.patches.network.trace import trace

SLOPES = st.sampled_from([1e-3, 0.1, 0.5, 2.0, 8.0, 64.0, 1e4])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of three bits from the second pattern on, so that small networks use them."""
    for name, value in (("_NARROW", 3), ("_FEWEST", 2), ("_FEW", 1), ("_LOOKUP_COST", 0.01)):
        monkeypatch.setattr(near, name, value)


def patch_set(network, bits, correction="constant", seed=0, groups=None):
    """Patches with given patterns and random shifts."""
    draws = np.random.default_rng(seed)
    pattern = np.unique(pack(bits), axis=0)
    count, classes = len(pattern), network.classes
    group = np.arange(count) if groups is None else draws.integers(0, groups, count)
    target = group % classes
    shift = (1 + group % 7).astype(np.float32)
    wide = (count, classes if correction == "li2025" else 0)
    alpha, beta = (draws.random(wide).astype(np.float32) for _ in range(2))
    if correction == "li2025":
        alpha[np.arange(count), target], beta[np.arange(count), target] = 1, 0
    return PatchSet(
        correction, network.atoms, classes, pattern, target, (target + 1) % classes, shift, group, alpha, beta, "soft"
    )


def neighbours(bits, count, seed):
    """Patterns, and copies of them with a few bits of the other value."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(bits), (count,), generator=generator)
    flips = torch.rand(count, bits.shape[1], generator=generator) < 2 / bits.shape[1]
    return torch.cat([bits[: count // 4], bits[rows] ^ flips])


def tolerance(network, values, stored, slope):
    """1 - sum of costs, before it is cut off at 0, from float32 costs in float64: `B x P`."""
    on, off = (part.double() for part in compute_unit_costs(network, values, slope))
    return 1 - torch.cat([on, off], 1) @ torch.cat([stored, 1 - stored], 1).double().T


def rounding(network, values, slope, tolerances, patches):
    """What float32 may add to the outputs of the two forms together: `B x 1`.

    A gate is one minus a sum of n terms that sum to at most S, off by sqrt(n) u (S + 1) in either form but for a
    constant that is small with high probability (Higham and Mary 2019); what a patch adds is its gate times its reach
    or shift, and the patches whose gates are open add up.
    """
    on, off = compute_unit_costs(network, values, slope)
    gate = 8 * on.shape[1] ** 0.5 * 2.0**-24 * ((on + off).sum(1, keepdim=True) + 1)
    size = torch.as_tensor(patches.shift).abs() + torch.as_tensor(patches.reach).abs()
    return gate * (((tolerances > -gate) * size).sum(1, keepdim=True)).nan_to_num()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["mlp", "mlp-deep", "small-cnn", "odd", "residual"]), slope=SLOPES, seed=st.integers(0, 2**16),
    correction=st.sampled_from(["constant", "minimal", "li2025"]), groups=st.sampled_from([None, 3]), nan=st.booleans(),
)  # fmt: skip
def test_look_up_agrees_with_the_layout_matrix(name, slope, seed, correction, groups, nan):
    """Whatever the slope (none, some or all units sure), with pools, with groups, with inputs that are no numbers."""
    model, shape = build(name)
    network = trace(model, shape)
    x = torch.rand(24, *shape, generator=torch.Generator().manual_seed(seed))
    bits = neighbours(compute_patterns(network, x)[1], 40, seed)
    noise = torch.randn(72, *shape, generator=torch.Generator().manual_seed(seed))
    if correction == "li2025":  # its reach is that of the region's affine form: patterns of inputs only
        bits = compute_patterns(network, (x.repeat_interleave(3, 0) + 0.05 * noise).clamp(0, 1))[1]
    patched = PatchedModel(model, network, patch_set(network, bits, correction, seed, groups).with_gate("soft", slope))
    if nan:
        x[3] = torch.nan
    with torch.no_grad():
        found, wanted = patched(x), patched.with_layout("matrix")(x)
        values = compute_atom_values(network, x, network.tensors)[1]
        tolerances = tolerance(network, values, patched._get_patterns(), slope)
        most = tolerances.amax(1)
        bound = 1e-5 + rounding(network, values, slope, tolerances, patched.patches)
        assert ((found - wanted).abs() <= bound + 1e-5 * wanted.abs())[torch.isfinite(wanted)].all()
        assert torch.equal(torch.isfinite(found), torch.isfinite(wanted))
        sound, opened = torch.isfinite(wanted).all(1), patched.opens_gate(x)
        assert opened[sound & (most > 1e-5)].all()
        closed = sound & (most < -1e-5)
        assert not opened[closed].any()
        plain = PatchedModel(model, network, PatchSet.empty(correction, network.atoms, network.classes))
        assert torch.equal(found[closed], plain(x)[closed])


@settings(max_examples=40, deadline=None)
@given(slope=SLOPES, seed=st.integers(0, 2**16), pools=st.booleans())
def test_no_open_gate_is_missed_and_values_are_exact_at_the_ends(slope, seed, pools):
    model, shape = build("small-cnn" if pools else "mlp")
    network = trace(model, shape)
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
    bits = compute_patterns(network, x)[1]
    stored = neighbours(bits, 60, seed).unique(dim=0).float()
    on, off = compute_unit_costs(network, values, slope)
    true = tolerance(network, values, stored, slope)
    rows, patches, unresolved = near.find_open_pairs(near.make_blocks(network, stored), values, torch.tensor(slope))
    covered = torch.zeros(true.shape, dtype=torch.bool)
    covered[rows, patches] = True
    covered[unresolved] = True
    assert not ((true > 0) & ~covered).any()
    assert len(torch.stack([rows, patches], 1).unique(dim=0)) == len(rows), "a pair came twice"
    own = (bits[:, None] == stored[None].bool()).all(2)
    gates = near.compute_all_gates(on, off, stored)
    if gates is None:
        gates = torch.zeros(true.shape)
    assert torch.allclose(gates.double(), true.clamp(min=0), atol=1e-5)
    assert (gates[own] == 1).all()
    assert (gates[true < -1e-5] == 0).all()
    assert (near.compute_pair_gates(on, off, stored, *own.nonzero(as_tuple=True)) == 1).all()


def test_a_look_up_finds_few_pairs_of_many_patches():
    """64 of 20,000 patterns are neighbours of the inputs: they are found, with hardly any other pair."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 4)).eval()
    network = trace(model, (16,))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    own = compute_patterns(network, x)[1]
    own[torch.arange(64), compute_atom_values(network, x, network.tensors)[1].abs().argmin(1)] ^= True
    others = torch.rand(20_000, 96, generator=torch.Generator().manual_seed(1)) < 0.5
    patches = patch_set(network, torch.cat([own, others])).with_gate("soft", 30.0)
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
        rows, _, unresolved = near.find_open_pairs(patched._get_blocks(), values, torch.tensor(30.0))
        opened = patched.compute_gates(x) > 0
        assert int(opened.sum()) > 30
        assert len(unresolved) == 0
        assert len(rows) < 300
        assert torch.allclose(patched(x), patched.with_layout("matrix")(x), atol=1e-4)
        weaker = dataclasses.replace(patches, pattern=patches.pattern ^ np.uint8(255))
        assert not PatchedModel(model, network, weaker).opens_gate(x).any()


@pytest.mark.parametrize("slope", [1.0, 30.0])
def test_gradients_pass_through_look_ups(slope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 4)).eval()
    network = trace(model, (16,))
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = compute_atom_values(network, x.detach(), network.tensors)[1]
    nearest = values.abs().argmin(1)
    own = compute_patterns(network, x.detach())[1]
    own[torch.arange(32), nearest] ^= True  # across the nearest face: gates that are neither 0 nor 1
    others = torch.rand(3000, 96, generator=torch.Generator().manual_seed(1)) < 0.5
    patched = PatchedModel(model, network, patch_set(network, torch.cat([own, others])).with_gate("soft", slope))
    found, wanted = (
        torch.autograd.grad(model(x).square().sum(), x)[0] for model in (patched, patched.with_layout("matrix"))
    )
    assert torch.allclose(found, wanted, atol=1e-3, rtol=1e-5)
    plain = torch.autograd.grad(model(x).square().sum(), x)[0]
    assert not torch.allclose(found, plain, atol=1e-2)


def test_networks_without_relu_bits_take_the_product():
    network = trace(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)).eval(), (1, 4, 4))
    assert near.make_blocks(network, torch.zeros(5, network.atoms)) is None
