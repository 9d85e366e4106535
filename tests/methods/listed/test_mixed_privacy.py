"""mixed-privacy: exact forgetting of user records, the closed form, what is refused, and the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.cli.app import run
from expunge.core.errors import MethodError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data import correct_labels
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.methods.listed.mixed_privacy import STATE, MixedPrivacy, _solve, _sum
from expunge.models import Architecture, architecture, load_trained, save_trained
from expunge.training import Recipe, Runtime

METHOD = MixedPrivacy(core_fraction=0.4)
RECIPE = Recipe(name="test", epochs=3, batch_size=32, learning_rate=0.05)


@pytest.fixture(scope="module")
def network(digits: Records) -> Architecture:
    return Architecture("small-cnn", {"widths": (6, 8)}, digits.input_shape, digits.classes)


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=3)


@pytest.fixture(scope="module")
def fitted(digits: Records, digits_split: Split, network: Architecture, context: Context) -> Trained:
    return METHOD.fit(digits, digits_split, network, recipe=RECIPE, context=context)


def user_ids(digits: Records, split: Split) -> np.ndarray:
    return split.retain[~METHOD._is_core(digits, split.retain.tolist())]


def test_forgetting_gives_the_model_that_was_never_trained_on_the_records(
    fitted: Trained, digits: Records, digits_split: Split, network: Architecture, context: Context
) -> None:
    """Bit for bit; twice in sequence."""
    user = user_ids(digits, digits_split)
    forgotten, split = fitted, digits_split
    for ids in (user[:15], user[20:22]):
        outcome = METHOD.forget(forgotten, ForgetRequest(ids), context)
        forgotten = outcome.trained
        split = dataclasses.replace(split, retain=split.retain[~np.isin(split.retain, ids)])
    never = METHOD.fit(digits, split, network, recipe=RECIPE, context=context)
    assert forgotten.hash == never.hash != fitted.hash
    for name, tensor in never.state[STATE].items():
        assert torch.equal(forgotten.state[STATE][name], tensor), name
    assert outcome.guarantee == "exact"
    assert outcome.carried == ()
    assert outcome.cost.trained_records == 0
    assert outcome.cost.forward_records == len(user) - 17


@pytest.mark.parametrize("kind", ["removal", "labels"])
def test_subtracted_sums_agree(
    kind: str, fitted: Trained, digits: Records, digits_split: Split, context: Context
) -> None:
    user = user_ids(digits, digits_split)[:15]
    request = ForgetRequest(user)
    if kind == "labels":
        old = digits.labels[digits.rows(user)]
        request = correct_labels(
            digits, digits_split, {str(i): int(y + 1) % 10 for i, y in zip(user, old, strict=True)}
        )
    exact = METHOD.forget(fitted, request, context)
    quick = dataclasses.replace(METHOD, sums="subtracted").forget(fitted, request, context)
    for name, weight in quick.trained.model.named_parameters():
        torch.testing.assert_close(weight, exact.trained.model.get_parameter(name), atol=1e-6, rtol=1e-5)
    assert quick.guarantee == "empirical"
    assert quick.cost.forward_records == 15 * (1 if kind == "removal" else 2)
    moved = fitted.model.classifier.weight - exact.trained.model.classifier.weight
    assert moved.abs().max().item() > 1e-4


def test_the_last_layer_is_the_ridge_solution(fitted: Trained, digits: Records, digits_split: Split) -> None:
    """By augmented least squares, instead of the normal equations."""
    model, state = fitted.model.eval(), fitted.state[STATE]
    rows = digits.rows(np.sort(user_ids(digits, digits_split)))
    x = torch.from_numpy(digits.features[rows]).float() / 255
    inputs: list[torch.Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda layer, given: inputs.append(given[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    phi = torch.cat([inputs[0], torch.ones(len(rows), 1)], 1).double().numpy()
    core = np.hstack([state["core weight"].numpy(), state["core bias"].numpy()[:, None]]).astype(np.float64)
    residual = 5 * np.eye(10)[digits.labels[rows]] - phi @ core.T
    penalty = np.sqrt(1e-3 * len(rows)) * np.eye(phi.shape[1])
    change, *_ = np.linalg.lstsq(
        np.vstack([phi, penalty]), np.vstack([residual, np.zeros((len(penalty), 10))]), rcond=None
    )
    found = np.hstack([model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()[:, None]])
    np.testing.assert_allclose(found, core + change.T, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_the_ridge_solution_with_other_options_and_without_a_bias(bias: bool, digits: Records) -> None:
    """The target and mu as given, and a column of ones only where the layer has a bias; by augmented least squares."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 10, bias=bias)
    core = {name: value.detach().clone() for name, value in layer.named_parameters()}
    sums = _sum(nn.Sequential(nn.Flatten(), layer), layer, Batches(digits, np.arange(90), batch_size=40), 2.0)
    _solve(layer, core, sums, 0.3)
    phi = digits.features[:90].reshape(90, 64) / 255.0
    theta = core["weight"].double().numpy()
    if bias:
        phi, theta = np.hstack([phi, np.ones((90, 1))]), np.hstack([theta, core["bias"].double().numpy()[:, None]])
    residual = 2 * np.eye(10)[digits.labels[:90]] - phi @ theta.T
    penalty = np.sqrt(0.3 * 90) * np.eye(phi.shape[1])
    change, *_ = np.linalg.lstsq(
        np.vstack([phi, penalty]), np.vstack([residual, np.zeros((len(penalty), 10))]), rcond=None
    )
    np.testing.assert_allclose(layer.weight.detach().numpy(), (theta + change.T)[:, :64], atol=1e-5)
    if bias:
        np.testing.assert_allclose(layer.bias.detach().numpy(), (theta + change.T)[:, 64], atol=1e-5)


