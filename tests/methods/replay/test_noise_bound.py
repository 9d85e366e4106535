"""The bound of Rewind-to-Delete: on problems of which the constants are known, and what it refuses.

More problems: EXPUNGE_BOUND_PROBLEMS=2000 pytest tests/methods/replay/test_noise_bound.py
"""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
from replay_runs import CPU, make_cnn, with_recipe
from scipy import stats
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.files import read_run_file, write_json
from expunge.core.hashing import hash_tensors
from expunge.core.outcome import describe_guarantee
from expunge.core.request import ForgetRequest
from expunge.core.seeds import epoch_order
from expunge.core.trained import plain_state
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.replay.noise_bound import Step, bound_distance, couple_epochs, find_delta, find_epsilon
from expunge.models import Architecture, architecture
from expunge.models.architecture import register_model
from expunge.report.content import Comparison, ModelResult
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, train

COUNT = int(os.environ.get("EXPUNGE_BOUND_PROBLEMS", "60"))
PLAIN = Recipe(name="test", epochs=4, batch_size=60, learning_rate=0.02, momentum=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def context(digits):
    return Context(digits, CPU, seed=1)


def make_linear(records, split, **fields):
    """Softmax regression."""
    network = Architecture("mlp", {"widths": ()}, records.input_shape, records.classes)
    return train(records, split, network, recipe=dataclasses.replace(PLAIN, **fields), seed=3, runtime=CPU)


def find_constants(records):
    """Of softmax regression on inputs (x, 1) of norm R: |p - e_y| <= sqrt 2, |diag p - p p'| <= 1/2."""
    x = np.asarray(records.features, dtype=np.float64).reshape(len(records), -1) / 255
    radius = math.sqrt(float((x**2).sum(1).max()) + 1)
    return {"smoothness": radius**2 / 2, "gradient_bound": math.sqrt(2) * radius}


def distance_of(a, b):
    old, new = plain_state(a.model), plain_state(b.model)
    return math.sqrt(sum(float((old[name].double() - new[name].double()).square().sum()) for name in old))


# ---- the bound holds


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 1000},
        {},
        {"batch_size": 30, "lr_schedule": "one-cycle", "warmup": 0.3},
        {"weight_decay": 0.05, "lr_schedule": "cosine"},
    ],
)
@pytest.mark.parametrize("k", [1, 3])
def test_retraining_is_within_the_bound(digits, digits_split, context, request_20, fields, k):
    trained = make_linear(digits, digits_split, **fields)
    method = get_method("Rewind", prefix_epochs=k, noise=1e-9, **find_constants(digits))
    outcome = method.forget(trained, request_20, context)
    apart = distance_of(outcome.trained, get_method("Retrain").forget(trained, request_20, context).trained)
    assert 1e-6 < apart <= outcome.bound["distance"]
    assert outcome.guarantee == "conditional"


def test_of_a_whole_batch_it_has_the_known_form(digits, digits_split, context, request_20):
    """2 m G / (n L) ((1 + eta L)^s - 1) (1 + eta L)^(T - s)."""
    trained = make_linear(digits, digits_split, batch_size=1000)
    constants = find_constants(digits)
    outcome = get_method("Rewind", prefix_epochs=3, noise=0.1, **constants).forget(trained, request_20, context)
    smooth, gradient = constants.values()
    growth = 1 + PLAIN.learning_rate * smooth
    factor = 2 * len(request_20.record_ids) * gradient / (len(digits_split.retain) * smooth)
    assert outcome.bound["distance"] == pytest.approx(factor * (growth**3 - 1) * growth, rel=1e-9)
    assert outcome.bound["steps"] == 1
    assert outcome.bound["epsilon"] == find_epsilon(1e-5, outcome.bound["distance"] / 0.1)


def test_with_weight_decay_the_bound_follows_the_norm_of_the_weights():
    """By hand: the norm is at most 3, then 0.8 * 3 + 0.4 * 2 = 3.2, and at a rate of 4 it is |1 - 2| * 3 + 8 = 11."""
    constants = {"smoothness": 1.0, "gradient_bound": 2.0, "weight_decay": 0.5, "norm": 3.0}
    first = 0.2 * 0.5 * 3
    assert bound_distance([Step((0.4, 0.2), 0.0)] * 2, **constants) == pytest.approx(1.1 * first + 0.2 * 0.5 * 3.2)
    steps = [Step((4.0, 4.0), 0.0), Step((0.4, 0.2), 0.0)]
    assert bound_distance(steps, **constants) == pytest.approx(0.2 * 0.5 * 11)


