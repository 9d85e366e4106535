"""Every registered method satisfies the contract, on dense and sparse models; broken methods do not."""

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
from expunge.methods.ft import FT
from expunge.methods.registry import method_class, options_of
from expunge.training import Runtime

#: Further options for which the contract must hold, by method, besides the defaults.
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
        {"correction": "minimal", "target": "neighbour"},
        {"mode": "representatives", "gate": "soft", "slope": 0.5, "rounds": 2},
    ],
    "RL": [{"batch_norm": "frozen"}, {"batch_norm": "re-estimate", "momentum": 0.0}],
    "GA": [{"batch_norm": "frozen"}, {"learning_rate": 0.01, "epochs": 2}],
    "FF": [
        {"fisher": "sampled", "exponent": 1.0, "records": 100, "batch_norm": "re-estimate"},
        {"legacy": True, "alpha": 3e-8},
    ],
    "IU": [
        {"records": 50, "curvature": "hessian", "steps": 3, "batch_norm": "re-estimate"},
        {"inverse": "lissa", "lissa_steps": 20, "records": 100},
        {"inverse": "kfac", "fisher": "sampled"},
        {"inverse": "block-diagonal", "records": 50, "steps": 2},
        {"legacy": True, "alpha": 0.5},
    ],
    "l1-sparse": [
        {"step": "proximal", "gamma": 0.05},
        {"step": "proximal", "gamma": 0.0},
        {"gamma": 0.01, "no_l1_epochs": 2, "batch_norm": "re-estimate"},
        {"step": "proximal", "gamma": 0.05, "only": ("classifier",)},
    ],
    "PBU": [{"batch_norm": "train"}],
    "JiT": [{"batch_norm": "train", "learning_rate": 0.01}],
    "PGU": [{"kept": 0.99}, {"kept": 0.5, "legacy": True}],
    "L2UL": [{"batch_norm": "frozen", "legacy": True}],
    "Warnecke-1": [{"last_tensors": 2, "tau": 1e-3}],
    "Warnecke-2": [{"curvature": "hessian", "damping": 1.0}, {"last_tensors": 2}],
    "NTK": [{"point": "initial"}, {"legacy": True, "residual": "squared"}],
    "NegGrad+": [{"batch_norm": "frozen", "stop": "validation"}],
    "SalUn": [{"saliency_source": "random"}, {"legacy": True, "only": ("blocks",)}],
    "SCRUB": [{"rewind": False, "optimiser": "adam"}, {"stop": "validation"}],
    "Bad Teacher": [{"legacy": True, "optimiser": "sgd"}],
    "DELETE": [{"batch_norm": "frozen", "temperature": 2.0}],
    "CF-k": [{"layers": 2, "legacy": True}],
    "EU-k": [{"layers": 2}, {"layers": 3, "legacy": True}],
    "MSG": [{"layers": ("conv", "linear"), "fraction": 0.5}],
    "Fanchuan": [{"batch_norm": "re-estimate"}],
    "Boundary Shrink": [{"legacy": True, "radius": 0.5}],
    "SSD": [{"alpha": 1.0, "fisher": "exact"}, {"alpha": 1.0, "fisher": "sampled"}, {"alpha": 1.0, "legacy": True}],
    "then": [{"steps": ({"name": "SalUn", "options": {"epochs": 1}}, "CF-k")}],
}
#: Methods for whole classes only, and those that act during training; they have separate test files.
CLASS_ONLY = ("mask-logit", "Boundary Expand", "UNSIR")
#: Options that a method needs for a perceptron.
FOR_MLP: dict[str, dict[str, Any]] = {"MSG": {"layers": ("linear",)}}
NAMES = [name for name in method_names() if name not in CLASS_ONLY and not method_class(name).trains]
CASES = [(name, {}) for name in NAMES] + [(n, o) for n, many in VARIANTS.items() for o in many]
#: Options with which a method draws no random numbers from the context's seed.
UNSEEDED = [
    ("Retrain", {}),
    ("SSD", {}),
    ("SSD", {"alpha": 1.0, "fisher": "exact"}),
    ("SSD", {"alpha": 1.0, "legacy": True}),
    ("Rewind", {}),
    ("IU", {}),  # the curvature is taken on all records of a small retain set
    ("IU", {"legacy": True, "alpha": 0.5}),
    ("patch", {}),
    ("patch", {"correction": "minimal", "target": "neighbour"}),
    ("patch", {"mode": "representatives", "gate": "soft", "slope": 0.5, "rounds": 2}),
    *((name, options) for name in ("Warnecke-1", "Warnecke-2", "NTK") for options in [{}, *VARIANTS[name]]),
]
#: Methods that use the seed for the order of records alone; a single record has none.
ORDER_ONLY = (
    *("Retrain", "Rewind", "GA", "patch", "DELETE", "Boundary Shrink", "SSD", "IU"),
    *("PBU", "PGU", "Warnecke-1", "Warnecke-2", "NTK"),
)