def test_core_records_do_not_depend_on_user_records(
    fitted: Trained, digits: Records, digits_split: Split, network: Architecture, context: Context
) -> None:
    """Everything but the last layer is that of training on the core alone."""
    user = user_ids(digits, digits_split)
    fewer = dataclasses.replace(digits_split, retain=np.setdiff1d(digits_split.retain, user[5:]))
    other = METHOD.fit(digits, fewer, network, recipe=RECIPE, context=context)
    for name, tensor in fitted.model.state_dict().items():
        same = torch.equal(tensor, other.model.state_dict()[name])
        assert same == (not name.startswith("classifier")), name


def test_normalisation_and_order_do_not_depend_on_user_records(
    digits: Records, digits_split: Split, context: Context
) -> None:
    """Statistics of the inputs are those of the core; records in another order give the same bits."""
    measured = architecture("small-cnn", digits, digits_split, normalise="training", widths=(6, 8))
    assert measured.normalisation is not None
    assert measured.normalisation.origin == "training records"
    user = user_ids(digits, digits_split)
    fewer = dataclasses.replace(digits_split, retain=np.setdiff1d(digits_split.retain, user[5:]))
    backwards = dataclasses.replace(digits_split, retain=digits_split.retain[::-1])
    one = dataclasses.replace(RECIPE, epochs=1)
    found = [METHOD.fit(digits, split, measured, recipe=one, context=context)
             for split in (digits_split, fewer, backwards)]  # fmt: skip
    statistics = [each.provenance.architecture["normalisation"] for each in found]
    assert statistics[0] == statistics[1] == statistics[2]
    assert statistics[0]["mean"] != list(measured.normalisation.mean)
    assert found[0].hash == found[2].hash != found[1].hash
    for name in ("gram", "moment"):
        assert torch.equal(found[0].state[STATE][name], found[2].state[STATE][name]), name


def test_it_can_be_saved_and_loaded(fitted: Trained, digits: Records, digits_split: Split, context: Context,
                                    tmp_path: Path) -> None:  # fmt: skip
    save_trained(fitted, tmp_path / "model")
    loaded = load_trained(tmp_path / "model")
    request = ForgetRequest(user_ids(digits, digits_split)[:4])
    assert METHOD.forget(loaded, request, context).trained.hash == METHOD.forget(fitted, request, context).trained.hash


def test_what_is_refused(
    fitted: Trained, dense: Trained, sparse: Trained, digits: Records, digits_split: Split, context: Context
) -> None:
    core = np.setdiff1d(digits_split.retain, user_ids(digits, digits_split))
    with pytest.raises(RequestError, match="the record is core"):
        METHOD.forget(fitted, ForgetRequest(core[:2]), context)
    request = ForgetRequest(user_ids(digits, digits_split)[:2])
    with pytest.raises(MethodError, match="was not trained by this method"):
        METHOD.forget(dense, request, context)
    with pytest.raises(MethodError, match="cannot be pruned"):
        METHOD.forget(sparse, request, context)
    with pytest.raises(MethodError, match=r"trained with core_fraction, regularisation, target = \[0.4"):
        get_method("mixed-privacy", core_fraction=0.4, target=1.0).forget(fitted, request, context)
    with pytest.raises(RequestError, match="no user record would be retained"):
        METHOD.forget(fitted, ForgetRequest(user_ids(digits, digits_split)), context)

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.layer(x.flatten(1))

    assert METHOD.unsupported_reason(Doubled(), digits) is not None
    assert METHOD.unsupported_reason(fitted.model, digits) is None


def test_by_command_line(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
data: {source: digits}
split: {limit: 120}
model: {name: mlp, options: {widths: [6]}}
training: {recipe: one-cycle, epochs: 2}
forget: {by: ids, ids: [IDS]}
method: {name: mixed-privacy}
runtime: {device: cpu}
"""
    import expunge

    records = expunge.load_records("digits")
    split = expunge.make_split(records, limit=120)
    ids = split.retain[~MixedPrivacy()._is_core(records, split.retain.tolist())][:3]
    Path("run.yaml").write_text(text.replace("IDS", ", ".join(ids)))
    assert run(["check", "run.yaml"]) == 0
    assert run(["forget", "run.yaml", "output=out"]) == 0, capsys.readouterr().err
    outcome = json.loads(next(Path("out").rglob("outcome.json")).read_text())
    assert outcome["method"]["guarantee"] == "exact"
    assert run(["check", "run.yaml", "sparsity.sparsity=0.5"]) == 1
    assert "cannot be pruned" in capsys.readouterr().out
