from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, RequestError
from expunge.core.request import ForgetRequest
from expunge.methods import Context, get_method
from expunge.models.saved_model import load_trained, save_trained
from expunge.patches.bounds.verify import verify_patches
from expunge.patches.forget_points import PointSelection, forget_points
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import compute_patterns
from expunge.patches.targets import choose_representatives, choose_targets
from expunge.patches.trained_state import certify


def test_every_point_that_can_be_is_forgotten(blobs):
    model, network, x, y, box = blobs
    found = forget_points(model, network, x[:60], y[:60], box, retain=(x[60:], y[60:]))
    with torch.no_grad():
        answers = PatchedModel(model, network, found.patches)(x[:60]).argmax(1)
    done = np.isin(found.status, ["patched", "shared"])
    assert done.sum() > 50
    assert (answers.numpy()[done] != y[:60].numpy()[done]).all()
    bits = compute_patterns(network, x)[1]
    stored = {row.tobytes() for row in found.patches.pattern}
    assert len(stored) == len(found.patches)
    sharing = [i for i in range(60, 240) if np.packbits(bits[i].numpy(), bitorder="little").tobytes() in stored]
    assert sorted(found.shared_retained + 60) == sharing


def test_status_of_duplicates_wrong_points_and_points_outside(blobs):
    model, network, x, y, box = blobs
    points = torch.cat([x[:2], x[:1], x[2:3], x[3:4] + 2])
    labels = torch.cat([y[:2], y[:1], (y[2:3] + 1) % 3, y[3:4]])
    found = forget_points(model, network, points, labels, box)
    assert found.status.tolist()[2:] == ["shared", "already wrong", "outside the box"]
    assert found.patch_of[2] == found.patch_of[0]
    with pytest.raises(RequestError, match="no point lies"):
        forget_points(model, network, x[:2] + 5, y[:2], box)


def test_fraction_and_budget_stop_the_growth(blobs):
    model, network, x, y, box = blobs
    half = forget_points(model, network, x[:40], y[:40], box, PointSelection(fraction=0.5))
    assert half.counts()["left"] == pytest.approx(20, abs=3)
    assert len(forget_points(model, network, x[:40], y[:40], box, PointSelection(budget=3)).patches) == 3


def test_later_requests_do_not_patch_a_pattern_again(blobs):
    model, network, x, y, box = blobs
    first = forget_points(model, network, x[:30], y[:30], box)
    later = forget_points(model, network, x[20:50], y[20:50], box, earlier=first.patches)
    assert not set(first.patches.keys()) & set(later.patches.keys())
    both = first.patches.join(later.patches)
    with torch.no_grad():
        answers = PatchedModel(model, network, both)(x[:50]).argmax(1)
    right = compute_patterns(network, x[:50])[0].argmax(1) == y[:50]
    assert (answers != y[:50])[right].all()


@pytest.mark.parametrize("kind", ["k-means", "k-medoids"])
def test_representatives_forget_a_class_with_few_proofs(blobs, kind):
    model, network, x, y, box = blobs
    members = x[y == 0]
    plan = PointSelection(mode="representatives", gate="soft", slope=0.5, representatives=kind, clusters=2)
    found = forget_points(model, network, members, y[y == 0], box, plan)
    with torch.no_grad():
        answers = PatchedModel(model, network, found.patches)(members).argmax(1)
    assert (answers != 0).float().mean() > 0.95
    assert (found.patches.target != found.patches.label).all()
    assert len(np.unique(found.patches.group)) < len(found.patches)
    smaller = found.patches.compact(
        lambda some: len(some) > 0 and bool((PatchedModel(model, network, some)(members).argmax(1) != 0).all())
    )
    assert 0 < len(smaller) <= len(found.patches)


def test_targets_follow_their_rule_and_are_never_the_label(blobs):
    _, network, x, y, _ = blobs
    logits = compute_patterns(network, x)[0]
    for kind in ("runner-up", "random"):
        chosen = choose_targets(kind, logits, y, seed=1)
        assert (chosen != y).all()
    assert torch.equal(choose_targets("runner-up", logits, logits.argmax(1)), logits.argsort(1)[:, -2])
    votes = logits.argsort(1)[:, -2].where(logits.argmax(1) == y, logits.argmax(1)).tolist()
    favourite = max(range(logits.shape[1]), key=votes.count)
    common = choose_targets("common", logits, y)
    assert (common[y != favourite] == favourite).all()
    assert torch.equal(common[y == favourite], choose_targets("runner-up", logits, y)[y == favourite])
    near = choose_targets("neighbour", logits[:5], y[:5], points=x[:5], retain=(x[5:], y[5:]))
    for i in range(5):
        others = [(float((x[i] - x[j]).norm()), int(y[j])) for j in range(5, 240) if y[j] != y[i]]
        assert int(near[i]) == min(others)[1]
    counts = torch.bincount(choose_targets("random", torch.zeros(3000, 4), torch.zeros(3000).long(), seed=0))
    assert counts[0] == 0
    assert (counts[1:] > 900).all()
    with pytest.raises(ConfigError, match="unknown target"):
        choose_targets("worst", logits, y)
    with pytest.raises(RequestError, match="retained"):
        choose_targets("neighbour", logits, y)


def test_a_class_with_soft_gates_is_certified_with_one_target(blobs):
    """Patches towards one class help each other; towards several they may not, and the verification must detect it."""
    model, network, x, y, box = blobs
    members, others = y == 0, y != 0
    runner_up = choose_targets("runner-up", compute_patterns(network, x[members])[0], y[members])
    assert len(runner_up.unique()) == 2
    for target, all_sure in (("common", True), ("runner-up", False)):
        found = forget_points(
            model, network, x[members], y[members], box, PointSelection(gate="soft", target=target),
            retain=(x[others], y[others]),
        )  # fmt: skip
        spare = verify_patches(network, found.patches, found.proof, box, claim="float32", epsilon=1e-3)
        assert bool((spare >= 0).all()) is all_sure


def test_representatives_are_members_of_their_clusters(blobs):
    _, network, x, _, _ = blobs
    bits = compute_patterns(network, x)[1]
    for kind in ("k-means", "k-medoids"):
        heads, cluster = choose_representatives(kind, x, bits, 5)
        assert (cluster[heads] == np.arange(len(heads))).all()
        assert cluster.max() == len(heads) - 1


def test_the_method_keeps_its_patches_through_saving_and_certifies(dense, digits, cpu, tmp_path):
    request = ForgetRequest(dense.split.retain[:6])
    outcome = get_method("patch").forget(dense, request, Context(digits, cpu))
    assert outcome.guarantee == "behavioural"
    assert "weights" in outcome.carried
    save_trained(outcome.trained, tmp_path / "saved")
    loaded = load_trained(tmp_path / "saved")
    x = torch.from_numpy(digits.features[:50]).float() / 255
    with torch.no_grad():
        assert torch.equal(loaded.model(x), outcome.trained.model(x))
    certify(loaded.model, loaded.state["patches"], tmp_path / "certificate")
    assert {p.name for p in (tmp_path / "certificate").iterdir()} >= {"certificate.json", "proof.safetensors"}
