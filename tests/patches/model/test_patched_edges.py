"""A patched model where it is copied, cast, exported or pruned as any module may be; options that cannot work."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from patch_networks import build
from torch import nn
from torch.nn.utils import prune as torch_prune

from expunge.core.errors import ConfigError, ExpungeError, MethodError, ModelError, RequestError
from expunge.methods import get_method
from expunge.patches.bounds.solve import SolveOptions, soften, solve
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.forget_points import PointSelection
from expunge.patches.model.patch_set import LARGEST_SLOPE, PatchSet
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.operations import Network
from expunge.patches.network.regions import Box, compute_patterns
from expunge.patches.network.trace import trace


@pytest.fixture(params=["exact", "soft"])
def patched(request):
    """A patched small network and 30 inputs, of which the first 6 are patched."""
    model, shape = build("mlp")
    network = trace(model, shape)
    x = torch.rand(30, *shape, generator=torch.Generator().manual_seed(0))
    logits, bits = compute_patterns(network, x)
    order = logits.argsort(1)
    rows = [i for i in range(30) if not any(torch.equal(bits[i], bits[j]) for j in range(i))][:6]
    patches, _ = solve(network, bits[rows], order[rows, -1], order[rows, -2], Box.of(shape))
    patches = patches if request.param == "exact" else soften(patches, 30.0, logit_size=10.0)
    return PatchedModel(model, network, patches), x, rows


def test_made_or_copied_under_inference_mode(patched):
    model, x, _ = patched
    with torch.no_grad():
        wanted = model(x)
    with torch.inference_mode():
        copied = copy.deepcopy(model)
        again = PatchedModel(model.module, model.network, model.patch_set())
        assert torch.equal(model(x), wanted)
    for other in (copied, again):
        with torch.no_grad():
            assert torch.equal(other(x), wanted)
            assert torch.equal(other.opens_gate(x), model.opens_gate(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_than_float32_are_refused(patched, dtype):
    model, x, _ = patched
    with (
        torch.no_grad(),
        pytest.raises(ModelError, match=f"runs in float32, not in {dtype}".replace("torch.", "")),
    ):
        copy.deepcopy(model).to(dtype)(x.to(dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.raises(ModelError, match="float32"):
        model(x)


def test_export_of_look_ups_names_the_other_layout(patched):
    model, x, _ = patched
    with pytest.raises(Exception, match="with_layout"):
        torch.export.export(model, (x,))


def test_a_reparametrised_base_is_an_error(patched):
    model, x, _ = patched
    layer = next(module for module in model.module.modules() if hasattr(module, "weight"))
    torch_prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(ModelError, match=r"no longer has hidden\.0\.weight"):
        model(x)
    torch_prune.remove(layer, "weight")
    with torch.no_grad():
        assert model(x).isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gate": "Exact"}, "unknown gate 'Exact'"),
        ({"representatives": "nonsense"}, "unknown representatives"),
        ({"target": "best"}, "unknown target"),
        ({"correction": "least"}, "unknown correction"),
        ({"slope": 2.0}, "slope has no effect with exact gates"),
        ({"locality": 0.1}, "locality has no effect with exact gates"),
        ({"gate": "soft", "slope": 1.0, "locality": 0.1}, "locality has no effect with a given slope"),
        ({"gate": "soft", "slope": float("inf")}, "a slope is at most"),
        ({"gate": "soft", "slope": float("nan")}, "a slope is at most"),
        ({"representatives": "k-means"}, "representatives has no effect with mode `points`"),
        ({"rounds": 3}, "rounds has no effect"),
        ({"solver": "highs", "effort": 2}, "effort has no effect"),
    ],
)
def test_options_that_cannot_work_or_do_nothing_are_refused(options, said):
    with pytest.raises(ExpungeError, match=said) as caught:
        get_method("patch", **options)
    assert isinstance(caught.value, (ConfigError, MethodError))


def test_options_that_work_are_taken():
    PointSelection(gate="soft", slope=LARGEST_SLOPE)
    PointSelection(mode="representatives", gate="soft", representatives="k-means", clusters=3, rounds=1, locality=0.2)
    SolveOptions(correction="li2025", solver="highs")
    with pytest.raises(ConfigError, match="slope of a soft gate"):
        PatchSet.empty("constant", 8, 3, gate="soft", slope=1e30)


def test_a_change_that_is_not_finite_in_float32_is_an_error():
    model, shape = build("mlp")
    network = trace(model, shape)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    logits, bits = compute_patterns(network, x)
    order = logits.argsort(1)
    with pytest.raises(RequestError, match="not finite in float32"):
        solve(network, bits, order[:, -1], order[:, -2], Box.of(shape), SolveOptions(epsilon=1e39))


def test_a_patch_towards_the_points_own_class_is_never_certified():
    model, shape = build("mlp")
    network = trace(model, shape)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    logits, bits = compute_patterns(network, x)
    order, box = logits.argsort(1), Box.of(shape)
    patches, proof = solve(network, bits, order[:, -1], order[:, -2], box)
    spare = verify_patches(network, patches, proof, box, claim="float32", epsilon=1e-3)
    assert (spare >= 0).all()
    same = dataclasses.replace(patches, label=patches.target)
    assert (verify_patches(network, same, proof, box, claim="float32", epsilon=1e-3) == -np.inf).all()


@pytest.mark.parametrize("name", ["change", "first", "slope", "shift", "forward", "a_b"])
def test_constants_of_a_network_do_not_replace_buffers_of_the_patches(patched, name):
    """A network without a module of its own keeps its tensors beside those of the patches, whatever they are called."""
    model, x, _ = patched
    old, dotted = model.network, {"a_b": "a.b"}.get(name, f"{name}.b")
    chosen = sorted(old.tensors)[:2]
    renamed = dict(zip(chosen, (name, dotted), strict=True))
    operations = []
    for operation in old.operations:
        names = {role: renamed.get(tensor, tensor) for role, tensor in operation.tensors.items()}
        operations.append(dataclasses.replace(operation, tensors=names))
    tensors = {renamed.get(t, t): value for t, value in old.tensors.items()}
    network = Network(tuple(operations), tensors, old.input_shape, old.classes)
    patches = model.patch_set()
    alone, plain = (PatchedModel(nn.Identity(), one, patches) for one in (network, old))
    assert torch.equal(alone(x), plain(x))
    assert alone.patch_set().hash == patches.hash


@pytest.mark.parametrize("effort", [0, 1, 6])
def test_the_effort_is_the_number_of_refinements(effort):
    assert get_method("patch", effort=effort).make_selection().solve.ascent.rounds == effort
