"""PBU, JiT and L2UL against plain transcriptions of their formulas and released loops."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import MethodError
from expunge.core.request import ForgetRequest
from expunge.core.seeds import epoch_order, global_rng
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.listed import adversarial, jit, l2ul
from expunge.methods.task import Task
from expunge.training import Runtime


@pytest.fixture
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def make_task(name: str, trained: Trained, request: ForgetRequest, context: Context) -> Task:
    return Task(trained, request, context, name=name, options={}, guarantee="empirical")


def batches_of_epoch(task: Task, batch_size: int, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(task.make_batches(task.forget_rows, batch_size).epoch(task.seed, epoch))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_pbu(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    """Adam on alpha -CE + beta (d^T F d) + gamma d^T d; F from loops over records and labels."""
    alpha, beta, gamma = 7.0, 30.0, 2.0
    task = make_task("PBU", mlp, request_20, context)
    model = copy.deepcopy(mlp.model).eval()
    start = weights(model)
    fisher = {name: torch.zeros_like(w) for name, w in start.items()}
    ((x, _),) = task.make_batches(task.forget_rows, 64).in_order()
    for record in x:
        logs = model(record[None]).log_softmax(1)[0]
        for label in range(10):
            parts = torch.autograd.grad(logs[label], list(model.parameters()), retain_graph=True)
            for name, part in zip(fisher, parts, strict=True):
                fisher[name] += logs[label].exp().detach() * part.square() / len(x)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(3):
        for inputs, labels in batches_of_epoch(task, 8, epoch):
            optimiser.zero_grad()
            loss = -alpha * functional.cross_entropy(model(inputs), labels)
            for name, parameter in model.named_parameters():
                moved = parameter - start[name]
                loss = loss + beta * (fisher[name] * moved * moved).sum() + gamma * (moved * moved).sum()
            loss.backward()
            optimiser.step()
    method = get_method("PBU", alpha=alpha, beta=beta, gamma=gamma, epochs=3, learning_rate=1e-3, batch_size=8)
    outcome = method.forget(mlp, request_20, context)
    for name, parameter in outcome.trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights(model)[name], atol=1e-5, rtol=1e-4)
    assert outcome.cost.trained_records == 20 * 9 + 20 * 3


def test_jit(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    """The released loop: a sum over the batch of |f(x) - f(x')| / |x - x'|, mean over draws; x' is clamped."""
    task = make_task("JiT", mlp, request_20, context)
    model = copy.deepcopy(mlp.model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    with global_rng(task.seed, "epoch", 0):
        for x, _ in batches_of_epoch(task, 8, 0):
            out = model(x)
            loss = torch.tensor(0.0)
            for _ in range(4):
                moved = torch.clamp(x + torch.randn(x.size()) * 0.5, min=x.min(), max=x.max())
                with torch.no_grad():
                    other = model(moved)
                in_norm = torch.linalg.vector_norm(x.view(len(x), -1) - moved.view(len(x), -1), dim=1)
                loss = loss + (torch.linalg.vector_norm(out - other, dim=1) / in_norm).sum()
            optimiser.zero_grad()
            (loss / 4).backward()
            optimiser.step()
    outcome = get_method("JiT", draws=4, learning_rate=0.01, batch_size=8).forget(mlp, request_20, context)
    for name, parameter in outcome.trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights(model)[name], atol=1e-6, rtol=1e-5)
    assert outcome.cost.trained_records == 20
    assert outcome.cost.forward_records == 80


def test_jit_of_constant_inputs_is_zero() -> None:
    x = torch.ones(3, 4)
    found = jit.measure_sensitivity(nn.Linear(4, 2), x, [torch.randn(3, 4)], 0.5)
    assert found.item() == 0.0


def test_the_loss_of_l2ul() -> None:
    torch.manual_seed(0)
    model, loss = nn.Linear(5, 3), nn.CrossEntropyLoss()
    forget, adversaries = torch.randn(4, 5), torch.randn(7, 5)
    labels, targets = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 1, 2, 0, 1])
    total = len(forget) + len(adversaries)
    expected = -loss(model(forget), labels) * (4 / total) + loss(model(adversaries), targets) * (7 / total)
    torch.testing.assert_close(l2ul.measure_loss(model, adversaries, targets, forget, labels), expected)


