"""The statements of docs/replay-theory.md: closed forms against recursions, bounds on random problems, in float64.

More problems: EXPUNGE_THEORY_PROBLEMS=5000 pytest --timeout 3000 tests/methods/test_replay_theory.py
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from expunge.methods.replay import combine, compare_runs

COUNT = int(os.environ.get("EXPUNGE_THEORY_PROBLEMS", "100"))
Array = np.ndarray


@dataclasses.dataclass
class Problem:
    """Two smooth, strongly convex losses that share their initial weights: on D_r and on D.

    Attributes:
        gradients: of the loss on D_r, and on D.
        mu, smooth: bounds of the eigenvalues of both Hessians.
        rates: learning rate of each of the T steps.
        start: theta_0.
        k: steps of the replay.
    """

    gradients: tuple[Callable[[Array], Array], Callable[[Array], Array]]
    mu: float
    smooth: float
    rates: Array
    start: Array
    k: int

    @functools.cached_property
    def runs(self) -> tuple[list[Array], list[Array]]:
        """theta_0, ..., theta_T of gradient descent on D_r, and on D."""
        found: tuple[list[Array], list[Array]] = ([self.start], [self.start])
        for rate in self.rates:
            for run, gradient in zip(found, self.gradients, strict=True):
                run.append(run[-1] - rate * gradient(run[-1]))
        return found

    @property
    def steps(self) -> int:
        return len(self.rates)


def ridge(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    """A and b of the loss mean (x theta - y)^2 / 2 + penalty |theta|^2 / 2."""
    return x.T @ x / len(x) + penalty * np.eye(x.shape[1]), x.T @ y / len(x)


def draw_records(rng: np.random.Generator) -> tuple[Array, Array, int]:
    """Features, answers, and how many of the first records are forgotten; sometimes these differ from the others."""
    count, width = int(rng.integers(8, 60)), int(rng.integers(1, 7))
    x = rng.normal(0, 1, (count, width)) * rng.uniform(0.1, 2, width)
    y = x @ rng.normal(0, 1, width) + rng.normal(0, 0.5, count)
    forget = int(rng.integers(1, count - 2))
    if rng.random() < 0.5:
        x[:forget] *= rng.uniform(0.2, 3)
        y[:forget] += rng.normal(0, 3)
    return x, y, forget


def draw_rates(rng: np.random.Generator, mu: float, smooth: float, *, constant: bool) -> Array:
    steps = int(rng.integers(1, 120))
    largest = 2 / (mu + smooth)
    return largest * (np.full(steps, rng.uniform(0.02, 1)) if constant else rng.uniform(0, 1, steps))


def ridge_problem(seed: int, *, constant: bool = True) -> tuple[Problem, list[tuple[Array, Array]]]:
    rng = np.random.default_rng([seed, 0])
    x, y, forget = draw_records(rng)
    penalty = float(rng.choice([0.01, 0.1, 1.0]))
    parts = [ridge(x[forget:], y[forget:], penalty), ridge(x, y, penalty)]
    eigenvalues = np.concatenate([np.linalg.eigvalsh(a) for a, _ in parts])
    mu, smooth = float(eigenvalues.min()), float(eigenvalues.max())
    rates = draw_rates(rng, mu, smooth, constant=constant)
    gradients = tuple((lambda w, a=a, b=b: a @ w - b) for a, b in parts)
    start = rng.normal(0, 1, x.shape[1]) * rng.integers(0, 2)
    k = int(rng.integers(0, len(rates) + 1))
    return Problem((gradients[0], gradients[1]), mu, smooth, rates, start, k), parts


def logistic_problem(seed: int) -> Problem:
    rng = np.random.default_rng([seed, 1])
    x, y, forget = draw_records(rng)
    sign, penalty = np.where(y > np.median(y), 1.0, -1.0), float(rng.choice([0.01, 0.1]))

    def gradient_of(part: slice) -> Callable[[Array], Array]:
        own, answer = x[part], sign[part]
        return lambda w: -(own.T @ (answer / (1 + np.exp(answer * (own @ w))))) / len(own) + penalty * w

    parts = (slice(forget, None), slice(None))
    smooth = penalty + max(float(np.linalg.eigvalsh(x[p].T @ x[p] / len(x[p])).max()) for p in parts) / 4
    rates = draw_rates(rng, penalty, smooth, constant=True)
    start = rng.normal(0, 1, x.shape[1])
    k = int(rng.integers(0, len(rates) + 1))
    return Problem((gradient_of(parts[0]), gradient_of(parts[1])), penalty, smooth, rates, start, k)


def replay_error(problem: Problem) -> tuple[Array, Array]:
    """theta_hat - theta_T(D_r), and theta_T(D) - theta_T(D_r): the errors of replay and of doing nothing."""
    retrained, original = problem.runs
    k = problem.k
    theta_hat = original[-1] + (retrained[k] - original[k])
    return theta_hat - retrained[-1], original[-1] - retrained[-1]


def contraction(problem: Problem) -> Array:
    """Q(t) = product of 1 - eta_s mu over s < t, for t = 0, ..., T."""
    return np.concatenate([[1.0], np.cumprod(1 - problem.rates * problem.mu)])


def bound_after(problem: Problem) -> float:
    """(1 - Q(T) / Q(k)) / mu (|grad f_r(theta_k(D_r))| + |grad f_D(theta_k(D))|)."""
    k, runs, q = problem.k, problem.runs, contraction(problem)
    norms = [np.linalg.norm(gradient(run[k])) for gradient, run in zip(problem.gradients, runs, strict=True)]
    return float(1 - q[-1] / q[k]) / problem.mu * float(sum(norms)) if q[k] else 0.0


def bound_before(problem: Problem, curvature: float) -> float:
    """|g_0| (q^k - q^T) / mu + curvature |grad f_D(theta_0)| eta^2 (sum of t q^(t - 1) over k <= t < T)."""
    rate = float(problem.rates[0])
    q = 1 - rate * problem.mu
    first = [gradient(problem.start) for gradient in problem.gradients]
    steps = np.arange(problem.k, problem.steps)
    sums = float((q**steps).sum()), float((steps * q ** np.maximum(steps - 1, 0)).sum())
    difference = float(np.linalg.norm(first[0] - first[1]))
    return rate * difference * sums[0] + curvature * float(np.linalg.norm(first[1])) * rate**2 * sums[1]


def bound_coupled(problem: Problem, curvature: float) -> float:
    """(1 - q^n) / mu (L |delta_k| + |g_k|) + curvature |v_k| eta^2 (sum of t q^(t - 1) over t < n), n = T - k."""
    rate, k, (retrained, original) = float(problem.rates[0]), problem.k, problem.runs
    q, left = 1 - rate * problem.mu, np.arange(problem.steps - problem.k)
    on_retain, on_all = (gradient(original[k]) for gradient in problem.gradients)
    sums = float((q**left).sum()), float((left * q ** np.maximum(left - 1, 0)).sum())
    near = problem.smooth * float(np.linalg.norm(retrained[k] - original[k]))
    near += float(np.linalg.norm(on_retain - on_all))
    return rate * near * sums[0] + curvature * float(np.linalg.norm(on_all)) * rate**2 * sums[1]


def closed_forms(problem: Problem, parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Theorem 1: the errors of replay and of doing nothing."""
    rate, k, steps = float(problem.rates[0]), problem.k, problem.steps
    replay, nothing = np.zeros_like(problem.start), np.zeros_like(problem.start)
    for sign, (a, b) in zip((1, -1), parts, strict=True):
        optimum = np.linalg.solve(a, b)
        m, away = np.eye(len(a)) - rate * a, problem.start - optimum
        power = [np.linalg.matrix_power(m, t) for t in (k, steps)]
        replay += sign * (power[0] - power[1]) @ away
        nothing -= sign * (optimum + power[1] @ away)
    return replay, nothing


