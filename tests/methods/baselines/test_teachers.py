"""NegGrad+, SCRUB, Bad Teacher, DELETE and SalUn against plain PyTorch on the same batches."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import plain_training as plain
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.training import Runtime

KINDS = ["dense", "sparse", "mlp"]


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def sets(trained: Trained, request: ForgetRequest) -> tuple[list[str], list[str]]:
    """Ids of D_r and D_f, in the order of the split."""
    forget = request.record_ids.tolist()
    return [i for i in trained.split.retain.tolist() if i not in set(forget)], forget


def cycle(records: Records, ids: list[str], size: int, seed: int) -> Iterator[plain.Batch]:
    """Batches of a set that is read again, each time in another order."""
    number = 0
    while True:
        yield from plain.batches_of(records, ids, size, seed, number)
        number += 1


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("frozen", [False, True])
def test_neggrad_plus(
    trained: Trained, frozen: bool, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    retain, forget = sets(trained, request_20)
    seed = plain.method_seed(1, "NegGrad+")
    model, masks = plain.copy_of(trained), plain.masks_of(trained)
    optimiser = plain.sgd(model, 0.02)
    for epoch in range(2):
        other = cycle(digits, forget, 16, derive(seed, "partner", epoch))

        def loss(x: torch.Tensor, y: torch.Tensor, other: Iterator[plain.Batch] = other) -> torch.Tensor:
            first = F.cross_entropy(model(x), y)
            fx, fy = next(other)
            return 0.9 * first - (1 - 0.9) * F.cross_entropy(model(fx), fy)

        plain.train_by_hand(
            model, optimiser, plain.batches_of(digits, retain, 16, seed, epoch), loss, masks, frozen=frozen
        )
    options = {"epochs": 2, "learning_rate": 0.02, "batch_size": 16, "alpha": 0.9}
    method = get_method("NegGrad+", batch_norm="frozen" if frozen else "train", **options)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 0.0)
    steps = -(-len(retain) // 16)
    cycles, rest = divmod(steps, 2)  # 20 records: batches of 16 and of 4
    assert outcome.cost.trained_records == 2 * (len(retain) + cycles * 20 + rest * 16)


def distil(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence in the code of SCRUB."""
    p, q = F.softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    return (p * (p.log() - q)).sum() * temperature**2 / len(student)


