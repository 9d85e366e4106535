"""Growing a mask: which weights and channels are regrown, and with which values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.methods import Context, get_method
from expunge.methods.task import Task
from expunge.methods.unprune import get_rule
from expunge.methods.unprune.growth import grow
from expunge.methods.unprune.method import Unprune
from expunge.methods.unprune.rescoring import sample
from expunge.methods.unprune.run import Unpruning
from expunge.models import Architecture
from expunge.sparsity import Pruning, Rule, make_mask, prune

IDENTITY = {"method": "FT", "method_options": {"epochs": 0}}
BOTH = ("conv", "linear")
FILTERS = {"layers": ("conv",), "granularity": "filter", "criterion": "filter-l2"}


@pytest.fixture(scope="module")
def context(digits, cpu):
    return Context(digits, cpu, seed=1)


def begin(trained, request, context, **options):
    """The state of a run of un-pruning before its first round."""
    method = Unprune(**options)
    return Unpruning(method, Task(trained, request, context, name="Un-prune", options={}, guarantee="empirical"))


def test_gradient_growth_takes_the_largest_absolute_gradients(sparse, digits, request_20, context):
    state = begin(sparse, request_20, context, rule="gradient", growth=0.1, **IDENTITY)
    grown = get_rule("gradient").grow(state, state.make_initial_values())
    rows = digits.rows(request_20.apply(sparse.split).retain)
    model = Architecture.from_json(sparse.provenance.architecture).build(0).eval()
    model.load_state_dict(sparse.model.state_dict())
    x = torch.from_numpy(digits.features[rows]).float() / 255
    nn.functional.cross_entropy(model(x), torch.from_numpy(digits.labels[rows])).backward()
    gradients = {n: p.grad.abs() for n, p in model.named_parameters() if n in sparse.mask.kept}
    pruned = torch.cat([gradients[n][~sparse.mask.kept[n]] for n in sorted(gradients)])
    regrown = torch.cat([(grown.kept[n] & ~sparse.mask.kept[n])[~sparse.mask.kept[n]] for n in sorted(gradients)])
    assert int(regrown.sum()) == int(np.ceil(0.1 * len(pruned)))
    assert pruned[regrown].min() >= pruned[~regrown].max() * (1 - 1e-4)


def test_gradient_growth_of_channels_ranks_by_gradients(dense, digits, request_20, context, cpu):
    """Against brute force, with pruned channels at their initial values and BatchNorm in training mode."""
    trained = prune(dense, Pruning(sparsity=0.5, **FILTERS, schedule="one-shot"), Context(digits, cpu))
    options = {"rule": "gradient", "growth": 0.3, "score_records": 10_000, **IDENTITY}
    state = begin(trained, request_20, context, **options)
    retain, values = request_20.apply(trained.split).retain, state.make_initial_values()
    grown = get_rule("gradient").grow(state, values)
    model = Architecture.from_json(trained.provenance.architecture).build(0)
    state = dict(trained.model.state_dict())
    pruned = {name: ~kept for name, kept in trained.mask.kept.items()}
    state |= {name: torch.where(pruned[name], values[name], state[name]) for name in pruned}
    model.load_state_dict(state)
    model.train()
    for x, y in sample(trained, context, retain, 10_000, cpu).in_order():
        (nn.functional.cross_entropy(model(x), y) * len(x) / len(retain)).backward()
    names = {
        layer: [f"blocks.{layer}.0.weight", *(f"blocks.{layer}.1.{p}" for p in ("weight", "bias"))] for layer in (0, 1)
    }
    parameters = dict(model.named_parameters())
    ranks = []
    for layer, parts in names.items():
        total = sum(parameters[name].grad.abs().reshape(len(pruned[name]), -1).sum(1) for name in parts)
        is_pruned = pruned[parts[-1]]
        ranks += [(float(total[unit]), layer, unit) for unit in torch.nonzero(is_pruned).flatten().tolist()]
    assert min(ranks)[0] > 0
    expected = {(layer, unit) for _, layer, unit in sorted(ranks, reverse=True)[: int(np.ceil(0.3 * len(ranks)))]}
    regrown = {
        (layer, unit)
        for layer, parts in names.items()
        for unit in torch.nonzero(grown.kept[parts[-1]] & pruned[parts[-1]]).flatten().tolist()
    }
    assert regrown == expected
    with pytest.raises(MethodError, match="their gradients are 0"):
        Unprune(rule="gradient", initial="zero", **IDENTITY).forget(trained, request_20, context)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weights_are_regrown_in_their_scope(dense, digits, request_20, context, cpu, scope):
    trained = prune(dense, Pruning(sparsity=0.6, layers=BOTH, scope=scope, schedule="one-shot"), Context(digits, cpu))
    scores = {n: torch.full(a.shape, float(i)) for i, (n, a) in enumerate(sorted(trained.mask.kept.items()))}
    grown = grow(trained.mask, scores, 0.25, trained.model, digits.input_shape)
    fractions = {n: float((grown.kept[n] & ~a).sum()) / float((~a).sum()) for n, a in sorted(trained.mask.kept.items())}
    if scope == "layer":
        assert all(fraction == pytest.approx(0.25, abs=0.02) for fraction in fractions.values())
    else:  # the last layers have the highest scores, so only they are regrown
        values = list(fractions.values())
        assert values[0] == 0
        assert values == sorted(values)


def test_channels_with_the_highest_scores_are_regrown(dense, digits, cpu):
    trained = prune(
        dense,
        Pruning(
            sparsity=0.5,
            **FILTERS,
            scope="layer",
            schedule="one-shot",
        ),
        Context(digits, cpu),
    )
    generator = torch.Generator().manual_seed(3)
    scores = {n: torch.rand(a.shape, generator=generator) for n, a in trained.mask.kept.items()}
    grown = grow(trained.mask, scores, 0.5, trained.model, digits.input_shape)
    for name in ("blocks.0.0.weight", "blocks.1.0.weight"):
        block = name.rpartition(".0.")[0]
        parts = [scores[name].flatten(1)] + [scores[f"{block}.1.{n}"][:, None] for n in ("weight", "bias")]
        mean = torch.cat(parts, 1).mean(1)
        pruned = ~trained.mask.kept[name].flatten(1).any(1)
        regrown = pruned & grown.kept[name].flatten(1).any(1)
        assert int(regrown.sum()) == int(pruned.sum()) // 2
        assert mean[regrown].min() > mean[pruned & ~regrown].max()


def test_weights_regrown_before_start_from_their_last_value_with_grown(sparse, request_20, context):
    """With `reinitialise=grown`, only weights that were never regrown take the initial value."""
    options = {"rule": "dense", "rounds": 2, "reprune": "each", "method": "FT", "method_options": {"epochs": 1}}
    pruned, grown = (
        get_method("Un-prune", reinitialise=which, **options).forget(sparse, request_20, context).trained
        for which in ("pruned", "grown")
    )
    assert pruned.hash != grown.hash
    once = {**options, "rounds": 1}
    same = [
        get_method("Un-prune", reinitialise=which, **once).forget(sparse, request_20, context).trained.hash
        for which in ("pruned", "grown")
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize("rule", [{}, FILTERS])
def test_a_growth_of_zero_regrows_nothing_and_of_one_everything(dense, digits, rule):
    mask, _ = make_mask(dense.model, Rule(**{"layers": BOTH, "sparsity": 0.5, **rule}), input_shape=digits.input_shape)
    scores = {name: torch.rand(kept.shape) for name, kept in mask.kept.items()}
    assert grow(mask, scores, 0.0, dense.model, digits.input_shape).hash() == mask.hash()
    assert all(kept.all() for kept in grow(mask, scores, 1.0, dense.model, digits.input_shape).kept.values())