@pytest.mark.parametrize("network", ["mlp", "dense"])
@pytest.mark.parametrize("legacy", [False, True])
def test_the_importance_of_l2ul(
    legacy: bool, network: str, request_20: ForgetRequest, context: Context, request: pytest.FixtureRequest
) -> None:
    """MAS by loops: |d |f(x)|^2 / d theta| of each record; released: |d mean |f(x)|| of each batch, in training."""
    mlp = request.getfixturevalue(network)  # `dense` has BatchNorm
    task = make_task("L2UL", mlp, request_20, context)
    batches = list(task.make_batches(task.forget_rows, 8).in_order())
    model = copy.deepcopy(mlp.model).train(legacy)
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, _ in batches:
        for part in [x] if legacy else x.split(1):
            out = model(part)
            value = torch.norm(out, p=2, dim=1).mean() if legacy else (out**2).sum()
            grads = torch.autograd.grad(value, list(parameters.values()))
            for name, gradient in zip(total, grads, strict=True):
                total[name] += gradient.abs() * len(part) / 20
    measure = l2ul.measure_batch_importance if legacy else l2ul.measure_importance
    given = copy.deepcopy(mlp.model).eval()
    found = measure(given, batches)
    assert not given.training
    for key, value in given.state_dict().items():
        assert torch.equal(value, mlp.model.state_dict()[key]), key
    for name, tensor in total.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-4)
        scaled = l2ul.scale_importance(found)[name]
        torch.testing.assert_close(
            scaled, (tensor - tensor.min()) / (tensor.max() - tensor.min()), atol=1e-5, rtol=1e-4
        )


