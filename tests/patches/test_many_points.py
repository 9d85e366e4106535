"""Growth, later requests, compaction, targets and locality of many patches; what the method does with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from measured import measure, names_with

from expunge.core.errors import MethodError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.trained import clone_model
from expunge.methods import Context, get_method
from expunge.models.saved_model import load_trained, save_trained
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.forget_points import PointSelection, forget_points, join_requests
from expunge.patches.model.compaction import select_needed_patches
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.execute import compute_atom_values
from expunge.patches.trained_state import from_state

WIDE = PointSelection(mode="representatives", gate="soft", slope=0.5, clusters=2)


def score_patches(trained, request, records, **given):
    found = measure(names_with("patches"), trained=trained, request=request, records=records, **given)
    return {name: score.value for name, score in found.items()}


def predict(model, network, patches, x):
    with torch.no_grad():
        return PatchedModel(model, network, patches)(x).argmax(1)


def test_representatives_grow_until_the_fraction_or_the_budget(blobs):
    model, network, x, y, box = blobs
    narrow = dataclasses.replace(WIDE, gate="exact", slope=0.0, rounds=40)
    every = forget_points(model, network, x, y, box, narrow)
    tenth = forget_points(model, network, x, y, box, dataclasses.replace(narrow, fraction=0.1, clusters=8))
    few = forget_points(model, network, x, y, box, dataclasses.replace(narrow, budget=3))
    fraction = [float((predict(model, network, f.patches, x) != y).float().mean()) for f in (every, tenth, few)]
    assert fraction[0] > 0.95
    assert fraction[1] >= 0.1
    assert len(tenth.patches) < len(every.patches)
    assert len(few.patches) == 3
    assert fraction[2] < fraction[0]


def test_a_cluster_is_never_sent_to_the_class_of_its_member(blobs):
    model, network, x, y, box = blobs
    found = forget_points(model, network, x, y, box, dataclasses.replace(WIDE, clusters=4, rounds=3))
    assert (found.patches.target != found.patches.label).all()


@pytest.mark.parametrize("plan", [dataclasses.replace(WIDE, slope=64.0), PointSelection()])
def test_later_requests_leave_earlier_points_forgotten(blobs, plan):
    model, network, x, y, box = blobs
    first = forget_points(model, network, x[y == 0], y[y == 0], box, plan)
    later = forget_points(model, network, x[y == 1], y[y == 1], box, plan, earlier=first.patches)
    assert not set(first.patches.keys()) & set(later.patches.keys())
    assert len(later.patches) == len(later.proof.count)
    both = join_requests(first.patches, later.patches, network, box) if len(later.patches) else first.patches
    assert (predict(model, network, both, x[y == 0]) != 0).float().mean() > 0.9
    soft = plan.gate == "exact"
    other = dataclasses.replace(plan, gate="soft" if soft else "exact", slope=1.0 if soft else 0.0)
    with pytest.raises(RequestError, match="earlier requests have gate"):
        forget_points(model, network, x[y == 1], y[y == 1], box, other, earlier=first.patches)


def test_compaction_keeps_what_is_forgotten(blobs):
    model, network, x, y, box = blobs
    members, labels = x[y == 2], y[y == 2]
    soft = forget_points(model, network, members, labels, box, dataclasses.replace(WIDE, slope=0.1, rounds=2)).patches
    rows = select_needed_patches(model, network, soft, members, labels)
    assert 0 < len(rows) < len(soft)
    before, after = (predict(model, network, p, members) != 2 for p in (soft, soft.take(rows)))
    assert torch.equal(before | after, after)
    exact = forget_points(model, network, members, labels, box).patches
    some = select_needed_patches(model, network, exact, members[:4], labels[:4])
    assert len(some) <= 4
    assert torch.equal(*(predict(model, network, p, members[:4]) for p in (exact, exact.take(some))))


def test_locality_is_a_fraction_of_retained_records(blobs):
    model, network, x, y, box = blobs
    retain = (x[60:], y[60:])
    slopes = []
    for fraction in (0.0, 0.05, 0.5):
        plan = PointSelection(gate="soft", locality=fraction)
        patches = forget_points(model, network, x[:10], y[:10], box, plan, retain=retain).patches
        patched = PatchedModel(model, network, patches)
        with torch.no_grad():
            values = compute_atom_values(network, x[60:], network.tensors)[1]
        assert torch.equal(patched.opens_gate(x[60:]), patched.gates_from_values(values).amax(1) > 0)
        stored = {row.tobytes() for row in patches.pattern}
        same = sum(np.packbits(row, bitorder="little").tobytes() in stored for row in (values > 0).numpy())
        assert int(patched.opens_gate(x[60:]).sum()) <= fraction * 180 + same
        slopes.append(patches.slope)
    assert slopes == sorted(slopes, reverse=True)
    assert slopes[0] > slopes[2]


def test_the_method_uses_the_predictions_of_a_retrained_model(mlp, digits, cpu, tmp_path):
    """Given or trained for it; a model that saw the records is refused; what it costs is counted."""
    request, context = ForgetRequest(mlp.split.retain[:8]), Context(digits, cpu)
    retrain = get_method("Retrain").forget(mlp, request, context)
    save_trained(retrain.trained, tmp_path / "retrained")
    given = get_method("patch", target="retrained", retrained=str(tmp_path / "retrained")).forget(mlp, request, context)
    own = get_method("patch", target="retrained").forget(mlp, request, context)
    assert given.trained.hash == own.trained.hash
    assert own.cost.passes > retrain.cost.passes > given.cost.passes
    rows = digits.rows(request.record_ids)
    x, y = torch.from_numpy(digits.features[rows]).float() / 255, torch.from_numpy(digits.labels[rows])
    with torch.no_grad():
        wanted, found, base = (m(x).argmax(1) for m in (retrain.trained.model, given.trained.model, mlp.model))
    free = (wanted != y) & (base == y)
    assert torch.equal(found[free], wanted[free])
    save_trained(mlp, tmp_path / "original")
    with pytest.raises(MethodError, match="to be forgotten"):
        get_method("patch", target="retrained", retrained=str(tmp_path / "original")).forget(mlp, request, context)
    with pytest.raises(MethodError, match="unknown target"):
        get_method("patch", target="nearest")
    with pytest.raises(MethodError, match="only target=retrained"):
        get_method("patch", retrained="somewhere")


@pytest.mark.parametrize("kind", ["mlp", "sparse"])
def test_scores_after_a_second_request_and_a_reload(kind, request, digits, cpu, tmp_path):
    """On a dense and on a sparse model: everything known is forgotten and certified, through files and two requests."""
    trained = request.getfixturevalue(kind)
    context, method = Context(digits, cpu), get_method("patch", compact=True, effort=1)
    first = method.forget(trained, ForgetRequest(trained.split.retain[:6]), context)
    second = method.forget(first.trained, ForgetRequest(first.trained.split.retain[:6]), context)
    save_trained(second.trained, tmp_path / "saved")
    loaded = load_trained(tmp_path / "saved")
    everyone = ForgetRequest(np.concatenate([first.request.record_ids, second.request.record_ids]))
    scores = score_patches(loaded, everyone, digits, cost=second.cost)
    assert scores["Forgotten"] == 100
    assert scores["Certified"] == 100
    assert scores["Patch bytes"] <= 64 + loaded.model.network.atoms / 8 + 1
    assert 0 <= scores["Gates test"] <= 100
    patches, proof, box = from_state(loaded.model, loaded.state["patches"])
    spare = verify_patches(loaded.model.current_network(), patches, proof, box, claim="float32", epsilon=1e-3)
    assert (spare >= 0).all()
    weak = dataclasses.replace(patches, shift=patches.shift * np.float32(0.9))
    model = PatchedModel(clone_model(loaded.model.module), loaded.model.current_network(), weak)
    broken = dataclasses.replace(
        loaded,
        model=model,
        state={**loaded.state, "patches": {**loaded.state["patches"], "shift": torch.from_numpy(weak.shift)}},
    )
    found = score_patches(broken, everyone, digits)
    assert found["Certified"] == 0, "a patch that is too weak is not certified, whatever it predicts at the point"
    assert score_patches(trained, ForgetRequest(trained.split.retain[:6]), digits) == {}