def test_the_closed_form_is_the_recursion_of_ridge_regression() -> None:
    for seed in range(COUNT):
        problem, parts = ridge_problem(seed)
        expected = closed_forms(problem, parts)
        for found, analytic in zip(replay_error(problem), expected, strict=True):
            assert found == pytest.approx(analytic, rel=1e-7, abs=1e-9), seed


def test_the_arithmetic_of_the_method_gives_it_too() -> None:
    """theta_hat by the function that Replay uses, and the error by the diagnostic."""
    for seed in range(20):
        problem, parts = ridge_problem(seed)
        k = problem.k
        runs = [{t: {"w": torch.from_numpy(w)} for t, w in enumerate(run)} for run in problem.runs]
        theta_hat = combine(runs[1][problem.steps], runs[1][k], runs[0][k])["w"].numpy()
        replay, nothing = closed_forms(problem, parts)
        assert theta_hat - runs[0][problem.steps]["w"].numpy() == pytest.approx(replay, rel=1e-7, abs=1e-9)
        ratio = compare_runs(runs[1], runs[0]).layers["all"].error[k]
        assert ratio == pytest.approx(np.linalg.norm(replay) / np.linalg.norm(nothing), rel=1e-6, abs=1e-9)


@functools.cache
def problems(*, constant: bool = True) -> list[tuple[Problem, float]]:
    """Ridge problems with the norm of A_D - A_r, and logistic ones with L - mu."""
    found = []
    for seed in range(COUNT):
        problem, parts = ridge_problem(seed, constant=constant)
        found.append((problem, float(np.linalg.norm(parts[0][0] - parts[1][0], 2))))
        if constant:
            logistic = logistic_problem(seed)
            found.append((logistic, logistic.smooth - logistic.mu))
    return found


