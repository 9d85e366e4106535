"""Adopted models compute what the user's own PyTorch code and the long form of expunge compute, bit for bit."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from own_networks import SmallNet, inputs, make_mlp
from plain_training import batches_of, method_seed
from torch import nn

import expunge
from expunge.core.errors import ExpungeError, RequestError
from expunge.core.hashing import hash_tensors
from expunge.training import Context, Runtime

FORGET = [3, 14, 15, 92, 65]


def bits(model: nn.Module) -> str:
    return hash_tensors(model.state_dict())


def test_logits_of_an_adopted_model_are_the_users_own(own_cnn, digits):
    model = copy.deepcopy(own_cnn).eval()
    adopted = expunge.adopt(model, digits, train=range(300))
    x, _ = inputs(digits, range(100))
    with torch.no_grad():
        assert torch.equal(adopted.trained.model(x), model(x))
        assert torch.equal(adopted.model(x), model(x))
    assert type(adopted.model) is SmallNet
    assert adopted.model.note == "mine"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_ft_is_a_plain_loop(own_cnn, digits, kind):
    """The user's model, copied and trained by hand on the other rows, in the documented order."""
    adopted = expunge.adopt(own_cnn, digits, train=range(300))
    result = adopted.forget(
        FORGET, "FT", epochs=2, batch_size=64, learning_rate=0.01, optimiser=kind, weight_decay=5e-4, seed=7
    )  # fmt: skip
    model = copy.deepcopy(own_cnn).train()
    if kind == "sgd":
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    else:
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=5e-4)
    retained = [digits.record_ids[row] for row in range(300) if row not in FORGET]
    for epoch in range(2):
        for x, y in batches_of(digits, sorted(retained), 64, method_seed(7, "FT"), epoch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    assert bits(result.model) == bits(model)
    assert bits(result.model) != bits(own_cnn)


@pytest.mark.parametrize(
    ("method", "options"),
    [("FT", {"epochs": 1}), ("GA", {"epochs": 1}), ("l1-sparse", {"epochs": 1}), ("Retrain", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_facade_is_the_long_form(adopted, digits, method, options):
    result = adopted.forget(FORGET, method, seed=3, **options)
    request = expunge.forget_ids(digits, adopted.split, digits.record_ids[FORGET])
    context = Context(digits, Runtime("cpu"), seed=3)
    seeds = {"seeds": "new"} if method == "Retrain" else {}
    outcome = expunge.get_method(method, **options, **seeds).forget(adopted.trained, request, context)
    assert result.trained.hash == outcome.trained.hash
    assert result.outcome.rewrote == outcome.rewrote
    assert (result.guarantee, result.carried) == (outcome.guarantee, outcome.carried)
    assert result.split.hash == outcome.trained.split.hash


def test_scores_are_those_of_the_long_form(adopted, digits):
    result, truth = adopted.forget(FORGET, "FT", epochs=1), adopted.forget(FORGET, "Retrain")
    found = result.evaluate(reference=truth, svc_ratios=("1:2",), scores=("KL on D_f",))
    expected = expunge.evaluate(
        result.trained, result.outcome.request, digits, reference=truth.trained, cost=result.outcome.cost,
        runtime=Runtime("cpu"), svc_ratios=("1:2",), scores=("KL on D_f",),
    )  # fmt: skip
    costs = {"RTE": truth.outcome.cost.seconds, "Passes": truth.outcome.cost.passes}  # a `Trained` has no cost
    expected = [dataclasses.replace(s, reference=costs.get(s.name, s.reference)) for s in expected]
    assert [s.to_json() for s in found] == [s.to_json() for s in expected]
    assert found["UA"].reference is not None
    assert not found.missing
    alone = result.evaluate()
    assert [s.value for s in alone] == [s.value for s in expunge.evaluate(
        result.trained, result.outcome.request, digits, cost=result.outcome.cost, runtime=Runtime("cpu"))]  # fmt: skip
    before = adopted.evaluate(FORGET, reference=truth)
    assert before["UA"].value == expunge.evaluate(
        adopted.trained, result.outcome.request, digits, runtime=Runtime("cpu")
    )["UA"].value  # fmt: skip


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("method", "options"), [("FT", {"epochs": 1}), ("SSD", {}), ("Retrain", {})], ids=str)
def test_gradients_that_the_caller_switched_off(adopted, method, options, switch):
    with switch():
        result = adopted.forget(FORGET, method, **options)
    assert result.trained.hash == adopted.forget(FORGET, method, **options).trained.hash


def test_a_chain_of_requests_and_its_reference(adopted, digits):
    result2 = adopted.forget([3, 4], "FT", epochs=1).forget([5, 6], "FT", epochs=1)
    truth = adopted.forget([3, 4], "Retrain")
    truth2 = truth.forget([5, 6], "Retrain")
    at_once = adopted.forget([3, 4, 5, 6], "Retrain")
    scores = result2.evaluate(reference=truth2)
    assert scores.about["retain"] == truth2.evaluate().about["retain"]
    assert {row.name: row.value for row in result2.evaluate(reference=at_once)} == {
        row.name: row.value for row in result2.evaluate(reference=at_once.trained)
    }
    with pytest.raises(RequestError, match="retain"):
        result2.evaluate(reference=adopted.forget([5, 6], "Retrain"))  # it still has 3 and 4
    with pytest.raises(RequestError):
        result2.evaluate(reference=truth)
    assert len(truth2.split.forget) == 4
    assert truth2.guarantee == "exact"
    assert len(digits) == 480


def test_nothing_of_the_user_changes(own_cnn, digits):
    model = copy.deepcopy(own_cnn)
    model.head.weight.requires_grad_(False)
    model.train()
    model.features[1].eval()
    features, flags = digits.features.copy(), [module.training for module in model.modules()]
    before, objects = bits(model), [id(p) for p in model.parameters()]
    with pytest.warns(UserWarning, match="240 parameters are frozen"):
        adopted = expunge.adopt(
            model, digits, train=range(300), test=range(300, 340), factory=SmallNet,
            recipe={"epochs": 1, "learning_rate": 0.01},
        )  # fmt: skip
    result = adopted.forget(FORGET, "FT", epochs=1)
    adopted.forget(FORGET, "Retrain")
    adopted.prune(0.5, scope="layer")
    result.evaluate()
    assert bits(model) == before
    assert [id(p) for p in model.parameters()] == objects
    assert all(p.grad is None for p in model.parameters())
    assert [module.training for module in model.modules()] == flags
    assert np.array_equal(digits.features, features)
    assert [module.training for module in result.model.modules()] == flags
    assert not result.model.head.weight.requires_grad
    assert torch.equal(result.model.head.weight, model.head.weight)  # frozen
    assert result.model.features[0].weight.data_ptr() != result.trained.model.features[0].weight.data_ptr()


def test_a_result_is_independent_of_what_the_user_does_next(digits, own_mlp):
    model = copy.deepcopy(own_mlp)
    adopted = expunge.adopt(model, digits, train=range(300), factory=make_mlp)
    before = adopted.trained.hash
    with torch.no_grad():
        model[1].weight.zero_()
    assert adopted.trained.hash == before
    assert bits(adopted.model) == bits(own_mlp)


def test_corrections_are_those_of_the_long_form(adopted, digits):
    new = {3: 7, 14: "2"}
    result = adopted.correct(new, "FT", epochs=1)
    request = expunge.correct_labels(digits, adopted.split, {str(digits.record_ids[r]): v for r, v in new.items()})
    expected = expunge.get_method("FT", epochs=1).forget(adopted.trained, request, Context(digits, Runtime("cpu")))
    assert result.trained.hash == expected.trained.hash
    assert "Corrected" in result.evaluate()
    with pytest.raises(ExpungeError, match="new labels, or rows"):
        adopted.correct()
    with pytest.raises(RequestError, match="never trained on"):
        adopted.correct({301: 2})
    with pytest.raises(RequestError, match="cannot correct"):
        adopted.correct(new, "GA")


def test_pruning_is_that_of_the_long_form(adopted, digits):
    sparse = adopted.prune(0.8)
    pruning = expunge.Pruning(0.8, schedule="one-shot", layers=("conv", "linear"))
    expected = expunge.prune(adopted.trained, pruning, Context(digits, Runtime("cpu")))
    assert sparse.trained.hash == expected.hash
    result = sparse.forget(FORGET, "FT", epochs=1)
    assert result.trained.mask is not None
    for name, kept in result.trained.mask.kept.items():
        pruned = result.model.state_dict()[name][~kept]
        assert not pruned.any()
        assert not torch.signbit(pruned).any()
    with pytest.raises(ExpungeError, match="no option"):
        adopted.prune(0.8, criterio="magnitude")


def test_an_assumed_recipe_is_said_everywhere(own_mlp, digits, tmp_path):
    adopted = expunge.adopt(own_mlp, digits, train=range(300), test=range(300, 390), factory=make_mlp)
    assert adopted.trained.provenance.recipe == {}
    with pytest.warns(UserWarning, match="recipe assumed: none was declared"):
        truth = adopted.forget(FORGET, "Retrain")
    assert truth.outcome.to_json()["provenance"]["assumed"] == ["recipe"]
    assert truth.trained.provenance.recipe == expunge.get_recipe("one-cycle").to_json()
    result = adopted.forget(FORGET, "FT", epochs=1)
    assert "assumed" not in result.outcome.to_json()["provenance"]
    scores = result.evaluate(reference=truth)
    assert "recipe-assumed" in [warning.code for warning in scores.warnings]
    page = result.report(tmp_path / "report.html", reference=truth).read_text()
    assert "The recipe of the original is not known" in page
    loaded = expunge.load_trained(truth.save(tmp_path / "truth"))
    assert loaded.provenance.assumed == ("recipe",)
    declared = dataclasses.replace(adopted.trained.provenance, recipe=expunge.get_recipe("one-cycle").to_json())
    expected = expunge.get_method("Retrain", seeds="new").forget(
        dataclasses.replace(adopted.trained, provenance=declared),
        truth.outcome.request,
        Context(digits, Runtime("cpu")),
    )
    assert expected.trained.hash == truth.trained.hash