def quick(name: str, options: dict[str, Any]) -> Method:
    """Return the method with few epochs and small batches, if it has these options."""
    fields = {f.name for f in options_of(method_class(name)) if isinstance(f.default, int)}
    few = {"epochs": 2, "batch_size": 16, "budget": 2, "steps": 3, "examples": 2, "attack_steps": 2, "draws": 2}
    small = {k: v for k, v in few.items() if k in fields}
    if name == "IU" and {"inverse", "legacy"} & set(options):  # only conjugate gradients have steps
        small.pop("steps")
    if name == "l1-sparse" and options.get("no_l1_epochs"):
        small["epochs"] = 3
    return get_method(name, **{**small, **options})


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.mark.parametrize("model", ["dense", "sparse"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" for n, o in CASES])
def test_contract(
    name: str, options: dict[str, Any], model: str, request: pytest.FixtureRequest,
    request_20: ForgetRequest, context: Context, tmp_path: Path,
) -> None:  # fmt: skip
    trained = request.getfixturevalue(model)
    seeded = (name, options) not in UNSEEDED
    contract.check(quick(name, options), trained, request_20, context, tmp_path, seeded=seeded)


@pytest.mark.parametrize("name", NAMES)
def test_one_record_and_a_model_without_batch_norm(
    name: str, mlp: Trained, context: Context, digits: Records, tmp_path: Path
) -> None:
    one = ForgetRequest(mlp.split.retain[:1])
    # a single record has no order, so methods that train on D_f alone do not depend on the seed
    method = quick(name, FOR_MLP.get(name, {}))
    contract.check(method, mlp, one, context, tmp_path, seeded=name not in ORDER_ONLY)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_request_builds_on_the_first(name: str, dense: Trained, context: Context, tmp_path: Path) -> None:
    method = quick(name, {})
    first = method.forget(dense, ForgetRequest(dense.split.retain[:5]), context)
    request = ForgetRequest(first.trained.split.retain[:5])
    second = contract.check_callers_model(method, first.trained, request, context)
    contract.check_split(second, first.trained, request)
    assert len(second.trained.split.forget) == 10
    assert len(second.trained.provenance.history) == 3
    with pytest.raises(Exception, match="was forgotten before"):
        method.forget(first.trained, ForgetRequest(dense.split.retain[:1]), context)


# ---- broken methods: each violates one clause, and the check of that clause must detect it


class Broken(FT):
    """FT whose outcome is changed by `fault`."""

    fault: Callable[[Outcome, Trained], Outcome]

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        outcome = super().forget(trained, request, context)
        return type(self).fault(outcome, trained) if len(request.record_ids) else outcome


def broken(fault: Callable[[Outcome, Trained], Outcome]) -> Method:
    return type("Faulty", (Broken,), {"fault": staticmethod(fault)})(epochs=1, batch_size=64)


def change_the_callers_weights(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        next(trained.model.parameters()).view(-1)[-1].add_(1e-3)
    return outcome


def change_the_callers_buffers(outcome: Outcome, trained: Trained) -> Outcome:
    trained.model.blocks[0][1].num_batches_tracked.add_(1)
    return outcome


def change_the_callers_mode(outcome: Outcome, trained: Trained) -> Outcome:
    trained.model.train(not trained.model.training)
    return outcome


def share_memory(outcome: Outcome, trained: Trained) -> Outcome:
    outcome.trained.model.classifier.bias = trained.model.classifier.bias
    return outcome


def leave_negative_zeros(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        for name, weight in outcome.trained.model.named_parameters():
            if name in trained.mask.kept:
                weight.mul_(torch.where(trained.mask.kept[name], 1.0, -1.0))
    return outcome


def leave_a_masked_weight(outcome: Outcome, trained: Trained) -> Outcome:
    weight = outcome.trained.model.classifier.weight
    with torch.no_grad():
        weight[~trained.mask.kept["classifier.weight"]] += 1e-30
    return outcome


def remove_the_mask(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, mask=None))


def report_too_much(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=(*outcome.rewrote, "mask"))


def report_too_little(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=("weights",))


def report_missing_state(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, rewrote=(*outcome.rewrote, "patches"))


def drop_without_reporting(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, dropped=())


def return_the_old_split(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, split=trained.split))


def skip_a_record(outcome: Outcome, trained: Trained) -> Outcome:
    split = trained.split.move_to_forget(outcome.request.record_ids[1:])
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, split=split))


def put_an_object_into_json(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, history=({"tensor": torch.zeros(1)},))


def report_wrong_options(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, options={"epochs": 999})


def draw_from_global_state(outcome: Outcome, trained: Trained) -> Outcome:
    with torch.no_grad():
        outcome.trained.model.classifier.bias.add_(torch.rand(10) * 1e-3)
    return outcome


