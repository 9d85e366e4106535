"""Which weights a saliency mask and `only` choose, and that what is held has no part in a step: by plain autograd."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import plain_training as plain
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.composition.restriction import find_chosen, keep_largest, restrict
from expunge.methods.task import Task
from expunge.training import Recipe, Runtime, Steps, fit
from expunge.training.masked import Restriction, ValueKeeper


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def make_task(trained: Trained, request: ForgetRequest, context: Context) -> Task:
    return Task(trained, request, context, name="FT", options={}, guarantee="empirical")


def salient(
    trained: Trained, digits: Records, ids: list[str], fraction: float, names: set[str] | None = None
) -> dict[str, torch.Tensor]:
    """The entries with the largest |gradient of the mean loss on some records|, among those that may move."""
    model = plain.copy_of(trained).eval()
    x, y = plain.all_inputs(digits, ids)
    parameters = {n: p for n, p in model.named_parameters() if names is None or n in names}
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(parameters.values()))
    kept = {} if trained.mask is None else trained.mask.kept
    allowed = {n: kept.get(n, torch.ones(p.shape, dtype=torch.bool)) for n, p in parameters.items()}
    scores = {n: s.abs() for n, s in zip(parameters, slopes, strict=True)}
    ranked = sorted((float(v) for n in scores for v in scores[n][allowed[n]]), reverse=True)
    least = ranked[round(fraction * len(ranked)) - 1]
    return {n: (scores[n] >= least) & allowed[n] for n in scores}


@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_the_salient_weights_are_those_with_the_largest_gradients_on_the_forget_set(
    model: str, request: pytest.FixtureRequest, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    trained: Trained = request.getfixturevalue(model)
    found = restrict(make_task(trained, request_20, context), None, 0.3, "gradient")
    assert found is not None
    expected = salient(trained, digits, request_20.record_ids.tolist(), 0.3)
    differ = sum(int((found.movable[name] != entries).sum()) for name, entries in expected.items())
    assert set(found.movable) == set(expected)
    assert differ <= 2, "one pair may change places by rounding"
    outcome = get_method("SalUn", epochs=2, batch_size=32, saliency=0.3).forget(trained, request_20, context)
    after = dict(outcome.trained.model.named_parameters())
    moved = {name: weight != after[name] for name, weight in trained.model.named_parameters()}
    assert not any(bool((moved[name] & ~found.movable[name]).any()) for name in moved)
    assert sum(int(entries.sum()) for entries in moved.values()) > 0.9 * found.count


def test_the_salient_weights_of_some_layers(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    task = make_task(dense, request_20, context)
    found = restrict(task, find_chosen(task.model, ["classifier"]), 0.3, "gradient")
    assert found is not None
    names = {"classifier.weight", "classifier.bias"}
    expected = salient(dense, digits, request_20.record_ids.tolist(), 0.3, names)
    assert found.count == round(0.3 * 170)
    assert sum(int((found.movable[name] != entries).sum()) for name, entries in expected.items()) <= 2
    assert not any(bool(entries.any()) for name, entries in found.movable.items() if name not in names)


def test_random_weights_are_other_ones_and_depend_on_the_seed(
    sparse: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime
) -> None:
    def draw(seed: int, source: str) -> torch.Tensor:
        task = make_task(sparse, request_20, Context(digits, cpu, seed=seed))
        found = restrict(task, None, 0.3, source)
        assert found is not None
        return torch.cat([entries.reshape(-1) for entries in found.movable.values()])

    one, same, other, by_gradient = draw(1, "random"), draw(1, "random"), draw(2, "random"), draw(1, "gradient")
    assert torch.equal(one, same)
    assert one.sum() == other.sum() == by_gradient.sum(), "the control has the same size"
    for drawn in (other, by_gradient):
        assert 0.15 < float((one & drawn).sum() / one.sum()) < 0.6, "about as many in common as by chance, or some more"


def test_frozen_weights_are_not_counted(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    model = copy.deepcopy(dense.model)
    model.classifier.weight.requires_grad_(False)
    found = restrict(make_task(dataclasses.replace(dense, model=model), request_20, context), None, 0.3, "random")
    assert found is not None
    free = sum(weight.numel() for name, weight in model.named_parameters() if name != "classifier.weight")
    assert found.count == round(0.3 * free)
    assert not found.movable["classifier.weight"].any()


def test_a_fraction_is_rounded_to_the_nearest_number_and_equal_scores_keep_their_order() -> None:
    scores = {"a": torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0])}
    allowed = {"a": torch.ones(5, dtype=torch.bool)}
    for fraction, expected in ((0.34, [0, 4]), (0.29, [0]), (0.5, [0, 4]), (1.0, [0, 1, 2, 3, 4])):
        assert keep_largest(scores, allowed, fraction)["a"].nonzero().flatten().tolist() == expected
    ties = {"a": torch.ones(500)}  # an unstable sort changes the order of so many
    kept = keep_largest(ties, {"a": torch.ones(500, dtype=torch.bool)}, 0.5)["a"]
    assert kept[:250].all()
    assert not kept[250:].any()


def test_a_name_chooses_what_is_in_it_and_not_what_begins_like_it() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(11)))
    found = find_chosen(model, ["1"])
    assert found.parameters == {"1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"}
    assert found.modules == {"1", "1.0", "1.1"}
    assert find_chosen(model, ["1.1.weight"]).modules == frozenset()


def test_running_statistics_of_a_chosen_layer_without_parameters_of_its_own_follow(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """BatchNorm with `affine=False` has statistics, but no parameter that could be named."""
    model = copy.deepcopy(dense.model)
    old = model.blocks[1][1]
    new = nn.BatchNorm2d(old.num_features, affine=False)
    new.running_mean, new.running_var = old.running_mean.clone(), old.running_var.clone()
    model.blocks[1][1] = new
    task = make_task(dataclasses.replace(dense, model=model), request_20, context)
    inside = restrict(task, find_chosen(task.model, ["blocks.1"]), 1.0, "gradient")
    outside = restrict(task, find_chosen(task.model, ["classifier"]), 1.0, "gradient")
    assert inside is not None
    assert outside is not None
    assert "blocks.1.1" not in inside.held_modules
    assert {"blocks.0.1", "blocks.1.1"} <= outside.held_modules


# ---- steps


def test_held_weights_have_no_part_in_the_norm_of_a_clipped_gradient(digits: Records, cpu: Runtime) -> None:
    """Two steps of SGD by hand on the movable weights alone; with the others, the norm would be larger."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    movable = torch.rand(10, 64) < 0.2
    by_hand = copy.deepcopy(layer)
    optimiser = torch.optim.SGD(by_hand.parameters(), lr=0.5, momentum=0.9)
    rows = np.arange(40)
    for epoch in range(2):
        for x, y in Batches(digits, rows, batch_size=40).epoch(3, epoch):
            optimiser.zero_grad()
            F.cross_entropy(by_hand(x), y).backward()
            by_hand[1].weight.grad[~movable] = 0.0
            before = float(torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm())
            assert before > 0.05
            nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
            optimiser.step()
    recipe = Recipe(
        epochs=2, batch_size=40, learning_rate=0.5, momentum=0.9, weight_decay=0.0, clip_norm=0.05, augment="none",
        nesterov=False, lr_schedule="constant",
    )  # fmt: skip
    steps = Steps(restriction=Restriction({"1.weight": movable}))
    fit(layer, rows, recipe, Context(digits, cpu, seed=3), steps=steps)
    torch.testing.assert_close(layer[1].weight, by_hand[1].weight, rtol=0, atol=1e-7)


def test_hooks_do_not_move_what_is_held(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    """The proximal step of l1-sparse shrinks all weights after each step; the held ones keep their bits."""
    found = restrict(make_task(sparse, request_20, context), None, 0.3, "gradient")
    assert found is not None
    method = get_method("l1-sparse", epochs=1, batch_size=64, step="proximal", gamma=0.05, saliency=0.3)
    after = dict(method.forget(sparse, request_20, context).trained.model.named_parameters())
    for name, weight in sparse.model.named_parameters():
        assert torch.equal(weight[~found.movable[name]], after[name][~found.movable[name]]), name


def test_parameters_that_are_held_as_a_whole_have_no_gradient_and_get_their_flags_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight.requires_grad_(False)
    model(torch.ones(2, 3)).sum().backward()
    held = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if name < "2"}
    keeper = ValueKeeper(model, Restriction(held))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with keeper.hold():
        assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
        assert all(p.grad is None for p in model[:2].parameters()), "an optimiser would step with an old gradient"
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