def test_the_error_is_the_sum_of_the_remaining_differences_of_gradients() -> None:
    for problem, _ in itertools.chain(problems(), problems(constant=False)):
        retrained, original = problem.runs
        total = np.zeros_like(problem.start)
        for t in range(problem.k, problem.steps):
            difference = problem.gradients[0](retrained[t]) - problem.gradients[1](original[t])
            total += problem.rates[t] * difference
        assert replay_error(problem)[0] == pytest.approx(total, rel=1e-9, abs=1e-10)


def test_no_bound_is_ever_violated() -> None:
    tried = 0
    for problem, curvature in problems():
        error = float(np.linalg.norm(replay_error(problem)[0]))
        for bound in (bound_after(problem), bound_before(problem, curvature), bound_coupled(problem, curvature)):
            assert error <= bound * (1 + 1e-9) + 1e-11, problem
            tried += 1
    for problem, _ in problems(constant=False):
        assert float(np.linalg.norm(replay_error(problem)[0])) <= bound_after(problem) * (1 + 1e-9) + 1e-11
    assert tried == 6 * COUNT


def test_the_difference_is_bounded_by_the_differences_of_gradients() -> None:
    for problem, _ in problems():
        retrained, original = problem.runs
        rate, k = float(problem.rates[0]), problem.k
        gaps = [np.linalg.norm(problem.gradients[0](w) - problem.gradients[1](w)) for w in original[:k]]
        bound = sum(rate * (1 - rate * problem.mu) ** (k - 1 - t) * gap for t, gap in enumerate(gaps))
        assert np.linalg.norm(retrained[k] - original[k]) <= float(bound) * (1 + 1e-9) + 1e-12


def test_wrong_bounds_are_violated() -> None:
    """The sample can tell a wrong constant: each bound with one mistake fails on it."""
    wrong = dict.fromkeys(("after, one run only", "before, without curvature", "before, twice mu"), 0)
    for problem, curvature in problems():
        error = float(np.linalg.norm(replay_error(problem)[0]))
        runs, k, q = problem.runs, problem.k, contraction(problem)
        if error < 1e-9 or q[k] == 0:
            continue
        one = (1 - q[-1] / q[k]) / problem.mu * float(np.linalg.norm(problem.gradients[1](runs[1][k])))
        wrong["after, one run only"] += error > one
        wrong["before, without curvature"] += error > bound_before(problem, 0.0)
        doubled = dataclasses.replace(problem, mu=2 * problem.mu)
        wrong["before, twice mu"] += doubled.rates[0] * doubled.mu < 1 and error > bound_before(doubled, curvature)
    assert all(wrong.values()), wrong


def line(slope: float, optimum: float) -> Callable[[Array], Array]:
    return lambda w: slope * (w - optimum)


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_two_bounds_are_reached(k: int) -> None:
    """One weight of curvature 1, step 0.1: equality of the first if the optima are on both sides of theta_0."""
    problem = Problem((line(1.0, 1.0), line(1.0, -1.0)), 1.0, 1.0, np.full(12, 0.1), np.zeros(1), k)
    error = abs(replay_error(problem)[0][0])
    assert error == pytest.approx(2 * (0.9**k - 0.9**12))
    assert bound_after(problem) == pytest.approx(error, abs=1e-12)
    assert bound_before(problem, 0.0) == pytest.approx(error, abs=1e-12)