def report_no_changes(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, changes=())


def report_a_changed_tensor_as_unchanged(outcome: Outcome, trained: Trained) -> Outcome:
    first, *others = outcome.changes
    return dataclasses.replace(outcome, changes=(dataclasses.replace(first, status="unchanged"), *others))


def claim_more_than_the_method(outcome: Outcome, trained: Trained) -> Outcome:
    return dataclasses.replace(outcome, guarantee="certified")


def forget_the_history(outcome: Outcome, trained: Trained) -> Outcome:
    after = dataclasses.replace(outcome.trained, provenance=trained.provenance)
    return dataclasses.replace(outcome, trained=after)


def rewrite_the_history(outcome: Outcome, trained: Trained) -> Outcome:
    provenance = dataclasses.replace(outcome.trained.provenance, history=("made of nothing", "forgotten"))
    return dataclasses.replace(outcome, trained=dataclasses.replace(outcome.trained, provenance=provenance))


FAULTS = {
    change_the_callers_weights: "caller's model was changed",
    change_the_callers_buffers: "caller's model was changed",
    change_the_callers_mode: "caller's model was changed",
    share_memory: "shares memory",
    leave_negative_zeros: "masked weight is not",
    leave_a_masked_weight: "masked weight is not",
    remove_the_mask: "mask was lost",
    report_too_much: "mask is reported as rewritten",
    report_too_little: "batch_norm has changed",
    report_missing_state: "does not have",
    drop_without_reporting: "is missing",
    return_the_old_split: "still in the retain set",
    skip_a_record: "still in the retain set",
    put_an_object_into_json: "Tensor",
    report_wrong_options: "options differ",
    draw_from_global_state: "global generator",
    report_no_changes: "not every tensor",
    report_a_changed_tensor_as_unchanged: "is reported as unchanged",
    claim_more_than_the_method: "guarantee is too strong",
    forget_the_history: "no line on the request",
    rewrite_the_history: "history of the model was changed",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda h: h.__name__)
def test_broken_methods_fail(
    fault: Callable[[Outcome, Trained], Outcome], sparse: Trained, request_20: ForgetRequest, context: Context,
    tmp_path: Path,
) -> None:  # fmt: skip
    copy = dataclasses.replace(sparse, model=contract.copy.deepcopy(sparse.model))
    expected = (AssertionError, TypeError) if fault is put_an_object_into_json else AssertionError
    with pytest.raises(expected, match=FAULTS[fault]):
        contract.check(broken(fault), copy, request_20, context, tmp_path)


def test_a_method_without_fault_passes(
    sparse: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    """Control of the tests with broken methods."""
    contract.check(broken(lambda outcome, trained: outcome), sparse, request_20, context, tmp_path)


def test_a_method_that_does_nothing_fails(
    dense: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    """It reports rewritten weights that are bit-equal."""

    class Idle(FT):
        def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
            outcome = FT(epochs=0).forget(trained, request, context)
            reported = ("weights",) if len(request.record_ids) else ()
            return dataclasses.replace(outcome, rewrote=reported, options=dataclasses.asdict(self))

    with pytest.raises(AssertionError, match="bit-equal to before"):
        contract.check(Idle(), dense, request_20, context, tmp_path)


def test_a_method_that_accepts_invalid_requests_fails(sparse: Trained, context: Context) -> None:
    class Lenient(FT):
        def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
            known = request.record_ids[np.isin(request.record_ids, trained.split.retain)]
            return super().forget(trained, ForgetRequest(known), context)

    with pytest.raises(AssertionError, match="was accepted"):
        contract.check_invalid_requests(Lenient(epochs=1), sparse, context)


# ---- the registry


def test_table() -> None:
    rows = method_table()
    assert [r["name"] for r in rows] == method_names()
    assert rows[0]["name"] == "Retrain"
    assert {"Retrain", "FT", "GA", "RL", "l1-sparse"} <= {r["name"] for r in rows}
    for row in rows:
        assert row["guarantee"] in GUARANTEES
        assert len(row["summary"]) > 20
        assert row["citation"]
        cls = method_class(row["name"])
        assert cls.__dataclass_params__.frozen, f"{row['name']} is not frozen"
        assert get_method(row["name"], **row["options"]) == cls()


def test_unknown_names() -> None:
    for name, nearest in (
        ("retrian", "Retrain"), ("l1_sparse", "l1-sparse"), ("FineTune", "FT"), ("fine-tuning", "FT"),
        ("Gradient Ascent", "GA"), ("random_label", "RL"),
    ):  # fmt: skip
        with pytest.raises(MethodError, match=f"did you mean '{nearest}'"):
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
def test_invalid_values(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError) as caught:
        get_method(name, **options)
    assert next(iter(options)) in str(caught.value)