def make_records(count, rng):
    return Records(
        name="rows", record_ids=np.array([f"r{i}" for i in range(count)]), labels=np.zeros(count, dtype=np.int64),
        class_names=("a", "b"), features=rng.normal(size=(count, 1)).astype(np.float32),
    )  # fmt: skip


def test_non_convex_losses_of_known_constants_are_within_the_bound():
    """l_i(w) = sum_j a_ij cos(b_ij w + c_ij): gradients up to sum |a| |b|, smooth with sum |a| |b|^2."""
    used = []
    for seed in range(COUNT):
        rng = np.random.default_rng(seed)
        count, width, terms = int(rng.integers(4, 40)), int(rng.integers(1, 5)), 3
        a, c = rng.normal(size=(count, terms)), rng.uniform(0, 6, (count, terms))
        b = rng.normal(size=(count, terms, width))
        forget = int(rng.integers(1, count - 1))
        a[:forget] *= rng.uniform(0.5, 3)
        norms = np.linalg.norm(b, axis=2)
        gradient_bound, smooth = float((abs(a) * norms).sum(1).max()), float((abs(a) * norms**2).sum(1).max())
        recipe = Recipe(
            epochs=int(rng.integers(1, 4)), batch_size=int(rng.integers(1, count + 3)), momentum=0.0,
            learning_rate=float(rng.uniform(0.01, 0.5)) / smooth, lr_schedule=str(rng.choice(["constant", "cosine"])),
            weight_decay=float(rng.choice([0, 0.1, 1.0])),
        )  # fmt: skip
        records, order = make_records(count, rng), int(rng.integers(1000))
        k = int(rng.integers(0, recipe.epochs + 1))

        def run(w, rows, epochs, parts=(a, b, c), recipe=recipe, records=records, order=order):
            for epoch in epochs:
                ordered = rows[epoch_order(records.keys[rows], order, epoch)]
                batches = [ordered[i : i + recipe.batch_size] for i in range(0, len(rows), recipe.batch_size)]
                for step, batch in enumerate(batches):
                    x, y, z = (part[batch] for part in parts)
                    slope = -(x * np.sin(y @ w + z))[..., None] * y
                    gradient = slope.sum(1).mean(0) + recipe.weight_decay * w
                    w = w - recipe.rate(epoch + step / len(batches)) * gradient
            return w

        every, retained, start = np.arange(count), np.arange(forget, count), rng.normal(size=width)
        early, late = range(k), range(k, recipe.epochs)
        apart = np.linalg.norm(
            run(run(start, every, early), retained, late) - run(start, retained, range(recipe.epochs))
        )
        steps = list(couple_epochs(records, (every, retained), recipe, order, early))
        constants = {"smoothness": smooth, "gradient_bound": gradient_bound, "weight_decay": recipe.weight_decay}
        distance = bound_distance(steps, **constants, norm=float(np.linalg.norm(start)))
        rest = couple_epochs(records, (retained, retained), recipe, order, late)
        distance = bound_distance(rest, **constants, distance=distance)
        assert apart <= distance * (1 + 1e-9) + 1e-12, seed
        used.append(apart / distance if distance else 0.0)
    assert 0.05 < max(used) <= 1 + 1e-9


def test_the_bound_is_attained():
    """l(w) = -L w^2 / 2 - g w, g = -G on D_r and G on D_f: gradients differ by 2 G, differences grow by 1 + eta L."""
    smooth, gradient, rate, count, forget = 3.0, 2.0, 0.05, 10, 4
    g = np.where(np.arange(count) < forget, gradient, -gradient)
    x = y = 0.0
    for step in range(9):
        x, y = (
            x + rate * (smooth * x + (g if step < 5 else g[forget:]).mean()),
            y + rate * (smooth * y + g[forget:].mean()),
        )
    unequal = rate * 2 * forget / count
    steps = [Step((rate, rate), unequal)] * 5 + [Step((rate, rate), 0.0)] * 4
    assert bound_distance(steps, smoothness=smooth, gradient_bound=gradient) == pytest.approx(abs(x - y), rel=1e-12)


