from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from patch_networks import build
from torch import nn

from expunge.core.errors import ModelError
from expunge.patches.bounds.solve import SolveOptions, soften, solve
from expunge.patches.model.gates import (
    choose_local_slope,
    compute_hash_keys,
    compute_soft_gates,
    compute_word_keys,
    draw_hash_vector,
    draw_word_factors,
    find_candidates,
    look_up,
)
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import cast, compute_atom_values, split_bits
from expunge.patches.network.regions import Box, compute_affine_forms, compute_patterns, pack
from expunge.patches.network.trace import trace


@pytest.fixture(scope="module")
def case():
    """Twelve patched points of a small MLP, and 200 other inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    network = trace(model, (8,))
    x = torch.rand(400, 8, generator=torch.Generator().manual_seed(0))
    logits, bits = compute_patterns(network, x)
    rows = np.unique(bits.numpy(), axis=0, return_index=True)[1][:12]
    order = logits[rows].argsort(1)
    patches, _ = solve(network, bits[rows], order[:, -1], order[:, -2], Box.of((8,)))
    return model, network, x, rows, patches


def test_closed_gates_leave_every_bit_and_open_ones_flip(case):
    model, network, x, rows, patches = case
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        before, after = model(x), patched(x)
    opened = patched.compute_gates(x).amax(1) > 0
    assert opened[rows].all()
    assert torch.equal(before[~opened], after[~opened])
    assert (after.argmax(1) != before.argmax(1))[rows].all()


@pytest.mark.parametrize("correction", ["constant", "minimal", "li2025"])
def test_look_up_and_the_layout_matrix_agree(case, correction):
    model, network, x, rows, _ = case
    logits, bits = compute_patterns(network, x[rows])
    order = logits.argsort(1)
    patches, _ = solve(
        network, bits, order[:, -1], order[:, -2], Box.of((8,)), SolveOptions(correction=correction, floor=-0.2)
    )
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        assert torch.allclose(patched(x), patched.with_layout("matrix")(x), atol=1e-6)


def test_order_of_patches_does_not_matter(case):
    model, network, x, _, patches = case
    shuffled = patches.take(np.random.default_rng(0).permutation(len(patches)))
    with torch.no_grad():
        assert torch.equal(PatchedModel(model, network, patches)(x), PatchedModel(model, network, shuffled)(x))
        one_by_one = patches.take(np.arange(5)).join(patches.take(np.arange(5, 12)))
        assert torch.equal(PatchedModel(model, network, patches)(x), PatchedModel(model, network, one_by_one)(x))


def test_the_soft_gate_is_the_support_network_of_li2025(case):
    """relu(sum_j clip(n (b_j - a_j u) + 1, 0, 1) - L + 1) with the region's rows, on 1e5 points of a one-layer net."""
    _, network, x, rows, _ = case
    forms = compute_affine_forms(network, compute_patterns(network, x[rows[:1]])[1][0])
    points = torch.rand(100_000, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stored = compute_patterns(network, x[rows[:1]])[1].double()
    with torch.no_grad():
        values = compute_atom_values(network, points, cast(network.tensors, torch.float64))[1]
    for slope in (0.1, 1.0, 10.0):
        y = forms.A @ points.T + forms.c[:, None]
        clipped = torch.relu(slope * y + 1) - torch.relu(slope * y)
        paper = torch.relu(clipped.sum(0) - len(forms.c) + 1)
        assert torch.allclose(compute_soft_gates(network, values, stored, slope)[:, 0], paper, atol=1e-9)
        assert 0 < float(paper.mean()) < 1


def test_soft_gate_is_exactly_one_on_its_region_and_closes_with_the_slope(any_network):
    model, shape = any_network
    network = trace(model, shape)
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
    bits = compute_patterns(network, x)[1]
    gates = [compute_soft_gates(network, values, bits[:1].float(), n)[:, 0] for n in (0.01, 1.0, 1e6)]
    assert all(float(g[0]) == 1.0 for g in gates)
    assert (gates[0] >= gates[1]).all()
    assert (gates[1] >= gates[2]).all()
    same = (bits == bits[0]).all(1)
    assert (gates[2][~same] < 1).all()


def test_the_chosen_slope_keeps_every_other_record_closed(case):
    _, network, x, rows, _ = case
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
    bits = compute_patterns(network, x)[1]
    stored = bits[rows].float()
    slope = choose_local_slope(network, values.split(150), stored)
    others = ~(bits[:, None] == bits[rows][None]).all(2).any(1)
    assert others.any()
    assert float(compute_soft_gates(network, values[others], stored, slope).max()) == 0
    assert float(compute_soft_gates(network, values[others], stored, slope / 2).max()) > 0


def test_hash_collisions_are_confirmed_on_all_bits():
    """A wrong entry with the right key is not a match."""
    bits = torch.rand(4, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    vector, keys, order = compute_hash_keys(bits)
    packed = torch.from_numpy(pack(bits[order]))
    assert torch.equal(look_up(bits, vector, keys, packed), torch.argsort(order))
    packed[2, 0] ^= 1
    found = look_up(bits[order], vector, keys, packed)
    assert found.tolist() == [0, 1, -1, 3]
    with pytest.raises(ValueError, match="same pattern"):
        compute_hash_keys(bits[[0, 0]])
    assert int(draw_hash_vector(100_000, 0).sum()) < 2**53


@pytest.mark.parametrize("atoms", [0, 1, 7, 8, 13, 64])
def test_quick_keys_miss_nothing_and_have_few_false_matches(atoms):
    """Candidates are all rows with a stored pattern, also where bits do not fill whole words; others hardly ever."""
    bits = torch.rand(300, atoms, generator=torch.Generator().manual_seed(atoms)) < 0.5
    factors = draw_word_factors(atoms)
    keys = torch.cat([compute_word_keys(bits[:40], factors), torch.tensor([2**63 - 1])]).sort().values
    true = (bits[:, None] == bits[None, :40]).all(2).any(1)
    assert torch.equal(find_candidates(bits, factors, keys), true.nonzero()[:, 0])
    if atoms:
        assert len(compute_word_keys(bits, factors).unique()) == len(bits.unique(dim=0))


def test_bits_are_those_of_a_plain_comparison():
    z = torch.tensor([[-1.0, -0.0, 0.0, 1e-45, float("nan"), float("inf"), -float("inf"), 2.0]], requires_grad=True)
    network = trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), (8,))
    assert torch.equal(split_bits(network, z), z > 0)


