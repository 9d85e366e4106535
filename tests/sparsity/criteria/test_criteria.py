"""Criteria against finite differences, closed forms and torch.nn.utils.prune."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from expunge.core.errors import ConfigError, MaskError
from expunge.sparsity import Material, Rule, criterion_names, get_criterion, make_mask, prunable, score, scores


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    weights = prunable(model, ("linear",))

    def batches(size=12):
        return lambda: zip(x.split(size), y.split(size), strict=True)

    return model, weights, batches, x, y


def loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def slope(function, weight, index, step):
    """Central difference of `function()` in one entry of a weight, along `step`."""
    with torch.no_grad():
        old = weight[index].item()
        weight[index] = old + step
        high = function()
        weight[index] = old - step
        low = function()
        weight[index] = old
    return float(high - low) / 2


def entries(weights):
    return [(n, w, i) for n, w in weights.items() for i in np.ndindex(*w.shape)]


def test_snip_is_the_change_of_the_loss_when_a_connection_is_turned_down(problem):
    model, weights, batches, x, y = problem
    found = score("SNIP", Material(model, weights, batches(5), objective=loss))
    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())  # d/dc of L(c w) at c = 1
        expected = abs(slope(lambda: loss(model(x), y), weight, index, size)) / 1e-5
        assert float(found[name][index]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_taylor_is_the_squared_slope_of_every_batch(problem):
    model, weights, batches, _, _ = problem
    found = score("Taylor", Material(model, weights, batches(6), objective=loss))
    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())
        parts = [(slope(lambda a=a, b=b: loss(model(a), b), weight, index, size) / 1e-5) ** 2 for a, b in batches(6)()]
        assert float(found[name][index]) == pytest.approx(np.mean(parts), rel=1e-4, abs=1e-10)


def test_grasp_is_half_the_slope_of_the_squared_gradient(problem):
    """d/dc of ||g(c w)||^2 at c = 1 is 2 w (H g); the gradient is over prunable weights only."""
    model, weights, batches, x, y = problem
    found = score("GraSP", Material(model, weights, batches(5), objective=loss))

    def squared():
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(model(x), y), list(weights.values()))
        return sum(float((g**2).sum()) for g in grads)

    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())
        expected = slope(squared, weight, index, size) / 1e-5 / 2
        assert float(found[name][index]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_grasp_with_batch_statistics_equals_without_where_there_is_no_batchnorm(problem):
    model, weights, batches, _, _ = problem
    plain = score("GraSP", Material(model, weights, batches(5), objective=loss))
    other = score("GraSP", Material(model, weights, batches(5), objective=loss, batch_statistics=True))
    for name in plain:
        assert torch.allclose(plain[name], other[name], atol=1e-12)


def test_synflow_conserves_its_score_per_layer():
    """Bias-free sequential nets: every layer's scores add up to the same flow (Tanaka et al., theorem 1)."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False),
    )  # fmt: skip
    found = score("SynFlow", Material(model, prunable(model, ("conv", "linear")), input_shape=(2, 8, 8)))
    model.requires_grad_(False)  # frozen weights are ranked like others
    again = score("SynFlow", Material(model, prunable(model, ("conv", "linear")), input_shape=(2, 8, 8)))
    assert all(torch.equal(found[name], scores) for name, scores in again.items())
    totals = [float(t.sum()) for t in found.values()]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-12)
    assert all((t >= 0).all() for t in found.values())
    with_bias = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))  # negative control: a bias breaks it
    found = score("SynFlow", Material(with_bias, prunable(with_bias, ("linear",)), input_shape=(3,)))
    first, second = (float(t.sum()) for t in found.values())
    assert first != pytest.approx(second, rel=1e-3)


def test_synflow_leaves_the_model_alone_and_reads_no_records():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    score("SynFlow", Material(model, prunable(model, ("linear",)), input_shape=(3,)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_channel_criteria_in_closed_form():
    model = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, -12]]).reshape(3, 1, 2, 2))
        model[1].weight.copy_(torch.tensor([-2.0, 0.5, 1.0]))
    material = Material(model, prunable(model))
    assert score("filter-l2", material)["0.weight"].tolist() == [5, 0, 12]
    assert score("filter-l1", material)["0.weight"].tolist() == [7, 0, 12]
    assert score("FPGM", material)["0.weight"].tolist() == pytest.approx([5 + 13, 5 + 12, 13 + 12])
    assert score("batchnorm", material)["1.weight"].tolist() == [2, 0.5, 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_masks_equal_those_of_torch_prune_on_the_same_scores(problem, share):
    model, _, batches, _, _ = problem
    for criterion in ("magnitude", "SNIP"):
        mask, ranked = make_mask(
            model, Rule(criterion, "weight", "global", ("linear",), share), batches=batches(6), objective=loss
        )
        for scope in ("global", "layer"):
            twin = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
            pairs = [(twin[0], "weight"), (twin[2], "weight")]
            importance = dict(zip(pairs, ranked.values(), strict=True))
            if scope == "global":
                torch_prune.global_unstructured(
                    pairs, torch_prune.L1Unstructured, importance_scores=importance, amount=share
                )
            else:
                for module, name in pairs:
                    torch_prune.l1_unstructured(module, name, amount=share, importance_scores=importance[module, name])
                rule = Rule(criterion, "weight", "layer", ("linear",), share)
                mask, _ = make_mask(model, rule, batches=batches(6), objective=loss)
            for (module, _), alive in zip(pairs, mask.alive.values(), strict=True):
                assert torch.equal(module.weight_mask.bool(), alive)


def test_random_depends_on_seed_and_name_only():
    a = scores("random", {"a": torch.zeros(4, 3), "b": torch.zeros(2, 2)})
    b = scores("random", {"b": torch.ones(2, 2)})
    assert torch.equal(a["b"], b["b"])
    model = nn.Linear(4, 3)
    one, two = (score("random", Material(model, prunable(model, ("linear",)), seed=s)) for s in (1, 2))
    assert not torch.equal(one["weight"], two["weight"])


def test_bad_input_is_named(problem):
    model, weights, _, _, _ = problem
    with pytest.raises(ConfigError, match="did you mean 'magnitude'"):
        get_criterion("magnitud")
    assert get_criterion("snip").name == "SNIP"
    assert len(criterion_names()) == 10
    with pytest.raises(MaskError, match="needs records"):
        score("SNIP", Material(model, weights))
    with pytest.raises(MaskError, match="shape of a record"):
        score("SynFlow", Material(model, weights))
    with pytest.raises(MaskError, match="no BatchNorm"):
        score("batchnorm", Material(model, weights))
    with torch.no_grad():
        weights["0.weight"][0, 0] = float("nan")
    with pytest.raises(MaskError, match="damaged"):
        score("magnitude", Material(model, weights))