def test_coupled_steps_of_unequal_length(digits):
    """By hand: five records in batches of two, of which one is forgotten."""
    rows, recipe = np.arange(5), Recipe(epochs=2, batch_size=2, learning_rate=0.5, momentum=0.0)
    order = epoch_order(digits.keys[rows], 9, 1)
    steps = list(couple_epochs(digits, (rows, np.delete(rows, order[0])), recipe, 9, range(1, 2)))
    assert [step.rates for step in steps] == [(0.5, 0.5), (0.5, 0.5), (0.5, 0.0)]
    assert [step.unequal for step in steps] == pytest.approx([0.5 * 1, 0.5 * 1, 0.5 * 1])
    whole = list(couple_epochs(digits, (rows, rows[1:]), dataclasses.replace(recipe, batch_size=9), 9, range(1)))
    assert whole[0].unequal == pytest.approx(0.5 * 2 / 5)


# ---- epsilon


@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0, 5.0])
def test_delta_is_the_largest_excess_of_probability(ratio, epsilon):
    """max over sets of P(S) - e^eps Q(S): the sets of largest likelihood ratio are half-lines."""
    cuts = np.linspace(-40, 40, 400_001)
    excess = stats.norm.sf(cuts, ratio) - math.exp(epsilon) * stats.norm.sf(cuts)
    assert find_delta(epsilon, ratio) == pytest.approx(max(0.0, float(excess.max())), abs=1e-8)


@pytest.mark.parametrize("ratio", [1e-6, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
def test_epsilon_is_the_smallest_for_delta(ratio, delta):
    epsilon = find_epsilon(delta, ratio)
    assert find_delta(epsilon, ratio) <= delta
    assert epsilon == 0 or find_delta(epsilon * (1 - 1e-6), ratio) > delta
    assert epsilon <= ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta)) + 1e-9


# ---- the outcome


@pytest.fixture(scope="module")
def linear(digits, digits_split):
    return make_linear(digits, digits_split)


def rewind(trained, request, context, **options):
    return get_method("Rewind", **{"prefix_epochs": 1, **options}).forget(trained, request, context)


def test_the_noise_is_gaussian_and_of_the_stated_size(digits, digits_split, context, request_20):
    network = Architecture("mlp", {"widths": (300,)}, digits.input_shape, digits.classes)
    trained = train(digits, digits_split, network, recipe=dataclasses.replace(PLAIN, epochs=2), seed=3, runtime=CPU)
    bare, noisy, again = (rewind(trained, request_20, context, noise=n).trained for n in (0.0, 0.5, 0.5))
    other = rewind(trained, request_20, dataclasses.replace(context, seed=2), noise=0.5).trained
    drawn = np.concatenate(
        [(new - old).numpy().ravel() for old, new in zip(bare.model.state_dict().values(),
                                                         noisy.model.state_dict().values(), strict=True)]
    )  # fmt: skip
    assert stats.kstest(drawn / 0.5, "norm").pvalue > 1e-3
    assert len(drawn) > 20_000
    assert noisy.hash == again.hash
    assert noisy.hash not in (other.hash, bare.hash)
    assert "Gaussian noise of standard deviation 0.5" in noisy.provenance.history[-1]


def test_without_constants_there_is_no_epsilon(linear, context, request_20):
    for options in ({}, {"noise": 0.1}):
        outcome = rewind(linear, request_20, context, **options)
        assert (outcome.guarantee, outcome.bound) == ("empirical", {})
        assert "epsilon" not in json.dumps(outcome.to_json())
        assert "epsilon" not in repr(outcome)
    empty = get_method("Rewind", noise=0.1, smoothness=1.0, gradient_bound=1.0)
    assert empty.forget(linear, ForgetRequest(()), context).guarantee == "empirical"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothness": 1.0}, "needs noise, smoothness and gradient_bound"),
        ({"noise": 0.1, "gradient_bound": 1.0}, "needs noise, smoothness and gradient_bound"),
        ({"smoothness": 1.0, "gradient_bound": 1.0}, "needs noise, smoothness and gradient_bound"),
        ({"noise": 0.1, "smoothness": 1.0, "gradient_bound": 1.0, "rest": 2}, "rest shortens it"),
        ({"noise": -0.1}, "out of range"),
        ({"noise": math.inf}, "out of range"),
        ({"delta": 0.0}, "out of range"),
        ({"delta": 1.0}, "out of range"),
        ({"smoothness": math.nan}, "out of range"),
    ],
)
def test_options_that_give_no_bound_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        get_method("Rewind", **options)


