"""`then` equals running the methods by hand; every method also runs inside un-pruning, and in sequences of requests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import method_contract as contract
import numpy as np
import pytest

from expunge.core.errors import MethodError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, chain, get_method, method_names
from expunge.methods.registry import method_class
from expunge.sparsity import Pruning, prune
from expunge.training import Runtime


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture(scope="module")
def regrowable(dense: Trained, digits: Records, cpu: Runtime) -> Trained:
    """A pruned model from which weights can be regrown."""
    return prune(dense, Pruning(sparsity=0.6, layers=("conv", "linear"), keep_weights=True), Context(digits, cpu))


def small(name: str, **options: Any) -> Any:
    fields = {field.name for field in dataclasses.fields(method_class(name))}
    given = {"epochs": 2, "batch_size": 16, "noise_steps": 3, "copies": 1, "samples_per_class": 5, **options}
    return get_method(name, **{key: value for key, value in given.items() if key in fields})


def by_hand(methods: list[Any], trained: Trained, request: ForgetRequest, context: Context) -> Any:
    outcomes = []
    current = trained
    for method in methods:
        outcome = method.forget(current, request, context)
        outcomes.append(outcome)
        current = dataclasses.replace(outcome.trained, split=trained.split)
    return outcomes


CHAINS = [
    ("GA", "FT"),
    ("SalUn", "SCRUB"),
    ("FT", "FT"),
    ("EU-k", "l1-sparse", "NegGrad+"),
    ("MSG", "Fanchuan"),
    ("Retrain", "CF-k"),
]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_a_chain_is_its_steps_by_hand(
    names: tuple[str, ...], model: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    trained, methods = request.getfixturevalue(model), [small(name) for name in names]
    outcomes = by_hand(methods, trained, request_20, context)
    whole = chain(*methods).forget(trained, request_20, context)
    last = outcomes[-1]
    assert whole.trained.hash == last.trained.hash
    assert whole.trained.hash not in {o.trained.hash for o in outcomes[:-1]}
    assert (whole.trained.mask is None) == (last.trained.mask is None)
    if last.trained.mask is not None:
        assert whole.trained.mask.hash() == last.trained.mask.hash()
    assert whole.cost.trained_records == sum(o.cost.trained_records for o in outcomes)
    assert whole.cost.forward_records == sum(o.cost.forward_records for o in outcomes)
    assert [(e["step"], e["epoch"]) for e in whole.history] == [
        (number + 1, entry["epoch"]) for number, o in enumerate(outcomes) for entry in o.history
    ]
    history = whole.trained.provenance.history
    assert len(history) == len(trained.provenance.history) + 1
    assert history[-1].startswith("then: ")
    assert history[-1].count("; then ") == len(names) - 1
    assert whole.guarantee == "empirical"
    assert whole.trained.split.hash == last.trained.split.hash


def test_a_chain_of_chains(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    a, b, c = small("GA"), small("RL"), small("FT")
    nested = chain(chain(a, b), c).forget(dense, request_20, context)
    assert nested.trained.hash == chain(a, b, c).forget(dense, request_20, context).trained.hash


def test_steps_as_they_are_written_in_a_configuration(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    written = get_method("then", steps=["GA", {"name": "ft", "options": {"epochs": 1, "only": ["classifier"]}}])
    expected = chain(get_method("GA"), get_method("FT", epochs=1, only=("classifier",)))
    assert written.forget(dense, request_20, context).trained.hash == (
        expected.forget(dense, request_20, context).trained.hash
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "there are no steps"),
        ([3], "a step is a name, or a mapping"),
        ([{"options": {}}], "a step is a name, or a mapping"),
        ([{"name": "FT", "epochs": 3}], "a step has a name and options"),
        (["GA", "FTT"], "did you mean 'FT'"),
        ([{"name": "FT", "options": {"epochs": -1}}], "epochs = -1"),
        ([{"name": "FT", "options": {"epoch": 1}}], "has no option 'epoch'"),
    ],
)
def test_wrong_steps(steps: list[Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        get_method("then", steps=steps)


def test_a_step_refuses_what_the_method_refuses(
    dense: Trained, request_20: ForgetRequest, digits: Records, context: Context
) -> None:
    method = get_method("then", steps=["GA", "UNSIR"])
    with pytest.raises(RequestError, match="whole class"):
        method.check_request(dense.model, None, request_20, digits)
    with pytest.raises(RequestError, match="whole class"):
        method.forget(dense, request_20, context)
    with pytest.raises(MethodError, match="called 'nothing'"):
        get_method("then", steps=["GA", {"name": "FT", "options": {"only": ["nothing"]}}]).check_state(dense)


def test_un_pruning_as_a_step(regrowable: Trained, request_20: ForgetRequest, context: Context) -> None:
    """It gets the initial weights and scores of the original, which GA drops."""
    unprune = get_method("Un-prune", method="FT", method_options={"epochs": 1}, growth=0.3)
    outcome = chain(small("GA"), unprune).forget(regrowable, request_20, context)
    assert "mask" in outcome.rewrote
    assert not {"pruning_weights", "pruning_scores", "rewind_checkpoint"} & set(outcome.trained.state)
    assert outcome.trained.mask is not None
    assert outcome.trained.mask.count_violations(outcome.trained.model) == {}


INSIDE = [n for n in method_names() if n not in ("Un-prune", "patch", "mask-logit") and not method_class(n).trains]
CLASS_ONLY = ("Boundary Expand", "UNSIR")


@pytest.mark.parametrize("name", INSIDE)
def test_every_method_runs_inside_un_pruning(
    name: str, regrowable: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """The mask is recomputed to the original's sparsity, and pruned weights are +0.0."""
    request = forget_class(digits, regrowable.split, 3) if name in CLASS_ONLY else request_20
    method = get_method("Un-prune", method=name, method_options=dataclasses.asdict(small(name)), growth=0.3)
    outcome = contract.check_callers_model(method, regrowable, request, context)
    contract.check_reported_state(outcome, regrowable)
    mask, old = outcome.trained.mask, regrowable.mask
    assert mask is not None
    assert old is not None
    assert mask.count_violations(outcome.trained.model) == {}
    assert mask.kept_count <= old.kept_count
    assert mask.kept_count >= 0.98 * old.kept_count or name == "l1-sparse"
    assert "mask" in outcome.rewrote, "nothing was regrown"


