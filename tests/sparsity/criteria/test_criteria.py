"""Criteria against finite differences, closed forms and torch.nn.utils.prune."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from expunge.core.errors import ConfigError, MaskError
from expunge.data.batches import Batches
from expunge.sparsity import (
    Rule,
    ScoringContext,
    compute_scores,
    criterion_names,
    get_criterion,
    make_mask,
    prunable_weights,
    score_weights,
)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(0, 3, (12,))
    weights = prunable_weights(model, ("linear",))

    def batches(size=12):
        return lambda: zip(x.split(size), y.split(size), strict=True)

    return model, weights, batches, x, y


def loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def derivative(function, weight, index, step):
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


def test_snip_is_the_derivative_of_the_loss_in_the_scale_of_a_connection(problem):
    model, weights, batches, x, y = problem
    found = compute_scores("SNIP", ScoringContext(model, weights, batches(5), objective=loss))
    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())  # d/dc of L(c w) at c = 1
        expected = abs(derivative(lambda: loss(model(x), y), weight, index, size)) / 1e-5
        assert float(found[name][index]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_taylor_is_the_mean_squared_derivative_over_batches(problem):
    model, weights, batches, _, _ = problem
    found = compute_scores("Taylor", ScoringContext(model, weights, batches(6), objective=loss))
    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())
        parts = [
            (derivative(lambda a=a, b=b: loss(model(a), b), weight, index, size) / 1e-5) ** 2 for a, b in batches(6)()
        ]
        assert float(found[name][index]) == pytest.approx(np.mean(parts), rel=1e-4, abs=1e-10)


def test_grasp_is_half_the_derivative_of_the_squared_gradient(problem):
    """d/dc of ||g(c w)||^2 at c = 1 is 2 w (H g); the gradient is over prunable weights only."""
    model, weights, batches, x, y = problem
    found = compute_scores("GraSP", ScoringContext(model, weights, batches(5), objective=loss))

    def squared():
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(model(x), y), list(weights.values()))
        return sum(float((g**2).sum()) for g in grads)

    for name, weight, index in entries(weights):
        size = 1e-5 * float(weight[index].detach())
        expected = derivative(squared, weight, index, size) / 1e-5 / 2
        assert float(found[name][index]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_grasp_with_batch_statistics_equals_without_where_there_is_no_batchnorm(problem):
    model, weights, batches, _, _ = problem
    plain = compute_scores("GraSP", ScoringContext(model, weights, batches(5), objective=loss))
    other = compute_scores("GraSP", ScoringContext(model, weights, batches(5), objective=loss, batch_statistics=True))
    for name in plain:
        assert torch.allclose(plain[name], other[name], atol=1e-12)


def test_synflow_conserves_its_score_per_layer():
    """Bias-free sequential nets: every layer's scores add up to the same flow (Tanaka et al., theorem 1)."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 16, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False),
    )  # fmt: skip
    found = compute_scores(
        "SynFlow", ScoringContext(model, prunable_weights(model, ("conv", "linear")), input_shape=(2, 8, 8))
    )
    model.requires_grad_(False)  # frozen weights are scored like others
    frozen = compute_scores(
        "SynFlow", ScoringContext(model, prunable_weights(model, ("conv", "linear")), input_shape=(2, 8, 8))
    )
    assert all(torch.equal(found[name], scores) for name, scores in frozen.items())
    totals = [float(t.sum()) for t in found.values()]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-12)
    assert all((t >= 0).all() for t in found.values())
    with_bias = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))  # negative control: a bias breaks it
    found = compute_scores(
        "SynFlow", ScoringContext(with_bias, prunable_weights(with_bias, ("linear",)), input_shape=(3,))
    )
    first, second = (float(t.sum()) for t in found.values())
    assert first != pytest.approx(second, rel=1e-3)


