"""How much of the state a method changed: against a comparison of the tensors that is written here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.core.files import read_run_file, write_json
from expunge.core.mask import Mask
from expunge.core.outcome import Extent, Outcome, format_percent
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.experiments import load_config
from expunge.methods import Context, get_method
from expunge.methods.changes import compare_models, find_rewritten
from expunge.report.content import (
    Comparison,
    InfluenceState,
    ModelResult,
    ReportContent,
    RequestSummary,
    Scenario,
)
from expunge.report.limits import list_limits
from expunge.training import Runtime
from expunge.workflow import forget


class Running(nn.Module):
    """Hand-made running statistics, one of them as a frozen parameter, beside a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 12)
        self.norm = nn.BatchNorm1d(12)
        self.last = nn.Linear(12, 10)
        self.register_buffer("centre", torch.zeros(64))
        self.register_buffer("constant", torch.ones(3))
        self.level = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(x.mean(0), 0.1)
                self.level.lerp_(x.mean().reshape(1), 0.1)
        return self.last(torch.relu(self.norm(self.first(x - self.centre + self.level))))


def make(kind: type[nn.Module], mlp: Trained) -> Trained:
    torch.manual_seed(2)
    net = kind()
    net(torch.rand(32, 1, 8, 8))
    return dataclasses.replace(mlp, model=net.eval(), mask=None, state={})


def count(before: nn.Module, after: nn.Module, names: list[str]) -> tuple[int, int, int, int]:
    """Tensors, changed tensors, entries, changed entries."""
    old, new = before.state_dict(), after.state_dict()
    changed = [int((old[n] != new[n]).sum()) for n in names]
    return len(names), sum(map(bool, changed)), sum(new[n].numel() for n in names), sum(changed)


def check_weights(outcome: Outcome, original: Trained, names: list[str], status: str) -> None:
    extent = outcome.extents["weights"]
    expected = count(original.model, outcome.trained.model, names)
    found = (extent.tensors, extent.changed_tensors, extent.entries, extent.changed_entries)
    assert found == expected
    assert extent.status == status