@pytest.mark.parametrize("name", ["FT", "SalUn", "SCRUB"])
def test_restrictions_inside_un_pruning(
    name: str, regrowable: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """The saliency mask is that of the denser network; what may not move keeps its value through the method."""
    options = {"epochs": 1, "only": ["classifier"], "batch_size": 16}
    if name == "SCRUB":
        options["max_epochs"] = 1
    method = get_method("Un-prune", method=name, method_options=options, growth=0.3, re_estimate=0)
    outcome = method.forget(regrowable, request_20, context)
    before, after = regrowable.model.state_dict(), outcome.trained.model.state_dict()
    old, new = regrowable.mask, outcome.trained.mask
    assert old is not None
    assert new is not None
    both = old.kept["blocks.0.0.weight"] & new.kept["blocks.0.0.weight"]
    assert bool((before["blocks.0.0.weight"] == after["blocks.0.0.weight"])[both].all())
    assert not bool((before["classifier.bias"] == after["classifier.bias"]).all())


def test_un_pruning_cannot_be_inside_itself() -> None:
    with pytest.raises(MethodError, match="step of its own inner method"):
        get_method("Un-prune", method="then", method_options={"steps": ["GA", "Un-prune"]})


def test_un_pruning_refuses_what_its_method_refuses(
    regrowable: Trained, request_20: ForgetRequest, digits: Records
) -> None:
    method = get_method("Un-prune", method="UNSIR")
    with pytest.raises(RequestError, match="whole class"):
        method.check_request(regrowable.model, regrowable.mask, request_20, digits)


@pytest.mark.parametrize("name", ["SCRUB", "SalUn", "EU-k", "MSG", "then"])
def test_sequences_of_requests(name: str, sparse: Trained, context: Context, tmp_path: Path) -> None:
    """Each request starts from the model of the one before; forgotten records are never trained on again."""
    current, ids = sparse, np.sort(sparse.split.retain)
    for number in range(3):
        request = ForgetRequest(ids[number * 7 : number * 7 + 7])
        outcome = contract.check_callers_model(small(name), current, request, context)
        contract.check_split(outcome, current, request)
        contract.check_masked_weights(outcome, current, tmp_path)
        current = outcome.trained
    assert len(current.split.forget) == 21
    assert len(current.provenance.history) == len(sparse.provenance.history) + 3