def test_state_dict_deepcopy_and_safetensors(case, tmp_path):
    from expunge.core.files import read_tensors, write_tensors

    model, network, x, _, patches = case
    patched = PatchedModel(model, network, patches)
    with torch.no_grad():
        wanted = patched(x)
        copied = copy.deepcopy(patched)
        assert torch.equal(copied(x), wanted)
        copied.module[0].weight.zero_()
        assert torch.equal(patched(x), wanted)
        write_tensors(tmp_path / "p.safetensors", patched.state_dict())
        blank = PatchedModel(model, network, patches.take(np.random.default_rng(1).permutation(12)))
        blank.patches.shift.zero_()
        blank.patches.change.zero_()
        blank.load_state_dict(read_tensors(tmp_path / "p.safetensors")[0])
        assert torch.equal(blank(x), wanted)
    assert patched.patch_set().hash == blank.patch_set().hash
    assert patched.double().module[0].weight.dtype == torch.float64


def test_torch_export(case):
    model, network, x, _, patches = case
    for some in (patches, soften(patches, 2.0, logit_size=10.0)):
        patched = PatchedModel(model, network, some, layout="matrix")
        exported = torch.export.export(patched, (x[:7],), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        with torch.no_grad():
            assert torch.allclose(exported.module()(x), patched(x), atol=1e-6)


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)
@pytest.mark.parametrize("name", ["mlp", "small-cnn", "odd"])
def test_onnx_answers_alike_away_from_faces(name, tmp_path):
    import onnxruntime

    model, shape = build(name)
    network = trace(model, shape)
    x = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))
    logits, bits = compute_patterns(network, x)
    rows = np.unique(bits.numpy(), axis=0, return_index=True)[1][:3]
    order = logits[rows].argsort(1)
    patches, _ = solve(network, bits[rows], order[:, -1], order[:, -2], Box.of(shape))
    patched = PatchedModel(model, network, patches, layout="matrix")
    torch.onnx.export(patched, (x[:2],), tmp_path / "p.onnx", dynamo=True, dynamic_shapes={"x": {0: "batch"}})
    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        values = compute_atom_values(network, x, network.tensors)[1]
        clear = values.abs().amin(1) > 1e-5 if name == "mlp" else torch.ones(60, dtype=torch.bool)
        assert np.allclose(found[clear.numpy()], patched(x)[clear].numpy(), atol=1e-5)


def test_patches_of_another_network_are_refused(case):
    _, _, _, _, patches = case
    other = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
    with pytest.raises(ModelError, match="another network"):
        PatchedModel(other, trace(other, (8,)), patches)