WEIGHTS = ["first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "last.bias"]


def test_fine_tuning_with_a_frozen_layer(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    original = make(Running, mlp)
    original.model.first.requires_grad_(False)
    outcome = get_method("FT", epochs=1, batch_norm="frozen").forget(original, request_20, Context(digits, cpu))
    check_weights(outcome, original, WEIGHTS, "partly rewritten")
    assert outcome.extents["weights"].unchanged_names == ("first.weight", "first.bias")
    assert outcome.partly_rewritten == ("weights",)
    assert "weights" in outcome.rewrote
    assert outcome.carried == ("batch_norm", "buffers")
    assert outcome.extents["buffers"].names == ("level", "centre")  # not the constant
    assert outcome.extents["buffers"].describe() == "unchanged (level, centre)"
    text = outcome.extents["weights"].describe()
    assert text.startswith("partly rewritten (4 of 6 tensors, ")
    assert text in repr(outcome)


def test_running_statistics_that_move_are_not_weights(
    mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    original = make(Running, mlp)
    method = get_method("FT", epochs=1, learning_rate=0.0, batch_norm="train")
    outcome = method.forget(original, request_20, Context(digits, cpu))
    assert outcome.rewrote == ("batch_norm", "buffers")
    assert outcome.carried == ("weights",)
    assert outcome.extents["buffers"].describe().startswith("rewritten (")
    assert outcome.extents["weights"].status == "unchanged"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("GA", {"epochs": 2}, 1.0),
        ("GA", {"epochs": 2, "batch_norm": "frozen"}, None),
        ("GA", {"epochs": 2, "batch_norm": "re-estimate"}, None),
        ("FT", {"epochs": 1}, 0.0),
        ("RL", {"epochs": 1}, "a part"),
        ("then", {"steps": [{"name": "FT", "options": {"epochs": 1}}, {"name": "GA", "options": {"epochs": 1}}]},
         "a part"),
    ],
)  # fmt: skip
def test_running_statistics_that_records_of_the_forget_set_moved(
    name: str, options: dict[str, Any], expected: float | str | None, mlp: Trained, digits: Records,
    request_20: ForgetRequest, cpu: Runtime,
) -> None:  # fmt: skip
    original = make(Running, mlp)
    outcome = get_method(name, **options).forget(original, request_20, Context(digits, cpu))
    extent = outcome.extents["batch_norm"]
    if expected == "a part":
        whole = len(request_20.record_ids) + len(outcome.trained.split.retain)
        assert extent.from_forget == pytest.approx(len(request_20.record_ids) / whole)
    else:
        assert extent.from_forget == expected
    assert extent.follows_forget == (expected == 1.0)
    assert ("towards D_f" in outcome._summarise().facts) == (expected == 1.0)
    assert Extent.from_json(extent.to_json()) == extent
    content = ModelResult.from_outcome(outcome.to_json())
    scenario = Scenario("s", RequestSummary(20), (Comparison("dense", (content,)),))
    found = [limit for limit in list_limits(ReportContent("t", (scenario,))) if "moved towards" in limit.statement]
    assert bool(found) == (expected == 1.0)
    if found:
        assert "GA (s, dense: batch norm moved towards those of D_f: every record" in found[0].explanation


class Instances(nn.Module):
    """InstanceNorm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.last = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).flatten(1))


@pytest.mark.parametrize(
    ("mode", "said"), [("frozen", "unchanged"), ("train", "rewritten"), ("re-estimate", "rewritten")]
)
def test_running_statistics_of_instance_norm(
    mode: str, said: str, mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """Its counter of batches stays 0, and is no statistic that could be carried."""
    original = make(Instances, mlp)
    outcome = get_method("FT", epochs=1, batch_norm=mode).forget(original, request_20, Context(digits, cpu))
    assert outcome.extents["batch_norm"].describe() == said
    assert ("batch_norm" in outcome.recomputed) == (mode == "re-estimate")
    assert ("batch_norm" in outcome.carried) == (mode == "frozen")


def test_mask_logit_changes_one_row(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    request = forget_class(digits, mlp.split, 3)
    outcome = get_method("mask-logit").forget(mlp, request, Context(digits, cpu))
    names = [name for name, _ in mlp.model.named_parameters()]
    check_weights(outcome, mlp, names, "partly rewritten")
    assert outcome.extents["weights"].changed_tensors == 2
    assert outcome.extents["weights"].changed_entries == 12 + 1


def test_retraining_and_an_ordinary_run_rewrite_all(
    dense: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """A value that training from scratch happens to reach again is not carried."""
    context = Context(digits, cpu)
    for name, options in (("Retrain", {}), ("FT", {"epochs": 1})):
        outcome = get_method(name, **options).forget(dense, request_20, context)
        assert outcome.partly_rewritten == (), name
        assert outcome.extents["weights"].describe() == "rewritten"
    retrained = get_method("Retrain").forget(mlp_with_unused(dense), request_20, context)
    assert retrained.recomputed == retrained.rewrote
    empty = get_method("FT").forget(dense, ForgetRequest(()), context)
    assert (empty.extents, empty.changes) == ({}, ())


def mlp_with_unused(trained: Trained) -> Trained:
    return dataclasses.replace(trained, model=clone_model(trained.model))


def test_entries_that_the_mask_prunes_do_not_count(
    sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    outcome = get_method("FT", epochs=1).forget(sparse, request_20, Context(digits, cpu))
    assert sparse.mask is not None
    total = sum(p.numel() for p in sparse.model.parameters())
    assert outcome.extents["weights"].entries == total - (sparse.mask.total - sparse.mask.kept_count)
    assert outcome.extents["weights"].status == "rewritten"


def test_entries_that_two_different_masks_prune_do_not_count(sparse: Trained) -> None:
    """Un-prune changes the mask: what is pruned before and after stays +0.0, and is no rest of training on D_f."""
    assert sparse.mask is not None
    regrown = {name: kept.clone() for name, kept in sparse.mask.kept.items()}
    name, kept = next(iter(regrown.items()))
    place = tuple((~kept).nonzero()[0].tolist())
    kept[place] = True
    model = clone_model(sparse.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    mask = Mask(regrown, sparse.mask.provenance)
    mask.apply_(model)
    changes = {c.name: c for c in compare_models(sparse, dataclasses.replace(sparse, model=model, mask=mask))}
    assert changes[name].total == int(kept.sum()) == int(sparse.mask.kept[name].sum()) + 1
    assert {change.status for change in changes.values() if change.kind == "parameter"} == {"changed"}
    pruned = {name: torch.zeros_like(kept) for name, kept in sparse.mask.kept.items()}
    mask = Mask(pruned, sparse.mask.provenance)
    mask.apply_(model)
    after = dataclasses.replace(sparse, model=model, mask=mask)
    found = next(change for change in compare_models(sparse, after) if change.name == name)
    assert found.total == int(sparse.mask.kept[name].sum())  # weights that were lost count


@pytest.mark.parametrize(("equal", "said"), [(3, "rewritten"), (60, "partly rewritten")])
def test_a_few_equal_entries_do_not_decide(
    equal: int, said: str, mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    outcome = get_method("FT", epochs=1).forget(mlp, request_20, Context(digits, cpu))
    changes = tuple(
        dataclasses.replace(c, changed=c.total - (equal if c.name == "hidden.0.weight" else 0))
        if c.kind == "parameter" else c for c in outcome.changes
    )  # fmt: skip
    found = dataclasses.replace(outcome, changes=changes)
    extent = found.extents["weights"]
    assert (extent.status, extent.entries - extent.changed_entries) == (said, equal)
    line = found._summarise().facts["rewrote"]()
    assert ("weights" in line) == (said == "rewritten"), line  # one kind is not in two lines


def test_the_file_the_text_and_the_report_say_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "{data: {source: digits}, split: {limit: 200}, model: {name: mlp, options: {widths: [6]}},"
        " training: {recipe: one-cycle, epochs: 1}, method: {name: mask-logit}, forget: {by: class, index: 3}}"
    )
    result = forget(load_config(path), tmp_path / "out", store=tmp_path / "store")
    extent = result.outcome["state"]["extent"]["weights"]
    said = "partly rewritten (2 of 4 tensors, 1.5 % of the entries changed)"
    assert (extent["changed_tensors"], extent["tensors"], extent["changed_entries"]) == (2, 4, 7)
    assert extent["entries"] == 64 * 6 + 6 + 6 * 10 + 10
    assert {c["name"]: c["changed"] for c in result.outcome["state"]["changes"] if c["kind"] == "parameter"} == {
        "hidden.0.weight": 0, "hidden.0.bias": 0, "classifier.weight": 6, "classifier.bias": 1,
    }  # fmt: skip
    assert f"partly unchanged since training on D_f: weights: {said}" in result.text()
    assert "all state was rewritten" not in result.text()
    assert "\ncost: 0.00 passes over " in result.text()
    assert ", 0 optimiser steps, " in result.text()
    assert ", 0 optimiser steps, " in repr(result)
    assert said in repr(result)
    assert said in (tmp_path / "out" / "report.html").read_text()


def test_files_without_extents_are_read(tmp_path: Path) -> None:
    body = {
        "request": {"record_ids": [], "selection": {}, "forgotten_class": None},
        "cost": {"trained_records": 0, "forward_records": 0, "retain_records": 1, "seconds": 1.0},
        "state": {"rewrote": ["weights"], "dropped": [], "carried": [], "meaning": {}},
    }
    write_json(tmp_path / "outcome.json", "expunge.outcome", 2, body)
    read = read_run_file(tmp_path / "outcome.json", "expunge.outcome", 2)
    assert InfluenceState.from_json(read["state"]).extents == {}


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0 %"), (5, 5, "100 %"), (1, 10**6, "< 0.01 %"), (10**6 - 1, 10**6, "> 99.99 %"), (4, 1000, "0.4 %"),
     (9996, 10_000, "99.96 %"), (5, 10_000, "0.05 %"), (0, 0, "0 %")],
)  # fmt: skip
def test_percentages_never_round_to_none_or_all(part: int, whole: int, text: str) -> None:
    assert format_percent(part, whole) == text


def test_extents_are_json_values() -> None:
    extent = Extent("partly rewritten", 3, 1, 30, 4, ("a", "b"), ("c",))
    assert Extent.from_json(json.loads(json.dumps(extent.to_json()))) == extent


def test_equal_state_in_another_object_is_not_rewritten(mlp: Trained) -> None:
    state = {name: {"a": torch.arange(3.0)} for name in ("same", "equal", "other", "new")}
    before = dataclasses.replace(mlp, state={name: state[name] for name in ("same", "equal", "other")})
    after = dataclasses.replace(
        mlp, state={**state, "equal": {"a": torch.arange(3.0)}, "other": {"a": torch.arange(3.0) + 1}}
    )
    assert find_rewritten(before, after, []) == {"other", "new"}


def test_a_mask_is_rewritten_where_a_weight_came_back_and_not_where_some_were_only_lost(sparse: Trained) -> None:
    assert sparse.mask is not None
    generator = torch.Generator().manual_seed(0)
    thinned = {
        name: kept & (torch.rand(kept.shape, generator=generator) < 0.7) for name, kept in sparse.mask.kept.items()
    }
    after = dataclasses.replace(sparse, mask=Mask(thinned, sparse.mask.provenance))
    assert after.mask.kept_count < sparse.mask.kept_count
    assert find_rewritten(sparse, after, []) == set()
    assert find_rewritten(after, sparse, []) == {"mask"}
    assert find_rewritten(dataclasses.replace(sparse, mask=None), sparse, []) == {"mask"}


def test_a_mask_that_keeps_most_of_its_entries_is_partly_rewritten(
    sparse: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime
) -> None:
    assert sparse.mask is not None
    method = get_method("Un-prune", method="FT", method_options={"epochs": 1}, initial="random")
    outcome = method.forget(sparse, request_20, Context(digits, cpu))
    after = outcome.trained.mask
    assert after is not None
    both = [(kept, after.kept[name]) for name, kept in sparse.mask.kept.items()]
    changed = sum(int((a != b).sum()) for a, b in both)
    entries = sum(int((a | b).sum()) for a, b in both)
    tensors = sum(not torch.equal(a, b) for a, b in both)
    extent = outcome.extents["mask"]
    assert 0 < changed < entries
    assert (extent.changed_entries, extent.entries, extent.changed_tensors) == (changed, entries, tensors)
    assert (extent.tensors, extent.status) == (len(both), "partly rewritten")
    assert "mask: partly rewritten" in repr(outcome)
    assert "mask" in outcome.partly_rewritten
    assert "mask" not in outcome.changed
    assert Extent.from_json(outcome.to_json()["state"]["extent"]["mask"]) == extent


def test_what_started_from_the_weights_trained_on_the_forgotten_records(
    mlp: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime
) -> None:
    context = Context(digits, cpu)
    tuned = get_method("FT", epochs=1).forget(mlp, request_20, context)
    assert tuned.changed == ("weights",)
    assert "weights: changed from what was trained on D_f" in repr(tuned)
    retrained = get_method("Retrain").forget(mlp, request_20, context)
    assert retrained.changed == ()
    assert "changed from what" not in repr(retrained)