def scrub_by_hand(trained: Trained, digits: Records, request: ForgetRequest, **o: Any) -> list[nn.Module]:
    """The states after each epoch."""
    retain, forget = sets(trained, request)
    seed, number = plain.method_seed(1, "SCRUB"), 0
    model, teacher, masks = plain.copy_of(trained), plain.copy_of(trained).eval(), plain.masks_of(trained)
    optimiser: torch.optim.Optimizer = plain.sgd(model, o["rate"])
    if o.get("adam"):
        optimiser = torch.optim.Adam(model.parameters(), lr=o["rate"], weight_decay=5e-4)

    def leave(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -distil(model(x), teacher(x).detach(), o["temperature"])

    def keep(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        return 0.99 * F.cross_entropy(logits, y) + 0.1 * distil(logits, teacher(x).detach(), o["temperature"])

    states = []
    for epoch in range(o["epochs"]):
        if epoch < o["max_epochs"]:
            plain.train_by_hand(model, optimiser, plain.batches_of(digits, forget, 8, seed, number), leave, masks)
            number += 1
        plain.train_by_hand(model, optimiser, plain.batches_of(digits, retain, 32, seed, number), keep, masks)
        number += 1
        states.append(copy.deepcopy(model))
    return states


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("adam", [False, True])
def test_scrub(trained: Trained, adam: bool, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """Both passes share their momentum; the first `max_epochs` epochs have a maximising pass."""
    rate = 1e-3 if adam else 0.01
    expected = scrub_by_hand(
        trained, digits, request_20, epochs=3, max_epochs=2, temperature=2.0, rate=rate, adam=adam
    )  # fmt: skip
    method = get_method(
        "SCRUB", epochs=3, max_epochs=2, learning_rate=rate, batch_size=32, forget_batch_size=8, temperature=2.0,
        alpha=0.1, rewind=False, optimiser="adam" if adam else "sgd",
    )  # fmt: skip
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, expected[-1], 2e-5 if adam else 1e-6)
    retain, forget = sets(trained, request_20)
    assert outcome.cost.trained_records == 3 * len(retain) + 2 * len(forget) == outcome.cost.forward_records
    assert [entry["pass"] for entry in outcome.history] == ["max", "min", "max", "min", "min"]


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1])
def test_scrub_rewinds_to_the_epoch_whose_forget_error_is_closest(
    rate: float, mlp: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    states = scrub_by_hand(mlp, digits, request_20, epochs=6, max_epochs=4, temperature=4.0, rate=rate)
    forget = request_20.record_ids.tolist()
    labels = dict(zip(digits.record_ids.tolist(), digits.labels.tolist(), strict=True))
    reference = 0.0  # class by class, on the last state
    for index in {labels[i] for i in forget}:
        same = [i for i in mlp.split.validation.tolist() if labels[i] == index]
        part = sum(labels[i] == index for i in forget) / len(forget)
        reference += part * plain.error_of(states[-1], digits, same)
    errors = [plain.error_of(state, digits, forget) for state in states]
    distances = [abs(error - reference) for error in errors]
    best = max(number for number, distance in enumerate(distances) if distance == min(distances))
    method = get_method(
        "SCRUB", epochs=6, max_epochs=4, learning_rate=rate, batch_size=32, forget_batch_size=8, alpha=0.1
    )
    outcome = method.forget(mlp, request_20, context)
    assert f"rewound to epoch {best + 1} of 6" in outcome.trained.provenance.history[-1]
    plain.assert_same(outcome.trained.model, states[best], 1e-5)
    measured = [entry["forget_error"] for entry in outcome.history if "forget_error" in entry]
    assert measured == pytest.approx(errors)
    assert len(set(errors)) > 1, "the epochs do not differ: the test shows nothing"


def test_some_rewinding_goes_back(mlp: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """Control of the test above: the last epoch is not always chosen."""
    lines = []
    for rate in (0.02, 0.05, 0.1):
        method = get_method(
            "SCRUB", epochs=6, max_epochs=4, learning_rate=rate, batch_size=32, forget_batch_size=8, alpha=0.1
        )
        lines.append(method.forget(mlp, request_20, context).trained.provenance.history[-1])
    assert any("rewound to epoch 6" not in line for line in lines)


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("legacy", [False, True])
def test_bad_teacher(
    trained: Trained, legacy: bool, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    retain, forget = sets(trained, request_20)
    seed = plain.method_seed(1, "Bad Teacher")
    rows = digits.rows(retain)
    keys = mix(digits.keys[rows], derive(derive(seed, "sample", "retain"), "order", 0))
    part = [retain[i] for i in sorted(np.argsort(keys, kind="stable")[: round(0.3 * len(retain))])]
    flags = dataclasses.replace(digits, labels=np.isin(digits.record_ids, forget).astype(np.int64))
    good = plain.copy_of(trained).eval()
    bad = Architecture.from_json(trained.provenance.architecture).build(derive(seed, "teacher")).eval()
    model, masks = plain.copy_of(trained), plain.masks_of(trained)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = torch.where(flag[:, None] == 1, F.softmax(bad(x) / 2, 1), F.softmax(good(x) / 2, 1))
        each = (target * (target.log() - F.log_softmax(model(x) / 2, 1))).sum(1)
        return each.mean() / (10 if legacy else 1)

    for epoch in range(2):
        plain.train_by_hand(model, optimiser, plain.batches_of(flags, part + forget, 32, seed, epoch), loss, masks)
    method = get_method("Bad Teacher", epochs=2, learning_rate=1e-3, batch_size=32, temperature=2.0, legacy=legacy)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 2e-5)
    assert outcome.cost.trained_records == outcome.cost.forward_records == 2 * (len(part) + len(forget))


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_delete(trained: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """The target has no mass on the true class, and the original's proportions elsewhere."""
    forget = request_20.record_ids.tolist()
    seed = plain.method_seed(1, "DELETE")
    model, teacher, masks = plain.copy_of(trained), plain.copy_of(trained).eval(), plain.masks_of(trained)
    optimiser = plain.sgd(model, 0.01)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = F.softmax(teacher(x) / 2, 1)
            target[torch.arange(len(y)), y] = 0
            target = target / target.sum(1, keepdim=True)
        log_q = F.log_softmax(model(x), 1)
        parts = torch.where(target > 0, target * (target.clamp(min=1e-38).log() - log_q), 0.0)
        return parts.sum(1).mean()

    for epoch in range(3):
        plain.train_by_hand(model, optimiser, plain.batches_of(digits, forget, 8, seed, epoch), loss, masks)
    method = get_method("DELETE", epochs=3, learning_rate=0.01, batch_size=8, temperature=2.0)
    outcome = method.forget(trained, request_20, context)
    plain.assert_same(outcome.trained.model, model, 1e-6)
    assert outcome.cost.trained_records == outcome.cost.forward_records == 3 * len(forget)


@pytest.mark.parametrize("trained", KINDS, indirect=True)
@pytest.mark.parametrize("source", ["gradient", "random"])
def test_the_mask_of_salun(
    trained: Trained, source: str, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """A fifth of the kept weights may move, over all parameters together; the control has as many."""
    model = plain.copy_of(trained).eval()
    x, y = plain.all_inputs(digits, request_20.record_ids.tolist())
    F.cross_entropy(model.double()(x.double()), y).backward()
    kept = {
        n: plain.masks_of(trained).get(n, torch.ones_like(p, dtype=torch.bool)) for n, p in model.named_parameters()
    }
    total = sum(int(k.sum()) for k in kept.values())
    values = torch.cat([p.grad.abs()[kept[n]] for n, p in model.named_parameters()])
    threshold = values.sort(descending=True).values[round(0.2 * total) - 1]
    method = get_method("SalUn", epochs=2, batch_size=32, learning_rate=0.1, saliency=0.2, saliency_source=source)
    after = dict(method.forget(trained, request_20, context).trained.model.named_parameters())
    moved, salient = 0, 0
    for name, before in trained.model.named_parameters():
        changed = after[name].detach() != before.detach()
        moved += int(changed.sum())
        grad = dict(model.named_parameters())[name].grad.abs()
        salient += int((changed & (grad >= threshold * (1 - 1e-4))).sum())
    assert 0.9 * round(0.2 * total) < moved <= round(0.2 * total)
    assert (salient == moved) == (source == "gradient")
    if source == "random":
        assert salient < 0.7 * moved


@pytest.mark.parametrize("trained", ["mlp", "sparse"], indirect=True)
def test_the_labels_and_the_order_of_the_code_of_salun(
    trained: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    retain, forget = sets(trained, request_20)
    seed = plain.method_seed(1, "SalUn")
    model, masks = plain.copy_of(trained), plain.masks_of(trained)
    optimiser = plain.sgd(model, 0.02)
    rows = digits.rows(forget)
    for epoch in range(2):
        labels = digits.labels.copy()
        labels[rows] = (mix(digits.keys[rows], derive(seed, "labels", epoch)) % np.uint64(10)).astype(np.int64)
        drawn = dataclasses.replace(digits, labels=labels)
        first = Batches(drawn, rows, batch_size=16).epoch(seed, 2 * epoch)
        plain.train_by_hand(model, optimiser, first, lambda x, y: F.cross_entropy(model(x), y), masks)
        second = plain.batches_of(digits, retain, 16, seed, 2 * epoch + 1)
        plain.train_by_hand(model, optimiser, second, lambda x, y: F.cross_entropy(model(x), y), masks)
    method = get_method("SalUn", epochs=2, batch_size=16, learning_rate=0.02, saliency=1.0, legacy=True)
    plain.assert_same(method.forget(trained, request_20, context).trained.model, model, 0.0)
