"""PGU: spans of inputs against direct computations; retained outputs do not change where the span is full."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import linear_models as linear
import numpy as np
import plain_training as plain
import pytest
import torch
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.listed import pgu
from expunge.methods.listed.pgu import measure_loss
from expunge.methods.listed.spans import Projection, find_span, read_rows, sum_products
from expunge.methods.task import Task
from expunge.sparsity import Pruning, prune
from expunge.training import Runtime, predict_logits
from expunge.training.epochs.steps import EpochCheck


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(4, 6, (2, 3), dilation=2, groups=2, bias=False),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False),
        nn.Conv1d(4, 6, 3, padding=2, groups=2, bias=False),
        nn.Conv3d(4, 2, 2, bias=False),
        nn.Linear(4, 3, bias=False),
    ],
    ids=str,
)
def test_the_rows_of_a_layer_times_its_weight_are_its_output(layer: nn.Module) -> None:
    torch.manual_seed(0)
    sizes = {nn.Conv1d: (9,), nn.Conv2d: (9, 8), nn.Conv3d: (3, 4, 3)}.get(type(layer))
    x = torch.randn(5, 4, *sizes) if sizes else torch.randn(5, 7, 4)
    rows, out = read_rows(layer, x), layer(x)
    flat = layer.weight.reshape(len(rows), len(layer.weight) // len(rows), -1)
    product = torch.einsum("gnd,god->gon", rows, flat).reshape(len(layer.weight), -1)  # out channels x rows
    expected = out.movedim(1, 0) if sizes else out.movedim(-1, 0)
    torch.testing.assert_close(product, expected.reshape(len(layer.weight), -1), atol=1e-5, rtol=1e-5)


def test_a_span_has_the_leading_singular_vectors() -> None:
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, values, right = torch.linalg.svd(x, full_matrices=False)
    squares = values.square().cumsum(0) / values.square().sum()
    for kept in (0.3, 0.7, 0.95, 1.0):
        count = int((squares < kept - 1e-12).sum()) + 1
        basis = find_span(x.T @ x, kept)
        assert basis.shape[1] == min(count, 6)
        torch.testing.assert_close(basis @ basis.T, right[: basis.shape[1]].T @ right[: basis.shape[1]])
    legacy = values.cumsum(0) / values.sum()
    assert find_span(x.T @ x, 0.7, of_singular_values=True).shape[1] == int((legacy <= 0.7).sum())
    assert find_span(torch.zeros(3, 3, dtype=torch.float64), 1.0).shape == (3, 0)
    assert find_span(x[:2].T @ x[:2], 1.0).shape == (6, 2), "rounding counts as a direction"


def test_masked_rows_are_projected_within_their_inputs() -> None:
    torch.manual_seed(2)
    x = torch.randn(4, 6, dtype=torch.float64)
    kept = torch.rand(5, 6) < 0.8
    gradient = torch.randn(5, 6)
    found = Projection.make((x.T @ x)[None], kept, 1.0, of_singular_values=False).apply(gradient).double()
    assert not found[~kept].any()
    torch.testing.assert_close(x @ found.T, torch.zeros(4, 5, dtype=torch.float64), atol=1e-6, rtol=0)
    for row in range(5):  # the nearest such row
        inner = x[:, kept[row]]
        expected = gradient[row, kept[row]].double()
        expected = expected - inner.T @ torch.linalg.pinv(inner.T) @ expected
        torch.testing.assert_close(found[row, kept[row]], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sparse", [False, True])
def test_with_the_full_span_retained_outputs_stay_while_the_weights_move(sparse: bool, cpu: Runtime) -> None:
    """40 inputs and fewer retained records: a linear layer has free directions, and D_f is not in the span."""
    records, split = linear.draw_records(count=40, features=40, seed=3)
    theta = linear.fit_softmax(*linear.arrays(records, split.retain), 3, decay=1e-3)
    kept = np.random.default_rng(0).random((3, 40)) < 0.9 if sparse else None
    if kept is not None:
        theta[:, :-1][~kept] = 0.0
    trained = linear.make_trained(records, split, theta, kept)
    request = ForgetRequest(split.retain[:3])
    method = get_method("PGU", kept=1.0, epochs=5, learning_rate=0.5, last_rate=0.5)
    outcome = method.forget(trained, request, Context(records, cpu))
    rows = records.rows(outcome.trained.split.retain)
    x = records.features[rows].reshape(len(rows), -1).astype(np.float64)
    old, new = (linear.get_theta(m).astype(np.float64) for m in (trained, outcome.trained))
    # in float64: outputs of 7 in float32 are rounded by more than 1e-6, differently on each kind of CPU
    assert np.abs(x @ (old - new)[:, :-1].T + (old - new)[:, -1]).max() < 1e-6
    assert np.abs(old - new).max() > 0.01
    forgotten = records.rows(request.record_ids)
    before, after = (predict_logits(m.model, records, forgotten, runtime=cpu) for m in (trained, outcome.trained))
    assert float((before - after).abs().max()) > 0.1, "the outputs on D_f did not change"


def test_a_network_with_convolutions_keeps_what_its_layers_compute(
    dense: Trained, digits: Records, cpu: Runtime
) -> None:
    """With few retained records, so that the layers have free directions."""
    split = dataclasses.replace(dense.split, retain=dense.split.retain[:12], non_members=())
    small = dataclasses.replace(dense, split=split)
    for model in (
        small,
        prune(small, Pruning(sparsity=0.3, layers=("conv", "linear"), schedule="one-shot"), Context(digits, cpu)),
    ):
        request = ForgetRequest(split.retain[:3])
        outcome = get_method("PGU", kept=1.0, epochs=3).forget(model, request, Context(digits, cpu))
        rows = digits.rows(outcome.trained.split.retain)
        before, after = (predict_logits(m.model, digits, rows, runtime=cpu) for m in (model, outcome.trained))
        assert outcome.trained.hash != model.hash
        torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-5)
        changed = {change.name for change in outcome.changes if change.changed}
        assert changed <= set(sum_products(model.model, [(torch.rand(2, 1, 8, 8), torch.zeros(2))]))


def test_the_loss_is_that_of_the_released_code() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)
    first = 0.0
    for row, label in enumerate(labels.tolist()):
        first += -torch.log(1 - (p[row][label] - 0.05))
    second = -torch.sum(-p * torch.log(p + 1e-15), dim=1).mean()
    torch.testing.assert_close(measure_loss(logits, labels, 0.05, 0.2), first / 6 + 0.2 * second)


def test_it_ends_when_validation_records_are_predicted_better(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    method = get_method("PGU", kept=0.3, epochs=60, learning_rate=0.2, last_rate=0.2)
    history = method.forget(dense, request_20, Context(digits, cpu)).history
    assert 1 <= len(history) < 60
    below = [entry["forget_accuracy"] < entry["validation_accuracy"] for entry in history]
    assert below == [False] * (len(history) - 1) + [True]


@pytest.mark.parametrize(
    ("accuracies", "epochs", "result"),
    [
        ([(100, 90), (95, 90), (88, 90)], 2, 2),  # 2 is nearer than 5
        ([(100, 90), (95, 90), (82, 90)], 2, 1),  # 8 is not: back to the epoch before
        ([(100, 90), (95, 90), (85, 90)], 2, 1),  # nor is 5
        ([(100, 90), (70, 90)], 1, 0),  # back to the original
        ([(80, 90)], 0, 0),  # no step at all
        ([(100, 90), (95, 90), (91, 90), (91, 90)], 3, 3),  # to the last epoch
    ],
)
def test_legacy_ends_as_the_released_code(
    accuracies: list[tuple[float, float]], epochs: int, result: int, mlp: Trained, digits: Records,
    request_20: ForgetRequest, cpu: Runtime, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Accuracies on D_f and on validation records, of the original and after each epoch with steps."""
    states: list[dict[str, torch.Tensor]] = []

    def compare(self: pgu.PGU, task: Task, model: nn.Module) -> EpochCheck:
        forget, validation = accuracies[len(states)]
        states.append(copy.deepcopy(model.state_dict()))
        entry = {"forget_accuracy": forget, "validation_accuracy": validation}
        return EpochCheck("worse" if forget < validation else "", entry)

    monkeypatch.setattr(pgu.PGU, "_compare", compare)
    outcome = get_method("PGU", kept=0.5, epochs=4, learning_rate=0.2, legacy=True).forget(
        mlp, request_20, Context(digits, cpu, seed=1)
    )
    assert len(outcome.history) == epochs
    for name, tensor in outcome.trained.model.state_dict().items():
        assert torch.equal(tensor, states[result][name]), name
    assert len(states) < 2 or not torch.equal(*(state["hidden.0.weight"] for state in states[:2]))
    assert ("the epoch before was nearer" in outcome.trained.provenance.history[-1]) == (result < epochs)