def test_synflow_does_not_modify_the_model_and_reads_no_records():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compute_scores("SynFlow", ScoringContext(model, prunable_weights(model, ("linear",)), input_shape=(3,)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_channel_criteria_in_closed_form():
    model = nn.Sequential(nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, -12]]).reshape(3, 1, 2, 2))
        model[1].weight.copy_(torch.tensor([-2.0, 0.5, 1.0]))
    context = ScoringContext(model, prunable_weights(model))
    assert compute_scores("filter-l2", context)["0.weight"].tolist() == [5, 0, 12]
    assert compute_scores("filter-l1", context)["0.weight"].tolist() == [7, 0, 12]
    assert compute_scores("FPGM", context)["0.weight"].tolist() == pytest.approx([5 + 13, 5 + 12, 13 + 12])
    assert compute_scores("batchnorm", context)["1.weight"].tolist() == [2, 0.5, 1]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_masks_equal_those_of_torch_prune_on_the_same_scores(problem, sparsity):
    model, _, batches, _, _ = problem
    for criterion in ("magnitude", "SNIP"):
        mask, ranked = make_mask(
            model, Rule(criterion, "weight", "global", ("linear",), sparsity), batches=batches(6), objective=loss
        )
        for scope in ("global", "layer"):
            copied = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
            pairs = [(copied[0], "weight"), (copied[2], "weight")]
            importance = dict(zip(pairs, ranked.values(), strict=True))
            if scope == "global":
                torch_prune.global_unstructured(
                    pairs, torch_prune.L1Unstructured, importance_scores=importance, amount=sparsity
                )
            else:
                for module, name in pairs:
                    torch_prune.l1_unstructured(
                        module, name, amount=sparsity, importance_scores=importance[module, name]
                    )
                rule = Rule(criterion, "weight", "layer", ("linear",), sparsity)
                mask, _ = make_mask(model, rule, batches=batches(6), objective=loss)
            for (module, _), kept in zip(pairs, mask.kept.values(), strict=True):
                assert torch.equal(module.weight_mask.bool(), kept)


def test_random_depends_on_seed_and_name_only():
    a = score_weights("random", {"a": torch.zeros(4, 3), "b": torch.zeros(2, 2)})
    b = score_weights("random", {"b": torch.ones(2, 2)})
    assert torch.equal(a["b"], b["b"])
    model = nn.Linear(4, 3)
    one, two = (
        compute_scores("random", ScoringContext(model, prunable_weights(model, ("linear",)), seed=s)) for s in (1, 2)
    )
    assert not torch.equal(one["weight"], two["weight"])


def test_bad_input_is_named(problem):
    model, weights, _, _, _ = problem
    with pytest.raises(ConfigError, match="did you mean 'magnitude'"):
        get_criterion("magnitud")
    assert get_criterion("snip").name == "SNIP"
    known = {"FPGM", "GraSP", "SNIP", "SynFlow", "Taylor", "batchnorm", "filter-l1", "filter-l2", "magnitude", "random"}
    assert known <= set(criterion_names())
    with pytest.raises(MaskError, match="needs records"):
        compute_scores("SNIP", ScoringContext(model, weights))
    with pytest.raises(MaskError, match="shape of a record"):
        compute_scores("SynFlow", ScoringContext(model, weights))
    with pytest.raises(MaskError, match="no BatchNorm"):
        compute_scores("batchnorm", ScoringContext(model, weights))
    with torch.no_grad():
        weights["0.weight"][0, 0] = float("nan")
    with pytest.raises(MaskError, match="damaged"):
        compute_scores("magnitude", ScoringContext(model, weights))


@pytest.mark.parametrize("criterion", ["SNIP", "Taylor", "GraSP"])
def test_batch_statistics_leave_the_model_as_it_was(criterion, dense, digits):
    """Scores at initialisation normalise by the batch; the running statistics of the scored model do not follow."""
    model = copy.deepcopy(dense.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = Batches(digits, np.arange(40), batch_size=20).in_order
    rule = Rule(criterion, layers=("conv",), sparsity=0.5)
    scores = [
        make_mask(model, rule, input_shape=digits.input_shape, batches=batches, batch_statistics=given)[1]
        for given in (True, False)
    ]
    assert any(not torch.equal(scores[0][name], scores[1][name]) for name in scores[0]), "the option has no effect"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
