"""Methods against closed forms and direct computations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from expunge.core.errors import MethodError
from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.l1_sparse import L1Sparse
from expunge.models import Architecture, architecture
from expunge.training import Recipe, Runtime, predict_logits, train
from expunge.training.batchnorm import re_estimate


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def parts(trained: Trained) -> tuple[str, str]:
    """Hashes of weights and of buffers."""
    model = trained.model
    return hash_tensors(dict(model.named_parameters())), hash_tensors(dict(model.named_buffers()))


def inputs(records: Records, ids: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = records.rows(ids)
    x = torch.from_numpy(np.array(records.features)[rows]).float()
    return (x / 255 if records.features.dtype == np.uint8 else x), torch.from_numpy(records.labels[rows])


# ---- identities


@pytest.mark.parametrize("name", ["FT", "GA", "l1-sparse"])
@pytest.mark.parametrize("model_name", ["dense", "sparse"])
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_no_epochs_is_the_identity(
    name: str,
    model_name: str,
    batch_norm: str,
    request: pytest.FixtureRequest,
    request_20: ForgetRequest,
    context: Context,
) -> None:
    trained = request.getfixturevalue(model_name)
    outcome = get_method(name, epochs=0, batch_norm=batch_norm).forget(trained, request_20, context)
    assert outcome.trained.hash == trained.hash
    assert outcome.rewrote == ()
    assert outcome.cost.passes == 0
    assert set(outcome.dropped) <= {"rewind_checkpoint", "pruning_scores"}


@pytest.mark.parametrize("name", ["FT", "GA", "l1-sparse"])
@pytest.mark.parametrize("model_name", ["dense", "sparse"])
@pytest.mark.parametrize("step", ["subgradient", "proximal"])
def test_a_rate_of_zero_does_not_change_the_weights(
    name: str, model_name: str, step: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    """Nor the BatchNorm buffers if they are frozen; otherwise forward passes update them, as reported."""
    trained = request.getfixturevalue(model_name)
    options: dict[str, Any] = {"step": step} if name == "l1-sparse" else {}
    frozen = get_method(name, learning_rate=0.0, epochs=2, batch_norm="frozen", **options)
    outcome = frozen.forget(trained, request_20, context)
    assert outcome.trained.hash == trained.hash
    assert outcome.rewrote == ()
    updating = get_method(name, learning_rate=0.0, epochs=2, batch_norm="train", **options)
    outcome = updating.forget(trained, request_20, context)
    assert parts(outcome.trained)[0] == parts(trained)[0]
    assert parts(outcome.trained)[1] != parts(trained)[1]
    assert outcome.rewrote == ("batch_norm",)
    assert "weights" in outcome.carried


def test_a_rate_of_zero_without_batch_norm(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    for name in ("FT", "GA", "l1-sparse"):
        assert get_method(name, learning_rate=0.0).forget(mlp, request_20, context).trained.hash == mlp.hash


# ---- Retrain


@pytest.mark.parametrize("normalise", ["none", "training"])
def test_retrain_is_training_without_the_records(
    digits: Records, digits_split: Split, cpu: Runtime, request_20: ForgetRequest, context: Context, normalise: str
) -> None:
    """Bit for bit, with the order, initial weights and normalisation statistics of a run without D_f."""
    plan = Recipe(epochs=3, batch_size=32, augment="crop-flip", select="best", lr_schedule="one-cycle", warmup=0.3)

    def original(split: Split) -> Trained:
        network = architecture("small-cnn", digits, split, normalise=normalise, widths=(6, 8))
        return train(digits, split, network, recipe=plan, seed=8, runtime=cpu)

    never = dataclasses.replace(digits_split, retain=request_20.apply(digits_split).retain)
    dense = original(digits_split)
    outcome = get_method("Retrain").forget(dense, request_20, context)
    assert outcome.trained.hash == original(never).hash
    assert outcome.trained.hash != dense.hash
    assert (outcome.guarantee, outcome.carried, outcome.dropped) == ("exact", (), ("rewind_checkpoint",))
    # training on all records gives the original
    retrained = train(
        digits, digits_split, Architecture.from_json(dense.provenance.architecture), recipe=plan, seed=8, runtime=cpu
    )
    assert retrained.hash == dense.hash


def test_retrain_with_a_new_seed_is_training_with_that_seed(
    dense: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("Retrain", seeds="new").forget(dense, request_20, context)
    never = dataclasses.replace(dense.split, retain=outcome.trained.split.retain)
    network = Architecture.from_json(dense.provenance.architecture)
    plan = Recipe(**dense.provenance.recipe)
    assert outcome.trained.hash == train(digits, never, network, recipe=plan, seed=1, runtime=cpu).hash


def test_retrain_of_a_sparse_model_reports_that_the_mask_remembers(
    sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("Retrain").forget(sparse, request_20, context)
    assert (outcome.guarantee, outcome.carried) == ("empirical", ("mask",))


def test_retrain_needs_a_recipe_and_seeds(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    for missing, message in (
        ({"recipe": {}}, "recipe"),
        ({"seeds": {}}, "seeds"),
        ({"seeds": {"initial": 1}}, "seeds"),
    ):
        incomplete = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, **missing))
        with pytest.raises(MethodError, match=message):
            get_method("Retrain").forget(incomplete, request_20, context)
    incomplete = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, seeds={}))
    assert get_method("Retrain", seeds="new").forget(incomplete, request_20, context).guarantee == "exact"


# ---- one step against a direct computation


def one_batch(records: Records, ids: Any, size: int = 512) -> dict[str, Any]:
    assert len(ids) <= size
    return {"epochs": 1, "batch_size": size, "momentum": 0.0, "weight_decay": 0.0, "batch_norm": "frozen"}


def gradient(trained: Trained, records: Records, ids: Any, extra: float = 0.0) -> dict[str, torch.Tensor]:
    """Gradient in float64 of the mean cross-entropy in evaluation mode, plus `extra` times the l1 norm."""
    import copy

    model = copy.deepcopy(trained.model).double().eval()
    x, y = inputs(records, ids)
    loss = functional.cross_entropy(model(x.double()), y)
    if extra:
        loss = loss + extra * sum(p.abs().sum() for p in model.parameters())
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("model_name", ["dense", "sparse"])
def test_ga_steps_along_the_gradient(
    model_name: str, request: pytest.FixtureRequest, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    trained: Trained = request.getfixturevalue(model_name)
    options = one_batch(digits, request_20.record_ids)
    outcome = get_method("GA", learning_rate=0.5, **options).forget(trained, request_20, context)
    gradients = gradient(trained, digits, request_20.record_ids)
    after = dict(outcome.trained.model.named_parameters())
    for name, before in trained.model.named_parameters():
        step = 0.5 * gradients[name]
        if trained.mask is not None and name in trained.mask.kept:
            step = step * trained.mask.kept[name]
        torch.testing.assert_close(after[name].detach().double(), before.detach().double() + step, rtol=1e-4, atol=1e-6)
    assert any(s.abs().max() > 1e-3 for s in gradients.values()), "the gradient is too small for this test"
    before_loss = functional.cross_entropy(
        predict_logits(trained.model, digits, digits.rows(request_20.record_ids)),
        inputs(digits, request_20.record_ids)[1],
    )
    after_loss = functional.cross_entropy(
        predict_logits(outcome.trained.model, digits, digits.rows(request_20.record_ids)),
        inputs(digits, request_20.record_ids)[1],
    )
    assert after_loss > before_loss


def test_ga_reads_only_the_forget_records(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """Changing all other records gives the same bits; changing one forget record does not."""
    method = get_method("GA", epochs=2, learning_rate=0.01)
    expected = method.forget(dense, request_20, context).trained.hash
    records = context.records
    forget = records.rows(request_20.record_ids)
    others = np.setdiff1d(np.arange(len(records)), forget)
    for rows, same in ((others, True), (forget[:1], False)):
        features = np.array(records.features)
        features[rows] = 255 - features[rows]
        changed = dataclasses.replace(context, records=dataclasses.replace(records, features=features))
        assert (method.forget(dense, request_20, changed).trained.hash == expected) == same


@pytest.mark.parametrize("name", ["Retrain", "FT", "l1-sparse"])
def test_other_methods_do_not_read_the_forget_records(
    name: str, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """Nor the test and non-member records: changing them gives the same bits."""
    options: dict[str, Any] = {} if name == "Retrain" else {"epochs": 2, "batch_norm": "re-estimate"}
    method = get_method(name, **options)
    expected = method.forget(dense, request_20, context).trained.hash
    records = context.records
    features = np.array(records.features)
    for ids in (request_20.record_ids, dense.split.test, dense.split.non_members):
        features[records.rows(ids)] = 77
    changed = dataclasses.replace(context, records=dataclasses.replace(records, features=features))
    assert method.forget(dense, request_20, changed).trained.hash == expected
    features[records.rows(method.forget(dense, request_20, context).trained.split.retain[:1])] = 77
    changed = dataclasses.replace(context, records=dataclasses.replace(records, features=features))
    assert method.forget(dense, request_20, changed).trained.hash != expected


def test_the_subgradient_step(dense: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """theta - rate * (grad CE on D_r + gamma sign(theta)), over all parameters."""
    retain = request_20.apply(dense.split).retain
    options = one_batch(digits, retain)
    outcome = get_method("l1-sparse", learning_rate=0.1, gamma=0.02, **options).forget(dense, request_20, context)
    gradients = gradient(dense, digits, retain)
    after = dict(outcome.trained.model.named_parameters())
    for name, before in dense.model.named_parameters():
        w = before.detach().double()
        expected = w - 0.1 * (gradients[name] + 0.02 * w.sign())
        torch.testing.assert_close(after[name].detach().double(), expected, rtol=1e-4, atol=1e-6, msg=name)
    assert outcome.trained.mask is None


def test_the_proximal_step(dense: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """Soft threshold of the plain step on convolutions and linear layers; BatchNorm and biases take the plain step."""
    retain = request_20.apply(dense.split).retain
    options = one_batch(digits, retain)
    method = get_method("l1-sparse", step="proximal", learning_rate=0.1, gamma=0.5, **options)
    outcome = method.forget(dense, request_20, context)
    gradients, mask = gradient(dense, digits, retain), outcome.trained.mask
    assert mask is not None
    thresholded = {"blocks.0.0.weight", "blocks.1.0.weight", "classifier.weight"}
    assert set(mask.kept) == thresholded
    for name, before in dense.model.named_parameters():
        after = outcome.trained.model.get_parameter(name).detach()
        plain = before.detach().double() - 0.1 * gradients[name]
        soft = torch.sign(plain) * torch.clamp(plain.abs() - 0.05, min=0)
        expected = soft if name in thresholded else plain
        torch.testing.assert_close(after.double(), expected, rtol=1e-4, atol=1e-6, msg=name)
        if name in thresholded:
            is_clear = (plain.abs() - 0.05).abs() > 1e-5
            assert torch.equal((after != 0)[is_clear], (soft != 0)[is_clear])
            assert not torch.signbit(after[after == 0]).any(), "a zero is +0.0"
            assert torch.equal(mask.kept[name], after != 0)
    assert 0.05 < mask.sparsity < 0.95
    assert outcome.rewrote == ("weights", "mask")


def test_proximal_zeros_are_exact(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    """With gamma = 0 no weight is pruned; a larger gamma prunes more, and the mask is reported as remembering."""
    kept = []
    for gamma in (0.0, 1.0, 5.0):
        method = get_method("l1-sparse", step="proximal", gamma=gamma, epochs=2, batch_size=64)
        outcome = method.forget(sparse, request_20, context)
        assert outcome.trained.mask is not None
        kept.append(outcome.trained.mask.kept_count)
        assert "mask" in outcome.carried
    assert sparse.mask is not None
    assert sparse.mask.kept_count == kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize(
    ("epochs", "no_l1", "expected"),
    [
        (5, 0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        (5, 1, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (4, 2, [1.0, 0.5, 0.0, 0.0]),
        (3, 3, [1.0, 1.0, 1.0]),
        (1, 0, [1.0]),
    ],
)
def test_gamma_decays_as_in_the_paper(epochs: int, no_l1: int, expected: list[float]) -> None:
    method = L1Sparse(epochs=epochs, no_l1_epochs=no_l1, gamma=2e-3)
    assert [method.gamma_at(t) for t in range(epochs)] == pytest.approx([2e-3 * e for e in expected])


def test_without_gamma_l1_sparse_is_ft(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """Up to the seed, which is derived from the method's name: one full batch has no order."""
    retain = request_20.apply(dense.split).retain
    options = {**one_batch(context.records, retain), "augment": "none"}
    a = get_method("l1-sparse", gamma=0.0, **options).forget(dense, request_20, context)
    b = get_method("FT", **options).forget(dense, request_20, context)
    for x, y in zip(a.trained.model.parameters(), b.trained.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


def test_re_estimated_buffers_do_not_depend_on_the_old_ones(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """They are the averages of one pass over D_r with the new weights."""
    import copy

    options = {"epochs": 1, "batch_norm": "re-estimate", "batch_size": 64}
    outcome = get_method("FT", **options).forget(dense, request_20, context)
    copied = copy.deepcopy(outcome.trained.model)
    copied.blocks[0][1].running_mean.fill_(3.0)
    rows = context.records.rows(outcome.trained.split.retain)
    re_estimate(copied, Batches(context.records, rows, batch_size=256).in_order(), context.runtime)
    assert hash_tensors(dict(copied.named_buffers())) == parts(outcome.trained)[1] != parts(dense)[1]
    assert outcome.cost.forward_records == len(rows)
