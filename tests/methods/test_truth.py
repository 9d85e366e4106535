"""Methods against closed forms, other solvers and hand computations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from expunge.core.errors import FileError, Interrupted, MethodError
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.l1_sparse import L1Sparse
from expunge.models import Architecture, architecture
from expunge.sparsity import prune
from expunge.training import Recipe, Runtime, loop, predict_logits, train
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
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_no_epochs_is_the_identity(
    name: str, kind: str, batch_norm: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    trained = request.getfixturevalue(kind)
    outcome = get_method(name, epochs=0, batch_norm=batch_norm).forget(trained, request_20, context)
    assert outcome.trained.hash == trained.hash
    assert outcome.rewrote == ()
    assert outcome.cost.passes == 0
    assert set(outcome.dropped) <= {"rewind_checkpoint", "pruning_scores"}


@pytest.mark.parametrize("name", ["FT", "GA", "l1-sparse"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("step", ["subgradient", "proximal"])
def test_a_rate_of_zero_is_the_identity_on_weights(
    name: str, kind: str, step: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    """On the BatchNorm buffers too if they are frozen; else every forward pass moves them, and the outcome says so."""
    trained = request.getfixturevalue(kind)
    options: dict[str, Any] = {"step": step} if name == "l1-sparse" else {}
    frozen = get_method(name, learning_rate=0.0, epochs=2, batch_norm="frozen", **options)
    outcome = frozen.forget(trained, request_20, context)
    assert outcome.trained.hash == trained.hash
    assert outcome.rewrote == ()
    moving = get_method(name, learning_rate=0.0, epochs=2, batch_norm="train", **options)
    outcome = moving.forget(trained, request_20, context)
    assert parts(outcome.trained)[0] == parts(trained)[0]
    assert parts(outcome.trained)[1] != parts(trained)[1]
    assert outcome.rewrote == ("batch_norm",)
    assert "weights" in outcome.remembers


def test_a_rate_of_zero_without_batch_norm(mlp: Trained, request_20: ForgetRequest, context: Context) -> None:
    for name in ("FT", "GA", "l1-sparse"):
        assert get_method(name, learning_rate=0.0).forget(mlp, request_20, context).trained.hash == mlp.hash


# ---- Retrain


@pytest.mark.parametrize("normalise", ["none", "training"])
def test_retrain_is_training_without_the_records(
    digits: Records, digits_split: Split, cpu: Runtime, request_20: ForgetRequest, context: Context, normalise: str
) -> None:
    """Bit for bit: the order, the initial weights and the input constants are those of a run that never saw D_f."""
    plan = Recipe(epochs=3, batch_size=32, augment="crop-flip", select="best", schedule="one-cycle", warmup=0.3)

    def original(split: Split) -> Trained:
        network = architecture("small-cnn", digits, split, normalise=normalise, widths=(6, 8))
        return train(digits, split, network, recipe=plan, seed=8, runtime=cpu)

    never = dataclasses.replace(digits_split, retain=request_20.apply(digits_split).retain)
    dense = original(digits_split)
    outcome = get_method("Retrain").forget(dense, request_20, context)
    assert outcome.trained.hash == original(never).hash
    assert outcome.trained.hash != dense.hash
    assert (outcome.guarantee, outcome.remembers, outcome.dropped) == ("exact", (), ("rewind_checkpoint",))
    # ... and that of a request for nothing is the original
    nothing = train(
        digits, digits_split, Architecture.from_json(dense.provenance.architecture), recipe=plan, seed=8, runtime=cpu
    )
    assert nothing.hash == dense.hash


def test_retrain_with_a_new_seed_is_training_with_that_seed(
    dense: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("Retrain", same_seed=False).forget(dense, request_20, context)
    never = dataclasses.replace(dense.split, retain=outcome.trained.split.retain)
    network = Architecture.from_json(dense.provenance.architecture)
    plan = Recipe(**dense.provenance.recipe)
    assert outcome.trained.hash == train(digits, never, network, recipe=plan, seed=1, runtime=cpu).hash


def test_retrain_of_a_sparse_model_says_that_the_mask_remembers(
    sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("Retrain").forget(sparse, request_20, context)
    assert (outcome.guarantee, outcome.remembers) == ("empirical", ("mask",))


def test_retrain_needs_a_recipe_and_seeds(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    for lack, message in (({"recipe": {}}, "recipe"), ({"seeds": {}}, "seeds"), ({"seeds": {"initial": 1}}, "seeds")):
        poor = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, **lack))
        with pytest.raises(MethodError, match=message):
            get_method("Retrain").forget(poor, request_20, context)
    poor = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, seeds={}))
    assert get_method("Retrain", same_seed=False).forget(poor, request_20, context).guarantee == "exact"


# ---- one step by hand


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


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_ga_steps_up_the_gradient(
    kind: str, request: pytest.FixtureRequest, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    trained: Trained = request.getfixturevalue(kind)
    options = one_batch(digits, request_20.record_ids)
    outcome = get_method("GA", learning_rate=0.5, **options).forget(trained, request_20, context)
    slope = gradient(trained, digits, request_20.record_ids)
    after = dict(outcome.trained.model.named_parameters())
    for name, before in trained.model.named_parameters():
        step = 0.5 * slope[name]
        if trained.mask is not None and name in trained.mask.alive:
            step = step * trained.mask.alive[name]
        torch.testing.assert_close(after[name].detach().double(), before.detach().double() + step, rtol=1e-4, atol=1e-6)
    assert any(s.abs().max() > 1e-3 for s in slope.values()), "a step of nothing proves nothing"
    before_loss = functional.cross_entropy(
        predict_logits(trained.model, digits, digits.rows(request_20.record_ids)),
        inputs(digits, request_20.record_ids)[1],
    )
    after_loss = functional.cross_entropy(
        predict_logits(outcome.trained.model, digits, digits.rows(request_20.record_ids)),
        inputs(digits, request_20.record_ids)[1],
    )
    assert after_loss > before_loss


def test_ga_reads_the_forget_records_alone(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """Other features for all the other records give the same bits; for one forget record they do not."""
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
def test_the_others_never_read_the_forget_records(
    name: str, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """Nor the test and unseen records: noise in their place gives the same bits."""
    options: dict[str, Any] = {} if name == "Retrain" else {"epochs": 2, "batch_norm": "re-estimate"}
    method = get_method(name, **options)
    expected = method.forget(dense, request_20, context).trained.hash
    records = context.records
    features = np.array(records.features)
    for ids in (request_20.record_ids, dense.split.test, dense.split.unseen):
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
    slope = gradient(dense, digits, retain)
    after = dict(outcome.trained.model.named_parameters())
    for name, before in dense.model.named_parameters():
        w = before.detach().double()
        expected = w - 0.1 * (slope[name] + 0.02 * w.sign())
        torch.testing.assert_close(after[name].detach().double(), expected, rtol=1e-4, atol=1e-6, msg=name)
    assert outcome.trained.mask is None


def test_the_proximal_step(dense: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    """Soft threshold of the plain step on convolutions and linear layers; BatchNorm and biases take the plain step."""
    retain = request_20.apply(dense.split).retain
    options = one_batch(digits, retain)
    method = get_method("l1-sparse", step="proximal", learning_rate=0.1, gamma=0.5, **options)
    outcome = method.forget(dense, request_20, context)
    slope, mask = gradient(dense, digits, retain), outcome.trained.mask
    assert mask is not None
    shrunk = {"blocks.0.0.weight", "blocks.1.0.weight", "classifier.weight"}
    assert set(mask.alive) == shrunk
    for name, before in dense.model.named_parameters():
        after = outcome.trained.model.get_parameter(name).detach()
        plain = before.detach().double() - 0.1 * slope[name]
        soft = torch.sign(plain) * torch.clamp(plain.abs() - 0.05, min=0)
        expected = soft if name in shrunk else plain
        torch.testing.assert_close(after.double(), expected, rtol=1e-4, atol=1e-6, msg=name)
        if name in shrunk:
            sure = (plain.abs() - 0.05).abs() > 1e-5
            assert torch.equal((after != 0)[sure], (soft != 0)[sure])
            assert not torch.signbit(after[after == 0]).any(), "a zero is +0.0"
            assert torch.equal(mask.alive[name], after != 0)
    assert 0.05 < mask.sparsity < 0.95
    assert outcome.rewrote == ("weights", "mask")


def test_proximal_zeros_are_exact(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    """With gamma = 0 nothing is shrunk; with more of it a mask only gets thinner, and it still remembers."""
    kept = []
    for gamma in (0.0, 1.0, 5.0):
        method = get_method("l1-sparse", step="proximal", gamma=gamma, epochs=2, batch_size=64)
        outcome = method.forget(sparse, request_20, context)
        assert outcome.trained.mask is not None
        kept.append(outcome.trained.mask.kept)
        assert "mask" in outcome.remembers
    assert sparse.mask is not None
    assert sparse.mask.kept == kept[0] > kept[1] > kept[2]


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
def test_gamma_falls_as_the_paper_has_it(epochs: int, no_l1: int, expected: list[float]) -> None:
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


def test_re_estimated_buffers_forget_the_past(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """They equal one pass over D_r with the new weights, and not the original's."""
    import copy

    options = {"epochs": 1, "batch_norm": "re-estimate", "batch_size": 64}
    outcome = get_method("FT", **options).forget(dense, request_20, context)
    twin = copy.deepcopy(outcome.trained.model)
    twin.blocks[0][1].running_mean.fill_(3.0)
    rows = context.records.rows(outcome.trained.split.retain)
    re_estimate(twin, Batches(context.records, rows, batch_size=256).in_order(), context.runtime)
    assert hash_tensors(dict(twin.named_buffers())) == parts(outcome.trained)[1] != parts(dense)[1]
    assert outcome.cost.forward_records == len(rows)


