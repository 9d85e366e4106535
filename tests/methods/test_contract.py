"""Every registered method keeps the contract, dense and masked; broken ones do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import method_contract as contract
import numpy as np
import pytest
import torch

from expunge.core.errors import MethodError
from expunge.core.outcome import GUARANTEES, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, Method, get_method, method_names, method_table
from expunge.methods.base import method_class, options_of
from expunge.methods.ft import FT
from expunge.training import Runtime

#: Further settings in which the contract must hold, by method; every method is run with its defaults besides.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "Retrain": [{"seeds": "new"}, {"seeds": "order"}],
    "FT": [
        {"batch_norm": "frozen"},
        {"batch_norm": "re-estimate"},
        {"batch_norm": "re-estimate", "batch_size": 1, "epochs": 1},
        {"momentum": 0.0, "weight_decay": 0.0},
    ],
    "patch": [
        {"target": "random"},
        {"kind": "minimal", "target": "neighbour"},
        {"mode": "representatives", "gate": "soft", "slope": 0.5, "rounds": 2},
    ],
    "RL": [{"batch_norm": "frozen"}, {"batch_norm": "re-estimate", "momentum": 0.0}],
    "GA": [{"batch_norm": "frozen"}, {"learning_rate": 0.01, "epochs": 2}],
    "l1-sparse": [
        {"step": "proximal", "gamma": 0.05},
        {"step": "proximal", "gamma": 0.0},
        {"gamma": 0.01, "no_l1_epochs": 2, "batch_norm": "re-estimate"},
    ],
}
#: Methods for whole classes only; they have a test file of their own.
CLASS_ONLY = ("mask-logit",)
NAMES = [name for name in method_names() if name not in CLASS_ONLY]
CASES = [(name, {}) for name in NAMES] + [(n, o) for n, many in VARIANTS.items() for o in many]
#: Settings that do not draw: their seed is the original's.
UNSEEDED = [
    ("Retrain", {}),
    ("patch", {}),
    ("patch", {"kind": "minimal", "target": "neighbour"}),
    ("patch", {"mode": "representatives", "gate": "soft", "slope": 0.5, "rounds": 2}),
]


def quick(name: str, options: dict[str, Any]) -> Method:
    """The method with few epochs and small batches, where it has these options."""
    fields = {f.name for f in options_of(method_class(name))}
    small = {k: v for k, v in {"epochs": 2, "batch_size": 16, "budget": 2}.items() if k in fields}
    if name == "l1-sparse" and options.get("no_l1_epochs"):
        small["epochs"] = 3
    return get_method(name, **{**small, **options})


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" for n, o in CASES])
def test_contract(
    name: str, options: dict[str, Any], kind: str, request: pytest.FixtureRequest,
    request_20: ForgetRequest, context: Context, tmp_path: Path,
) -> None:  # fmt: skip
    trained = request.getfixturevalue(kind)
    seeded = (name, options) not in UNSEEDED
    contract.check(quick(name, options), trained, request_20, context, tmp_path, seeded=seeded)


@pytest.mark.parametrize("name", NAMES)
def test_one_record_and_a_model_without_batch_norm(
    name: str, mlp: Trained, context: Context, digits: Records, tmp_path: Path
) -> None:
    one = ForgetRequest(mlp.split.retain[:1])
    # with a single record there is no order to draw, so GA's seed cannot show
    contract.check(quick(name, {}), mlp, one, context, tmp_path, seeded=name not in ("Retrain", "GA", "patch"))


@pytest.mark.parametrize("name", NAMES)
def test_a_second_request_builds_on_the_first(name: str, dense: Trained, context: Context, tmp_path: Path) -> None:
    method = quick(name, {})
    first = method.forget(dense, ForgetRequest(dense.split.retain[:5]), context)
    request = ForgetRequest(first.trained.split.retain[:5])
    second = contract.leaves_the_callers_model_alone(method, first.trained, request, context)
    contract.split_is_moved(second, first.trained, request)
    assert len(second.trained.split.forget) == 10
    assert len(second.trained.provenance.history) == 3
    with pytest.raises(Exception, match="was forgotten before"):
        method.forget(first.trained, ForgetRequest(dense.split.retain[:1]), context)


# ---- broken methods: each breaks one clause, and the check of that clause must see it


class Broken(FT):
    """FT that then does `harm` to the outcome."""

    harm: Callable[[Outcome, Trained], Outcome]

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        outcome = super().forget(trained, request, context)
        return type(self).harm(outcome, trained) if len(request.record_ids) else outcome


def broken(harm: Callable[[Outcome, Trained], Outcome]) -> Method:
    return type("Harm", (Broken,), {"harm": staticmethod(harm)})(epochs=1, batch_size=64)


def touch_the_caller(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        next(trained.model.parameters()).view(-1)[-1].add_(1e-3)
    return outcome


def move_the_callers_buffers(outcome: Outcome, trained: Trained) -> Outcome:
    trained.model.blocks[0][1].num_batches_tracked.add_(1)
    return outcome


def flip_the_callers_mode(outcome: Outcome, trained: Trained) -> Outcome:
    trained.model.train(not trained.model.training)
    return outcome


def share_memory(outcome: Outcome, trained: Trained) -> Outcome:
    outcome.trained.model.classifier.bias = trained.model.classifier.bias
    return outcome


def leave_minus_zero(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        for name, weight in outcome.trained.model.named_parameters():
            if name in trained.mask.alive:
                weight.mul_(torch.where(trained.mask.alive[name], 1.0, -1.0))
    return outcome


def leave_a_masked_weight(outcome: Outcome, trained: Trained) -> Outcome:
    weight = outcome.trained.model.classifier.weight
    with torch.no_grad():
        weight[~trained.mask.alive["classifier.weight"]] += 1e-30
    return outcome


def lose_the_mask(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, mask=None))


def claim_too_much(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=(*outcome.rewrote, "mask"))


def claim_too_little(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=("weights",))


def claim_what_is_not_there(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=(*outcome.rewrote, "patches"))


def drop_without_a_word(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, dropped=())


def keep_the_split(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, split=trained.split))


def forget_only_some(outcome: Outcome, trained: Trained) -> Outcome:
    split = trained.split.forgetting(outcome.request.record_ids[1:])
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, split=split))


def put_an_object_into_json(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, history=({"tensor": torch.zeros(1)},))


def lie_about_options(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, options={"epochs": 999})


def draw_from_global_state(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        outcome.trained.model.classifier.bias.add_(torch.rand(10) * 1e-3)
    return outcome


HARMS = {
    touch_the_caller: "caller's model was touched",
    move_the_callers_buffers: "caller's model was touched",
    flip_the_callers_mode: "caller's model was touched",
    share_memory: "shares memory",
    leave_minus_zero: "masked is not",
    leave_a_masked_weight: "masked is not",
    lose_the_mask: "mask was lost",
    claim_too_much: "mask is said to be rewritten",
    claim_too_little: "batch_norm has changed",
    claim_what_is_not_there: "does not have",
    drop_without_a_word: "vanished",
    keep_the_split: "still in the retain set",
    forget_only_some: "still in the retain set",
    put_an_object_into_json: "Tensor",
    lie_about_options: "options differ",
    draw_from_global_state: "global generator",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda h: h.__name__)
def test_broken_methods_fail(
    harm: Callable[[Outcome, Trained], Outcome], sparse: Trained, request_20: ForgetRequest, context: Context,
    tmp_path: Path,
) -> None:  # fmt: skip
    mine = dataclasses.replace(sparse, model=contract.copy.deepcopy(sparse.model))
    expected = (AssertionError, TypeError) if harm is put_an_object_into_json else AssertionError
    with pytest.raises(expected, match=HARMS[harm]):
        contract.check(broken(harm), mine, request_20, context, tmp_path)


def test_the_harmless_one_passes(sparse: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path) -> None:
    """The control of the controls."""
    contract.check(broken(lambda outcome, trained: outcome), sparse, request_20, context, tmp_path)


def test_a_method_that_does_nothing_fails(
    dense: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    """It says that it rewrote the weights; nor does it depend on its seed."""

    class Idle(FT):
        def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
            outcome = FT(epochs=0).forget(trained, request, context)
            claim = ("weights",) if len(request.record_ids) else ()
            return dataclasses.replace(outcome, rewrote=claim, options=dataclasses.asdict(self))

    with pytest.raises(AssertionError, match="bit-equal to before"):
        contract.check(Idle(), dense, request_20, context, tmp_path)


def test_a_method_that_ignores_bad_requests_fails(sparse: Trained, context: Context) -> None:
    class Careless(FT):
        def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
            known = request.record_ids[np.isin(request.record_ids, trained.split.retain)]
            return super().forget(trained, ForgetRequest(known), context)

    with pytest.raises(AssertionError, match="was carried out"):
        contract.wrong_requests_are_refused(Careless(epochs=1), sparse, context)


# ---- the registry


def test_table() -> None:
    rows = method_table()
    assert [r["name"] for r in rows] == method_names()
    assert rows[0]["name"] == "Retrain"
    assert {"Retrain", "FT", "GA", "RL", "l1-sparse"} <= {r["name"] for r in rows}
    for row in rows:
        assert row["guarantee"] in GUARANTEES
        assert len(row["summary"]) > 20
        assert row["source"]
        cls = method_class(row["name"])
        assert cls.__dataclass_params__.frozen, f"{row['name']} is not frozen"
        assert get_method(row["name"], **row["options"]) == cls()


def test_unknown_names() -> None:
    for name, close in (("retrian", "Retrain"), ("l1_sparse", "l1-sparse")):
        with pytest.raises(MethodError, match=f"did you mean '{close}'"):
            get_method(name)
    assert get_method("ft") == get_method("FT")
    with pytest.raises(MethodError, match="did you mean 'learning_rate'"):
        get_method("FT", learningrate=0.1)
    with pytest.raises(MethodError, match="did you mean 'proximal'"):
        get_method("l1-sparse", step="proximate")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FT", {"epochs": "3"}),
        ("FT", {"epochs": 2.5}),
        ("FT", {"epochs": True}),
        ("FT", {"epochs": None}),
        ("FT", {"epochs": -1}),
        ("FT", {"batch_size": 0}),
        ("FT", {"learning_rate": -0.1}),
        ("FT", {"learning_rate": float("nan")}),
        ("FT", {"learning_rate": float("inf")}),
        ("FT", {"momentum": 1.0}),
        ("GA", {"weight_decay": -1}),
        ("l1-sparse", {"gamma": -1e-3}),
        ("l1-sparse", {"gamma": float("nan")}),
        ("l1-sparse", {"no_l1_epochs": 11}),
        ("Retrain", {"seeds": 1}),
        ("Retrain", {"seeds": "no"}),
    ],
)
def test_wrong_values(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError) as caught:
        get_method(name, **options)
    assert next(iter(options)) in str(caught.value)
