"""What a method says that it reads is what it reads: the counted cost, and records that are withheld."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from expunge.core.errors import DataError, MethodError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.methods import Context, Method, get_method, method_names
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import method_class, options_of
from expunge.training import Runtime

#: Methods for whole classes only.
CLASS_ONLY = ("mask-logit", "Boundary Expand", "UNSIR")
#: Further options that change what is read.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("Retrain", {"mask": "rewind"}),
    ("FT", {"batch_norm": "re-estimate"}),
    ("FT", {"stop": "validation"}),
    ("FT", {"epochs": 0}),
    ("GA", {"saliency": 0.3}),
    ("GA", {"batch_norm": "re-estimate"}),
    ("patch", {"target": "retrained"}),
    ("FF", {"fisher": "sampled", "records": 100, "batch_norm": "re-estimate"}),
    ("FF", {"legacy": True, "alpha": 3e-8}),
    ("IU", {"records": 50, "curvature": "hessian", "batch_norm": "re-estimate"}),
    ("IU", {"inverse": "lissa", "lissa_steps": 20, "records": 100}),
    ("IU", {"inverse": "kfac", "fisher": "sampled"}),
    ("IU", {"inverse": "block-diagonal", "records": 50, "steps": 2}),
    ("IU", {"legacy": True, "alpha": 0.5}),
    ("l1-sparse", {"step": "proximal", "gamma": 0.05}),
    ("PGU", {"kept": 0.5, "legacy": True}),
    ("L2UL", {"batch_norm": "frozen", "legacy": True}),
    ("Warnecke-2", {"curvature": "hessian", "damping": 1.0}),
    ("NTK", {"legacy": True, "residual": "squared"}),
    ("SalUn", {"legacy": True}),
    ("SCRUB", {"rewind": False, "optimiser": "adam"}),
    ("SCRUB", {"stop": "validation"}),
    ("MSG", {"layers": ("conv", "linear"), "fraction": 0.5}),
    ("Boundary Shrink", {"legacy": True}),
    ("SSD", {"alpha": 1.0, "fisher": "exact"}),
    ("SSD", {"alpha": 1.0, "legacy": True}),
    ("Replay", {"scale": 0.0}),
    ("MSA", {"prefix_epochs": 0}),
    ("Rewind", {"rest": 2}),
    ("then", {"steps": ("GA", "DELETE")}),
    ("Un-prune", {"rule": "unchanged", "method": "GA"}),
]
EVERY = [*((name, {}) for name in method_names() if not method_class(name).trains), *VARIANTS]
#: Unknown before it runs: it prunes again, or it searches for what it needs.
UNKNOWN = ("Un-prune",)
IDS = [f"{name}-{options}" for name, options in EVERY]


def quick(name: str, options: dict[str, Any]) -> Method:
    """The method with few epochs and small batches, if it has these options."""
    fields = {f.name for f in options_of(method_class(name)) if isinstance(f.default, int)}
    few = {"epochs": 2, "batch_size": 16, "budget": 2, "examples": 2, "attack_steps": 2, "draws": 2}
    return get_method(name, **{**{key: value for key, value in few.items() if key in fields}, **options})


def make(name: str, options: dict[str, Any], digits: Records, trained: Trained) -> tuple[Method, ForgetRequest]:
    whole = name in CLASS_ONLY
    request = forget_class(digits, trained.split, 3) if whole else ForgetRequest(np.sort(trained.split.retain)[::14])
    if name == "UNSIR":
        options = {"noise_steps": 5, "copies": 2, "samples_per_class": 6, **options}
    return quick(name, options), request


def sizes_of(trained: Trained, request: ForgetRequest, digits: Records) -> Sizes:
    after = request.apply(trained.split)
    return Sizes(len(after.retain), len(request.record_ids), len(after.validation), digits.classes)


@contextlib.contextmanager
def count_steps() -> Iterator[list[str]]:
    """Collect the steps of every optimiser of parameters, as torch reports them (the noise of UNSIR is none)."""
    found: list[str] = []

    def note(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        if isinstance(optimiser.param_groups[0]["params"][0], torch.nn.Parameter):
            found.append(type(optimiser).__name__)

    hook = register_optimizer_step_post_hook(note)
    try:
        yield found
    finally:
        hook.remove()


@pytest.mark.parametrize("model", ["dense", "sparse"])
@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_the_estimate_is_what_is_counted(
    name: str, options: dict[str, Any], model: str, request: pytest.FixtureRequest, digits: Records, cpu: Runtime
) -> None:
    trained: Trained = request.getfixturevalue(model)
    method, asked = make(name, options, digits, trained)
    reads = method.estimate_reads(trained, sizes_of(trained, asked, digits))
    with count_steps() as counted:
        cost = method.forget(trained, asked, Context(digits, cpu, seed=1)).cost
    assert cost.optimiser_steps == len(counted)
    if reads is None:
        assert name in UNKNOWN or (name == "patch" and options.get("target") == "retrained")
        return
    if reads.at_most:
        assert cost.trained_records <= reads.trained + 1e-9
        assert cost.forward_records <= reads.forward + 1e-9
        assert cost.passes >= 0.02 * reads.passes(cost.retain_records)  # a bound that is not far from the truth
    else:
        assert (cost.trained_records, cost.forward_records) == (reads.trained, reads.forward)
    if not method.reads_retained:
        assert reads.retain == reads.retain_forward == 0


def without_retained(digits: Records, trained: Trained, request: ForgetRequest) -> Records:
    """The digits without the records of D_r."""
    gone = np.setdiff1d(trained.split.retain, request.record_ids)
    rows = np.flatnonzero(~np.isin(digits.record_ids, gone))
    assert digits.features is not None
    return Records(digits.name, digits.record_ids[rows], digits.labels[rows], digits.class_names, digits.features[rows])


@pytest.mark.parametrize(("name", "options"), EVERY, ids=IDS)
def test_what_needs_the_retain_set_fails_without_it_and_nothing_else(
    name: str, options: dict[str, Any], sparse: Trained, digits: Records, cpu: Runtime
) -> None:
    method, asked = make(name, options, digits, sparse)
    alone = Context(without_retained(digits, sparse, asked), cpu, seed=1)
    absent = dataclasses.replace(sparse, split=dataclasses.replace(sparse.split, retain_absent=True))
    if method.reads_retained:
        with pytest.raises(DataError, match="no such record"):
            method.forget(sparse, asked, alone)
        with pytest.raises(MethodError, match="declares absent"):
            method.forget(absent, asked, alone)
        return
    found = method.forget(absent, asked, alone)
    whole = method.forget(sparse, asked, Context(digits, cpu, seed=1))
    assert found.trained.hash == whole.trained.hash


def test_a_wrong_statement_is_noticed(dense: Trained, digits: Records, cpu: Runtime) -> None:
    """Control of both tests: a method that says less than it reads."""
    method, asked = make("FT", {}, digits, dense)
    reads = method.estimate_reads(dense, sizes_of(dense, asked, digits))
    assert reads is not None
    cost = method.forget(dense, asked, Context(digits, cpu)).cost
    assert cost.trained_records != (reads + Reads(retain=1)).trained
    with pytest.raises(DataError, match="no such record"):
        method.forget(dense, asked, Context(without_retained(digits, dense, asked), cpu))