def test_equal_accuracies_do_not_end_it(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(model: nn.Module, records: Records, rows: np.ndarray, **_: Any) -> torch.Tensor:
        return torch.eye(10)[torch.from_numpy(records.labels[rows])]

    monkeypatch.setattr(pgu, "predict_logits", predict)  # all records are predicted correctly
    history = get_method("PGU", kept=0.5, epochs=3).forget(mlp, request_20, Context(digits, cpu)).history
    assert len(history) == 3
    assert history[0]["forget_accuracy"] == history[0]["validation_accuracy"] == 100.0


def test_equal_rows_of_a_mask_share_a_basis() -> None:
    kept = torch.tensor([[True, False, True]] * 3 + [[True, True, True]])
    found = Projection.make(torch.eye(3, dtype=torch.float64)[None], kept, 0.5, of_singular_values=False)
    assert found.bases[0] is found.bases[1] is found.bases[2] is not found.bases[3]


def test_a_mask_that_is_not_named_leaves_a_layer_dense(digits: Records) -> None:
    mask = Mask({"other": torch.ones(1, dtype=torch.bool)}, MaskProvenance("drawn"))
    from expunge.methods.listed.spans import make_projections

    found = make_projections({"weight": torch.eye(3, dtype=torch.float64)[None]}, mask, 1.0)
    assert found["weight"].kept is None


def test_splits_without_validation_do_not_end_early(cpu: Runtime) -> None:
    records, split = linear.draw_records(features=8)
    theta = linear.fit_softmax(*linear.arrays(records, split.retain), 3)
    alone = dataclasses.replace(split, validation=())
    trained: Trained = linear.make_trained(records, alone, theta)
    request = ForgetRequest(alone.retain[:4])
    history = get_method("PGU", kept=0.5, epochs=4).forget(trained, request, Context(records, cpu)).history
    assert len(history) == 4
    assert isinstance(alone, Split)


def test_the_loss_of_pgu_is_computed_in_float32() -> None:
    """Also where the network computes in bf16."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = measure_loss(logits, labels, 0.05, 0.2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, measure_loss(logits.float(), labels, 0.05, 0.2), rtol=0, atol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_steps_of_pgu(legacy: bool, mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    """A plain loop: the spans by singular values of the inputs, the loss from its formula, the falling rate."""
    forget = request_20.record_ids.tolist()
    retain = [i for i in mlp.split.retain.tolist() if i not in set(forget)]
    model = copy.deepcopy(mlp.model)
    hidden, last = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0].detach()}))
        for name, layer in (("hidden", hidden), ("last", last))
    ]
    with torch.no_grad():
        model(plain.all_inputs(digits, retain)[0])
    for handle in handles:
        handle.remove()
    bases = {}
    for name, rows in inputs.items():
        _, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
        sizes = values if legacy else values.square()
        sums = sizes.cumsum(0) / sizes.sum()
        bases[name] = right[: int((sums <= 0.8).sum()) if legacy else int((sums < 0.8).sum()) + 1].T
        assert 0 < bases[name].shape[1] < rows.shape[1]
    steps = range(1, 4) if legacy else range(4)  # the released loop makes no step in its first epoch
    for number, epoch in enumerate(steps):
        rate = 0.08 * (0.02 / 0.08) ** (epoch / 4)
        for x, y in plain.batches_of(digits, forget, 8, plain.method_seed(1, "PGU"), number):
            p = model(x).softmax(1)
            true = p[torch.arange(len(y)), y]
            loss = -(1 - (true - 0.1)).log().mean() + 0.3 * (p * p.log()).sum(1).mean()
            gradients = torch.autograd.grad(loss, [hidden.weight, last.weight])
            with torch.no_grad():
                for layer, basis, gradient in zip((hidden, last), bases.values(), gradients, strict=True):
                    free = gradient.double() - gradient.double() @ basis @ basis.T
                    layer.weight -= rate * free.float()
    method = get_method(
        "PGU", kept=0.8, epochs=4, batch_size=8, learning_rate=0.08, last_rate=0.02, entropy_weight=0.3, offset=0.1,
        legacy=legacy,
    )  # fmt: skip
    outcome = method.forget(mlp, request_20, Context(digits, cpu, seed=1))
    assert len(outcome.history) == len(steps), "it stopped before"
    assert float((hidden.weight - dict(mlp.model.named_parameters())["hidden.0.weight"]).abs().max()) > 1e-4
    plain.assert_same(outcome.trained.model, model, 1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [("PGU", {"epochs": 2}), ("MSG", {"epochs": 1, "layers": ("linear",), "slow": 0.0})]
)
def test_the_gradients_of_the_returned_model_are_its_own(
    name: str, options: dict[str, Any], mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """What changes the gradients during unlearning does not change those of training afterwards."""
    found = get_method(name, **options).forget(mlp, request_20, Context(digits, cpu, seed=1)).trained.model
    x, y = plain.all_inputs(digits, request_20.record_ids.tolist())
    fresh = copy.deepcopy(mlp.model)
    fresh.load_state_dict(found.state_dict())
    for model in (found, fresh):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
    for (key, one), other in zip(found.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
