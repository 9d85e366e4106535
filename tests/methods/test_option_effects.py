"""Every option of every method has an effect on the result, whatever the others are: none is read and then ignored."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from expunge.core.errors import MethodError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, FineTuning, get_method, method_class, method_names
from expunge.training import Runtime

#: Of every method that trains in epochs, and has the option: another value.
TRAINING: list[tuple[str, Any]] = [
    ("epochs", 3), ("learning_rate", 0.006), ("batch_size", 16), ("momentum", 0.5), ("weight_decay", 0.3),
    ("batch_norm", "frozen"), ("batch_norm", "train"), ("augment", "flip"), ("only", ("classifier",)),
    ("saliency", 0.3), ("saliency_source", "random"), ("stop", "validation"), ("optimiser", "adam"),
    ("optimiser", "sgd"), ("clip_norm", 1e-3), ("label_smoothing", 0.2),
]  # fmt: skip
#: With these options, one run takes milliseconds; each option of the method then gets its other values.
SMALL: dict[str, dict[str, Any]] = {
    "Bad Teacher": {"batch_size": 32}, "Fanchuan": {"epochs": 1, "batch_size": 8}, "IU": {"steps": 4, "records": 64},
    "JiT": {"draws": 2, "learning_rate": 0.01}, "L2UL": {"epochs": 2, "examples": 2, "attack_steps": 3},
    "MSA": {"prefix_epochs": 1, "batch_size": 8}, "MSG": {"epochs": 1, "layers": ("linear",), "learning_rate": 0.01},
    "PGU": {"epochs": 2, "kept": 0.9}, "Replay": {"prefix_epochs": 1, "epochs": 1}, "Rewind": {"prefix_epochs": 1},
    "SCRUB": {"epochs": 2, "max_epochs": 1, "rewind": False, "learning_rate": 0.01}, "SSD": {"alpha": 2.0},
    "UNSIR": {"noise_steps": 3, "copies": 1, "samples_per_class": 5, "batch_size": 12},
    "Warnecke-1": {"tau": 1e-3}, "Warnecke-2": {"steps": 3}, "NTK": {"steps": 3}, "l1-sparse": {"gamma": 1e-3},
    "GA": {"learning_rate": 0.001, "epochs": 1}, "PBU": {"epochs": 2, "learning_rate": 1e-3}, "FF": {"alpha": 1e-4},
}  # fmt: skip
#: Option, another value, and what else the two runs that are compared have.
OWN: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {
    "Bad Teacher": [
        ("retain_fraction", 0.6, {}), ("temperature", 2.0, {}),
        ("legacy", True, {"optimiser": "sgd", "learning_rate": 0.1}),
    ],
    "Boundary Shrink": [("radius", 0.5, {"learning_rate": 0.01}), ("legacy", True, {"radius": 0.05})],
    "CF-k": [("layers", 2, {}), ("legacy", True, {"model": "dense"})],
    "EU-k": [("layers", 2, {}), ("legacy", True, {"model": "dense", "layers": 2})],
    "DELETE": [("temperature", 2.0, {})],
    "Fanchuan": [("uniform_learning_rate", 0.05, {}), ("contrast_learning_rate", 0.05, {}), ("temperature", 2.0, {})],
    "FF": [
        ("alpha", 1e-3, {}), ("exponent", 0.25, {}), ("damping", 1e-3, {}), ("fisher", "sampled", {}),
        ("fisher", "empirical", {}), ("records", 64, {}), ("legacy", True, {}),
        ("batch_norm", "re-estimate", {"model": "dense"}),
    ],
    "IU": [
        ("alpha", -0.5, {}), ("inverse", "kfac", {"steps": 20}), ("inverse", "block-diagonal", {}),
        ("inverse", "lissa", {"steps": 20, "tolerance": 1e-3}), ("curvature", "hessian", {}),
        ("curvature", "hessian", {"inverse": "lissa", "lissa_steps": 5, "lissa_scale": 50.0, "steps": 20}),
        ("damping", 1.0, {}), ("damping", 1.0, {"inverse": "kfac", "steps": 20}),
        ("damping", 1.0, {"inverse": "block-diagonal"}),
        ("damping", 1.0, {"inverse": "lissa", "lissa_steps": 5, "lissa_scale": 50.0, "steps": 20}),
        ("steps", 2, {}), ("steps", 2, {"inverse": "block-diagonal", "tolerance": 0.0}), ("tolerance", 0.9, {}),
        ("tolerance", 0.9, {"inverse": "block-diagonal"}), ("records", 0, {}),
        ("records", 0, {"inverse": "kfac", "steps": 20}), ("records", 0, {"inverse": "block-diagonal"}),
        ("records", 0, {"inverse": "lissa", "lissa_steps": 5, "lissa_scale": 50.0, "steps": 20}),
        ("fisher", "sampled", {"inverse": "kfac", "steps": 20}),
        ("fisher", "empirical", {"inverse": "kfac", "steps": 20}),
        ("lissa_steps", 6, {"inverse": "lissa", "lissa_scale": 50.0, "steps": 20}),
        ("lissa_scale", 60.0, {"inverse": "lissa", "lissa_steps": 5, "steps": 20}),
        ("legacy", True, {"steps": 20, "records": 1024}), ("batch_norm", "re-estimate", {"model": "dense"}),
    ],
    "JiT": [("draws", 3, {}), ("sigma", 0.1, {})],
    "l1-sparse": [("gamma", 0.01, {}), ("no_l1_epochs", 1, {"epochs": 2}), ("step", "proximal", {})],
    "L2UL": [
        ("examples", 3, {}), ("attack_radius", 0.05, {}), ("attack_step", 0.2, {}), ("attack_steps", 4, {}),
        ("importance_weight", 50.0, {}), ("example_batch_size", 16, {}), ("legacy", True, {}),
    ],
    "MSA": [
        ("prefix_epochs", 0.0, {}), ("alpha", 0.5, {}), ("beta", 0.5, {}), ("retain_sample", 9, {}),
        ("re_estimate", 0, {"model": "dense"}), ("re_estimate", 16, {"model": "dense"}),
    ],
    "MSG": [("fraction", 0.6, {}), ("slow", 0.5, {}), ("layers", ("conv", "linear"), {"model": "dense"})],
    "NegGrad+": [("alpha", 0.5, {})],
    "NTK": [
        ("point", "initial", {}), ("residual", "squared", {}), ("scale", 0.5, {}), ("steps", 5, {}),
        ("tolerance", 0.5, {"steps": 20}), ("weight_decay", 0.1, {}), ("legacy", True, {}),
    ],
    "PBU": [("alpha", 60.0, {}), ("beta", 1e5, {}), ("gamma", 0.0, {})],
    "PGU": [
        ("kept", 0.5, {}), ("learning_rate", 0.1, {}), ("last_rate", 0.04, {}), ("entropy_weight", 0.0, {}),
        ("offset", 0.5, {}), ("epochs", 3, {}), ("batch_size", 8, {}), ("legacy", True, {}),
    ],
    "Replay": [
        ("prefix_epochs", 2, {}), ("scale", -0.5, {}), ("prefix", "compressed", {}),
        ("re_estimate", 0, {"model": "dense"}), ("re_estimate", 16, {"model": "dense"}),
    ],
    "Rewind": [("prefix_epochs", 0.0, {}), ("rest", 3, {"model": "dense"}), ("noise", 0.01, {})],
    "SalUn": [("legacy", True, {"saliency": 0.5}), ("legacy", True, {"saliency": 1.0})],
    "SCRUB": [
        ("max_epochs", 2, {}), ("alpha", 0.5, {}), ("gamma", 0.5, {}), ("temperature", 1.0, {}),
        ("forget_batch_size", 5, {}),
        ("rewind", True, {}),
    ],
    "SSD": [
        ("alpha", 1.0, {}), ("dampening", 0.5, {}), ("fisher", "exact", {}), ("fisher", "sampled", {}),
        ("only", ("classifier",), {}), ("legacy", True, {"alpha": 1.0}), ("batch_size", 16, {"legacy": True}),
    ],
    "UNSIR": [
        ("repair_learning_rate", 0.1, {}), ("noise_steps", 0, {}), ("noise_learning_rate", 0.5, {}),
        ("penalty", 5.0, {}), ("copies", 2, {}), ("samples_per_class", 9, {}),
    ],
    "Warnecke-1": [("tau", 1e-2, {}), ("last_tensors", 2, {}), ("weight_decay", 0.5, {})],
    "Warnecke-2": [
        ("scale", 60.0, {"solver": "lissa", "scale": 50.0}), ("steps", 5, {}),
        ("steps", 5, {"solver": "lissa", "scale": 50.0}), ("tolerance", 0.5, {"steps": 20}), ("damping", 1.0, {}),
        ("damping", 1.0, {"solver": "lissa", "scale": 50.0}), ("curvature", "hessian", {}), ("last_tensors", 2, {}),
        ("weight_decay", 0.5, {}), ("legacy", True, {"solver": "lissa", "scale": 50.0, "batch_size": 64}),
    ],
}  # fmt: skip
#: Options of a run without any effect on the weights, by design: they bound memory, say where a tensor comes from that
#: is the same either way, or belong to a bound (tests/methods/replay/test_noise_bound.py).
WITHOUT = {
    *((name, "batch_size") for name in ("FF", "IU", "NTK", "Warnecke-1", "Warnecke-2")),
    ("MSA", "prefix"), ("MSA", "dirty"), ("Rewind", "prefix"), ("Rewind", "smoothness"),
    ("Rewind", "gradient_bound"), ("Rewind", "delta"),
    *((name, "stop") for name in ("Boundary Expand", "MSA")),  # refused
    *((name, "momentum") for name in ("Bad Teacher", "PBU", "UNSIR")),  # Adam; see below
    ("Warnecke-2", "solver"),  # it needs a scale, which the other solver refuses
}  # fmt: skip
#: Methods whose options other files try one by one.
APART = ("Retrain", "Un-prune", "then", "patch", "mask-logit", "mixed-privacy")
NAMES = [name for name in method_names() if name not in APART]
CLASS_ONLY = ("Boundary Expand", "UNSIR")


def cases(name: str) -> list[tuple[str, Any, dict[str, Any]]]:
    found = list(OWN.get(name, []))
    if issubclass(method_class(name), FineTuning):
        fields = {field.name: field.default for field in dataclasses.fields(method_class(name))}
        for option, value in [each for each in TRAINING if each[0] in fields]:
            more: dict[str, Any] = {}
            if option in ("batch_norm", "augment"):
                more["model"] = "dense"
            if option in ("batch_norm", "only") and name in ("CF-k", "EU-k"):
                more["layers"] = 2
            if option == "saliency_source":
                more = {"saliency": 0.5}
            if value == SMALL.get(name, {}).get(option, fields[option]):
                continue
            found.append((option, value, more))
    return [each for each in found if (name, each[0]) not in WITHOUT]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_tried(name: str) -> None:
    options = {field.name for field in dataclasses.fields(method_class(name))}
    assert options == {option for option, _, _ in cases(name)} | {o for n, o in WITHOUT if n == name and o in options}


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_the_result(
    name: str, mlp: Trained, dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    context = Context(digits, cpu, seed=1)
    known: dict[str, Outcome] = {}

    def run(options: dict[str, Any]) -> Outcome:
        key = repr(sorted(options.items()))
        if key not in known:
            trained = dense if options.get("model") == "dense" else mlp
            given = {option: value for option, value in options.items() if option != "model"}
            asked = forget_class(digits, trained.split, 3) if name in CLASS_ONLY else request_20
            known[key] = get_method(name, **given).forget(trained, asked, context)
        return known[key]

    small = dict(SMALL.get(name, {}))
    if issubclass(method_class(name), FineTuning):
        size = 8 if method_class(name).trains_on == "forget" else 32  # several steps
        small = {"epochs": 1, "batch_size": size, **small}
    ignored = []
    for option, value, more in cases(name):
        base = {**small, **more}
        before, after = run(base), run({**base, option: value})
        assert before.trained.hash not in (mlp.hash, dense.hash), f"{name} does nothing with {base}"
        if option in ("stop", "rewind"):  # they may choose the last epoch
            changed = after.cost.forward_records != before.cost.forward_records
        else:
            changed = after.trained.hash != before.trained.hash
        ignored += [] if changed else [(option, value, more)]
    assert not ignored


@pytest.mark.parametrize("name", ["Bad Teacher", "PBU", "SCRUB", "UNSIR"])
def test_momentum_is_refused_with_adam_and_has_an_effect_with_sgd(
    name: str, mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    with pytest.raises(MethodError, match="momentum has no effect with optimiser=adam"):
        get_method(name, momentum=0.3, optimiser="adam")
    own = method_class(name)
    assert own.drop_unused({"momentum": 0.3, "optimiser": "adam"}) == ({"optimiser": "adam"}, {"momentum": 0.3})
    assert own.drop_unused({"momentum": 0.3, "optimiser": "sgd"})[1] == {}
    asked = forget_class(digits, mlp.split, 3) if name in CLASS_ONLY else request_20
    small = {**SMALL[name], "optimiser": "sgd", "batch_size": 16, "learning_rate": 1e-5 if name == "PBU" else 0.01}
    hashes = {
        get_method(name, momentum=momentum, **small).forget(mlp, asked, Context(digits, cpu)).trained.hash
        for momentum in (0.0, 0.3)
    }
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FF", {"fisher": "empirical"}), ("IU", {"records": 64, "steps": 3}), ("NTK", {"steps": 3}), ("Warnecke-1", {}),
        ("Warnecke-2", {"steps": 3}),
    ],
)  # fmt: skip
def test_a_batch_size_that_only_bounds_memory(
    name: str, options: dict[str, Any], mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    outcomes = [
        get_method(name, batch_size=size, **options).forget(mlp, request_20, Context(digits, cpu, seed=1))
        for size in (7, 256)
    ]
    for (key, one), other in zip(
        outcomes[0].trained.model.named_parameters(), outcomes[1].trained.model.parameters(), strict=True
    ):
        assert float((one - other).abs().max()) <= 1e-4 * (1 + float(other.abs().max())), key
    assert outcomes[0].cost.trained_records == outcomes[1].cost.trained_records