def test_l2ul_steps(mlp: Trained, request_20: ForgetRequest, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of examples an epoch and three of D_f, in turn; SGD with momentum, decay and the regulariser."""
    found: dict[str, Any] = {}
    attack = l2ul.L2UL._attack

    def keep(self: l2ul.L2UL, task: Task) -> Records:
        found["others"] = attack(self, task)
        return found["others"]

    monkeypatch.setattr(l2ul.L2UL, "_attack", keep)
    method = get_method(
        "L2UL", examples=2, attack_steps=2, epochs=3, batch_size=8, example_batch_size=24, learning_rate=0.05,
        importance_weight=3.0,
    )  # fmt: skip
    outcome = method.forget(mlp, request_20, context)
    assert len(outcome.history) == 6
    assert "correct" not in outcome.history[-1].get("stopped", "")
    task = make_task("L2UL", mlp, request_20, context)
    model = copy.deepcopy(mlp.model)
    start = weights(model)
    forgotten = list(task.make_batches(task.forget_rows, 8).in_order())
    importance = l2ul.scale_importance(l2ul.measure_importance(model, forgotten))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    others, sizes = found["others"], (24, 16)
    for step in range(6):
        order = epoch_order(others.keys, task.seed, step // 2)
        rows = order[:24] if step % 2 == 0 else order[24:]
        batch = Batches(others, rows, batch_size=sizes[step % 2])
        ((x, targets),) = batch.epoch(task.seed, step)
        forget_x, forget_y = forgotten[step % 3]
        optimiser.zero_grad()
        loss = l2ul.measure_loss(model, x, targets, forget_x, forget_y)
        for name, parameter in model.named_parameters():
            loss = loss + 0.5 * 3.0 * ((1 - importance[name]) * (parameter - start[name]) ** 2).sum()
        loss.backward()
        optimiser.step()
    for name, parameter in outcome.trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights(model)[name], atol=1e-5, rtol=1e-4)


def test_l2ul_ends_when_all_is_misclassified(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    method = get_method("L2UL", examples=1, attack_steps=1, epochs=200, learning_rate=0.1, importance_weight=0.0)
    outcome = method.forget(mlp, request_20, context)
    assert [entry["forget_correct"] for entry in outcome.history][-1] == 0
    assert all(entry["forget_correct"] for entry in outcome.history[:-1])
    assert len(outcome.history) < 200


# ---- adversarial examples


def test_examples_are_near_and_taken_for_their_targets(dense: Trained, digits: Records) -> None:
    model = copy.deepcopy(dense.model).eval()
    x = torch.from_numpy(digits.features[:30]).float() / 255
    y = torch.from_numpy(digits.labels[:30])
    generator = torch.Generator().manual_seed(0)
    targets = adversarial.draw_targets(y, 10, generator)
    assert not (targets == y).any()
    made = adversarial.perturb_towards(
        model, x, targets, radius=3.0, step=0.1, steps=60, generator=generator, bounds=(0.0, 1.0)
    )
    sizes = torch.linalg.vector_norm((made - x).flatten(1), dim=1)
    assert float(sizes.max()) <= 3.0 + 1e-5
    assert float(made.min()) >= 0.0
    assert float(made.max()) <= 1.0
    hits = (model(made).argmax(1) == targets).float().mean()
    assert hits > 0.8
    assert (model(x).argmax(1) == targets).float().mean() < 0.2
    assert all(parameter.grad is None for parameter in model.parameters())


def test_targets_are_uniform_over_the_other_classes() -> None:
    labels = torch.arange(4).repeat(3000)
    targets = adversarial.draw_targets(labels, 4, torch.Generator().manual_seed(0))
    counts = torch.bincount((targets - labels) % 4, minlength=4)
    assert counts[0] == 0
    assert all(abs(int(count) - 4000) < 300 for count in counts[1:])


def test_targets_of_the_released_code() -> None:
    """(rand.long() * K + K) // 2 is K // 2 wherever the draw is the label: also where that is the label."""
    labels = torch.arange(4).repeat(1000)
    drawn = adversarial.draw_released_targets(labels, 4, torch.Generator().manual_seed(0))
    for label in range(4):
        counts = torch.bincount(drawn[labels == label], minlength=4) / 1000
        expected = torch.full((4,), 0.25)
        if label != 2:
            expected[label], expected[2] = 0.0, 0.5
        torch.testing.assert_close(counts, expected, atol=0.06, rtol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_pixels_of_examples_stay_in_their_range(
    legacy: bool, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """Images are uint8, and their examples in [0, 1]; legacy draws its own targets."""
    task = make_task("L2UL", dense, request_20, context)
    others = get_method("L2UL", examples=6, attack_steps=3, attack_step=2.0, legacy=legacy)._attack(task)
    assert others.features is not None
    assert float(others.features.min()) == 0.0
    assert float(others.features.max()) == 1.0
    true = np.tile(context.records.labels[task.forget_rows], 6)  # one batch of 20 records, six times
    own = set(true[others.labels == true].tolist())
    assert own <= ({5} if legacy else set())


def test_discrete_features_are_refused(cpu: Runtime) -> None:
    import linear_models as linear

    records, split = linear.draw_records()
    features = records.features.copy()
    features[:, 2] = features[:, 2] > 0
    import dataclasses

    table = dataclasses.replace(records, features=features)
    trained = linear.make_trained(table, split, linear.fit_softmax(*linear.arrays(table, split.retain), 3))
    request = ForgetRequest(split.retain[:3])
    with pytest.raises(MethodError, match="1 of 5 columns have only two values, such as number 2"):
        get_method("L2UL").forget(trained, request, Context(table, cpu))
    assert get_method("L2UL").unsupported_reason(trained.model, records) is None
    for discrete in (np.where(features[:, 2] > 0, 1.7, -0.4), np.round(3 * records.features[:, 2])):
        scaled = (
            records.features.copy()
        )  # a category that was standardised; codes 0, 1, 2, ... among numbers are numbers
        scaled[:, 2] = discrete
        refused = adversarial.explain_discrete(dataclasses.replace(records, features=scaled.astype(np.float32)))
        assert (refused is not None) == (len(np.unique(discrete)) == 2)
    whole = np.round(3 * records.features)
    assert "integers" in adversarial.explain_discrete(dataclasses.replace(records, features=whole))[0]
    features[:, 2] = 1.0  # constant: every example would have another value, but no category is left
    assert adversarial.explain_discrete(dataclasses.replace(records, features=features)) is None


@pytest.mark.parametrize("name", ["PBU", "JiT", "L2UL"])
def test_re_estimated_statistics_are_refused(name: str) -> None:
    with pytest.raises(MethodError, match="read D_r"):
        get_method(name, batch_norm="re-estimate")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PBU", {"alpha": -1.0}), ("PBU", {"gamma": float("inf")}), ("PBU", {"batch_size": 0}), ("JiT", {"draws": 0}),
        ("JiT", {"sigma": 0.0}), ("L2UL", {"examples": 0}), ("L2UL", {"attack_radius": 0.0}),
        ("L2UL", {"momentum": 1.0}), ("PGU", {"offset": 0.0}), ("PGU", {"last_rate": 0.0}),
        ("Warnecke-1", {"tau": -1.0}),
        ("Warnecke-2", {"steps": 0}), ("NTK", {"tolerance": 0.0}), ("NTK", {"weight_decay": 0.0}),
        ("mixed-privacy", {"core_fraction": 1.0}), ("mixed-privacy", {"sums": "stored"}),
    ],
)  # fmt: skip
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError) as caught:
        get_method(name, **options)
    assert next(iter(options)) in str(caught.value)