def test_equal_curvature_replay_always_helps_and_flat_weights_are_carried_last() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.1, 1.0, 40)
    curvatures = np.array([1.0, 0.3, 0.05, 1e-6])
    optima = rng.normal(0, 1, (2, 4))
    gradients = tuple((lambda w, o=o: curvatures * (w - o)) for o in optima)
    parts = np.array([np.concatenate([[1.0], np.cumprod(1 - rates * a)]) for a in curvatures])  # P(t) by weight
    last = np.ones(4)
    for k in range(41):
        problem = Problem((gradients[0], gradients[1]), 1e-6, 1.0, rates, np.zeros(4), k)
        replay, nothing = replay_error(problem)
        expected = (parts[:, k] - parts[:, -1]) / (1 - parts[:, -1])
        assert replay / nothing == pytest.approx(expected, abs=1e-8)
        assert (expected <= last).all()
        assert (np.diff(expected) >= -1e-12).all(), "flatter weights have a larger error"
        flat = 1 - rates[:k].sum() / rates.sum()
        assert expected[-1] == pytest.approx(flat, abs=1e-4), "the fraction of the learning rates"
        assert (expected <= flat + 1e-9).all(), "no weight is worse than that"
        last = expected


def test_replay_can_be_worse_than_nothing() -> None:
    """The example of the page: without D_f the loss is steeper and its optimum nearer."""
    x, y = np.array([[0.1], [2**0.5]]), np.array([10.0, 2**0.5])  # the first record is forgotten
    (a_r, b_r), (a, b) = ridge(x[1:], y[1:], 0.0), ridge(x, y, 0.0)
    assert [round(float(value.item()), 3) for value in (a_r, b_r / a_r, a, b / a)] == [2.0, 1.0, 1.005, 1.493]
    errors = []
    for k in (3, 10):
        gradients = line(a_r.item(), (b_r / a_r).item()), line(a.item(), (b / a).item())
        problem = Problem(gradients, a.item(), a_r.item(), np.full(20, 0.1), np.zeros(1), k)
        replay, nothing = replay_error(problem)
        errors += [round(abs(float(replay[0])), 2), round(abs(float(nothing[0])), 2)]
    assert errors == [0.41, 0.32, 0.24, 0.32]


def test_when_replay_beats_doing_nothing() -> None:
    seen = set()
    for problem, _ in problems():
        retrained, original = problem.runs
        early, end = (retrained[t] - original[t] for t in (problem.k, problem.steps))
        sizes = np.linalg.norm(early), np.linalg.norm(end)
        if min(sizes) < 1e-9:
            continue
        replay, nothing = (float(np.linalg.norm(one)) for one in replay_error(problem))
        cosine = float(early @ end) / float(sizes[0] * sizes[1])
        margin = cosine - float(sizes[0] / sizes[1]) / 2
        if abs(margin) > 1e-9:
            assert (replay < nothing) == (margin > 0)
            seen.add(margin > 0)
    assert seen == {False, True}


def test_a_mask_changes_only_near_its_threshold() -> None:
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(300):
        weights = rng.normal(0, 1, 60)
        error = rng.normal(0, 1, 60) * 10 ** rng.uniform(-4, -0.5)
        kept = int(rng.integers(1, 60))
        masks = [np.argsort(-np.abs(w), kind="stable")[:kept] for w in (weights, weights + error)]
        threshold = np.sort(np.abs(weights))[::-1][kept - 1]
        differ = np.setxor1d(*masks)
        assert (np.abs(np.abs(weights[differ]) - threshold) <= 2 * np.abs(error).max() + 1e-12).all()
        changed += len(differ)
    assert changed > 100


def test_how_often_replay_is_worse_than_nothing_on_ridge_regression() -> None:
    """The percentages of the page: 100 steps of size 1 / L."""
    worse = dict.fromkeys((10, 20, 40), 0)
    for seed in range(400):
        problem, parts = ridge_problem(seed)
        problem.rates = np.full(100, 1 / problem.smooth)
        for k in worse:
            problem.k = k
            replay, nothing = (float(np.linalg.norm(one)) for one in closed_forms(problem, parts))
            worse[k] += replay >= nothing
    assert {k: round(count / 4) for k, count in worse.items()} == {10: 11, 20: 4, 40: 1}