def test_from_the_initial_weights_epsilon_is_zero(linear, context, request_20):
    outcome = rewind(linear, request_20, context, prefix_epochs=0, noise=0.1, **find_constants(context.records))
    assert (outcome.bound["epsilon"], outcome.bound["distance"]) == (0.0, 0.0)
    bare = rewind(linear, request_20, context, prefix_epochs=0).trained
    assert bare.hash == get_method("Retrain").forget(linear, request_20, context).trained.hash


def test_the_bound_is_recorded_and_shown(linear, context, request_20, tmp_path):
    outcome = rewind(linear, request_20, context, noise=2.0, delta=1e-4, **find_constants(context.records))
    write_json(tmp_path / "outcome.json", "expunge.outcome", 2, outcome.to_json())
    body = read_run_file(tmp_path / "outcome.json", "expunge.outcome", 2)
    assert body["method"]["bound"] == json.loads(json.dumps(outcome.bound))
    assert body["method"]["guarantee"] == "conditional"
    text = describe_guarantee("conditional", None, body["method"]["bound"])
    assert f"epsilon = {outcome.bound['epsilon']:.4g} at delta = 0.0001, with noise = 2, if smoothness = " in text
    assert text.split(": ")[1][:60] in repr(outcome)
    model = ModelResult.from_outcome(body)
    assert text in model.notes
    assert Comparison("dense", (model,)).models[0].bound["epsilon"] == outcome.bound["epsilon"]


# ---- what it does not cover


def assert_refused(trained, request, context, message):
    with pytest.raises(MethodError, match=message):
        rewind(trained, request, context, noise=0.1, smoothness=1.0, gradient_bound=1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"select": "best"}, "best epoch"),
        ({"augment": "crop-flip"}, "augments"),
    ],
)
def test_other_training_is_refused(linear, context, request_20, fields, message):
    assert_refused(with_recipe(linear, **fields), request_20, context, f"does not cover this model: .*{message}")


def test_other_networks_are_refused(linear, digits, digits_split, context, request_20):
    sparse = prune(linear, Pruning(0.5, layers=("linear",)), context)
    assert_refused(sparse, request_20, context, "mask")
    batch_norm = make_cnn(digits, digits_split, dataclasses.replace(PLAIN, epochs=2))
    assert_refused(with_recipe(batch_norm, augment="none"), request_20, context, "normalised by statistics")
    network = architecture("small-cnn", digits, normalise="none", widths=(4,))
    assert_refused(
        train(digits, digits_split, network, recipe=PLAIN, seed=0, runtime=CPU), request_20, context, "running_mean"
    )


@pytest.mark.parametrize("kind", ["dropout", "centred"])
def test_networks_that_mix_records_are_refused(digits, digits_split, context, request_20, kind):
    class Mixing(nn.Module):
        """Its outputs depend on chance, or on the other records of the batch."""

        def __init__(self, input_shape, classes, normalise):
            super().__init__()
            self.head = nn.Linear(64, classes)

        def forward(self, x):
            x = x.flatten(1)
            if kind == "centred":
                x = x - x.mean(0)
            return self.head(nn.functional.dropout(x, 0.3, self.training) if kind == "dropout" else x)

    from expunge.core.registry import MODELS

    with MODELS.temporary():
        register_model("mixing")(Mixing)
        network = Architecture("mixing", {}, digits.input_shape, digits.classes)
        trained = train(digits, digits_split, network, recipe=PLAIN, seed=0, runtime=CPU)
        assert_refused(trained, request_20, context, "mixes the records of a batch")


def test_a_bound_beyond_numbers_is_refused(linear, context, request_20):
    with pytest.raises(MethodError, match="not finite"):
        rewind(linear, request_20, context, noise=0.1, smoothness=1e60, gradient_bound=1.0)


def test_noise_does_not_reach_frozen_parameters(linear, context, request_20):
    from expunge.methods.replay.noise_bound import add_noise

    model = Architecture.from_json(linear.provenance.architecture).build(0)
    frozen, free = list(model.parameters())
    frozen.requires_grad_(False)
    before = hash_tensors({"w": frozen.detach()}), hash_tensors({"w": free.detach()})
    add_noise(model, 0.1, 0)
    assert hash_tensors({"w": frozen.detach()}) == before[0]
    assert hash_tensors({"w": free.detach()}) != before[1]
    assert torch.isfinite(free).all()