# ---- convergence


@pytest.fixture(scope="module")
def cancer() -> tuple[Records, Split]:
    data = load_breast_cancer()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    ids = np.array([f"p{i:03d}" for i in range(len(x))])
    records = Records("cancer", ids, data.target, ("malignant", "benign"), features=x.astype(np.float32))
    return records, Split(retain=ids[:400], forget=(), validation=(), test=ids[400:500], unseen=ids[500:])


def sklearn_optimum(x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    """Binary logistic regression with the penalty that decay of a two-row softmax amounts to.

    Two rows w1 = -w0 = v / 2: their penalty decay / 2 * (|w0|^2 + |w1|^2) is decay / 4 * |v|^2, on mean loss over n; so
    C = 2 / (n decay). The bias is a feature of ones, because weight decay spares no parameter.
    """
    ones = np.hstack([x, np.ones((len(x), 1))])
    model = LogisticRegression(C=2 / (len(x) * decay), fit_intercept=False, tol=1e-10, max_iter=10_000)
    return model.fit(ones, y).coef_[0]


def scipy_optimum(x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    """The same optimum from L-BFGS on the two-row softmax itself: w1 - w0."""
    ones = np.hstack([x, np.ones((len(x), 1))])
    hot = np.eye(2)[y]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(2, -1)
        z = ones @ w.T
        top = z.max(1, keepdims=True)
        log_p = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
        loss = -(hot * log_p).sum(1).mean() + decay / 2 * (w**2).sum()
        return loss, (((np.exp(log_p) - hot).T @ ones) / len(x) + decay * w).ravel()

    found = minimize(
        value, np.zeros(2 * ones.shape[1]), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}
    )
    w = found.x.reshape(2, -1)
    return w[1] - w[0]


def margin(trained: Trained) -> np.ndarray:
    layer = trained.model.classifier
    joined = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy()
    return joined[1] - joined[0]


def test_ft_reaches_the_retrained_optimum(cancer: tuple[Records, Split], cpu: Runtime) -> None:
    """L2-regularised logistic regression has one optimum: on D_r it does not matter where one starts."""
    records, split = cancer
    decay = 0.05
    plan = Recipe(epochs=300, batch_size=400, learning_rate=0.5, momentum=0.9, weight_decay=decay)
    network = Architecture("mlp", {"widths": ()}, records.input_shape, 2)
    original = train(records, split, network, recipe=plan, seed=0, runtime=cpu)

    def optimum(ids: Any) -> np.ndarray:
        rows = records.rows(ids)
        x, y = np.asarray(records.features, dtype=np.float64)[rows], records.labels[rows]
        theirs = sklearn_optimum(x, y, decay)
        np.testing.assert_allclose(theirs, scipy_optimum(x, y, decay), atol=1e-5)
        return theirs

    whole = optimum(split.train)
    np.testing.assert_allclose(margin(original), whole, atol=1e-4)
    request = ForgetRequest(split.retain[:60])
    context = Context(records, cpu, seed=3)
    options = {"epochs": 300, "batch_size": 400, "learning_rate": 0.5, "weight_decay": decay}
    outcome = get_method("FT", **options).forget(original, request, context)
    rest = optimum(outcome.trained.split.retain)
    np.testing.assert_allclose(margin(outcome.trained), rest, atol=1e-4)
    retrained = get_method("Retrain").forget(original, request, context)
    np.testing.assert_allclose(margin(retrained.trained), rest, atol=1e-4)
    assert np.abs(rest - whole).max() > 1e-2, "the two optima must differ, else this shows nothing"
    short = get_method("FT", **{**options, "epochs": 2}).forget(original, request, context)
    assert np.abs(margin(short.trained) - rest).max() > 1e-3, "two epochs must not suffice, else this shows nothing"


def test_masked_ft_reaches_the_optimum_of_the_features_that_are_left(
    cancer: tuple[Records, Split], cpu: Runtime
) -> None:
    """A mask that drops features is logistic regression without them."""
    records, split = cancer
    decay = 0.05
    plan = Recipe(epochs=3, batch_size=400, learning_rate=0.5, weight_decay=decay)
    network = Architecture("mlp", {"widths": ()}, records.input_shape, 2)
    alive = torch.zeros(2, 30, dtype=torch.bool)
    alive[:, ::3] = True
    original = train(records, split, network, recipe=plan, seed=0, runtime=cpu)
    mask = Mask({"classifier.weight": alive}, MaskProvenance("by hand"))
    mask.apply_(original.model)
    masked = dataclasses.replace(original, mask=mask)
    request = ForgetRequest(split.retain[:60])
    options = {"epochs": 300, "batch_size": 400, "learning_rate": 0.5, "weight_decay": decay}
    outcome = get_method("FT", **options).forget(masked, request, Context(records, cpu))
    rows = records.rows(outcome.trained.split.retain)
    x = np.asarray(records.features, dtype=np.float64)[rows][:, ::3]
    found = margin(outcome.trained)
    np.testing.assert_allclose(
        found[[*range(0, 30, 3), 30]], sklearn_optimum(x, records.labels[rows], decay), atol=1e-4
    )
    assert (np.delete(found, [*range(0, 30, 3), 30]) == 0).all()


# ---- interruption


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Retrain", {}),
        ("FT", {"epochs": 4, "batch_norm": "re-estimate"}),
        ("GA", {"epochs": 4, "batch_size": 8}),
        ("l1-sparse", {"epochs": 4, "step": "proximal", "gamma": 0.1}),
    ],
)
def test_an_interrupted_method_resumes(
    name: str,
    options: dict[str, Any],
    sparse: Trained,
    request_20: ForgetRequest,
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "time", Clock())
    method, path = get_method(name, **options), tmp_path / "c"
    expected = method.forget(sparse, request_20, context)

    def stop(label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if info["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{name} was interrupted in epoch 3"):
        method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path, progress=stop))
    assert path.exists()
    if name == "l1-sparse":
        other = get_method(name, **{**options, "gamma": 0.2})
        with pytest.raises(FileError, match="belongs to another run"):
            other.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    resumed = method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    assert resumed.trained.hash == expected.trained.hash
    assert resumed.history == expected.history
    assert not path.exists()


def test_pruned_and_retrained_have_the_same_topology(
    dense: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest, context: Context
) -> None:
    sparse = prune(dense, digits, sparsity=0.5, runtime=cpu)
    outcome = get_method("Retrain").forget(sparse, request_20, context)
    assert sparse.mask is not None
    assert outcome.trained.mask is not None
    assert outcome.trained.mask.hash() == sparse.mask.hash()
    assert sparse.mask.violations(outcome.trained.model) == {}
