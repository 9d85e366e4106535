"""Trained models: hashes, influence-bearing state, independent copies; outcomes as JSON."""

from __future__ import annotations

import copy
import dataclasses
import json

import torch
from torch import nn

from expunge.core.mask import Mask, MaskProvenance
from expunge.core.outcome import Cost, versions
from expunge.core.split import Split
from expunge.core.trained import INFLUENCE_STATE, Provenance, Trained, clone_model


class Counter(nn.Module):
    """Counts its forward passes in training; `table` never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.arange(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count += 1
        return x


def trained(model: nn.Module, **changes: object) -> Trained:
    split = Split(retain=["a"], forget=[], validation=[], test=[], non_members=[])
    base = Trained(model, None, split, Provenance(architecture={"name": "x"}))
    return dataclasses.replace(base, **changes)


def test_hash_sees_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = trained(model).hash
    assert trained(copy.deepcopy(model)).hash == before
    other = copy.deepcopy(model)
    other[1].running_mean.add_(1e-6)
    assert trained(other).hash != before
    other = copy.deepcopy(model)
    other[0].bias.data[0].neg_()
    assert trained(other).hash != before


def test_a_copy_is_independent() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model(torch.rand(3, 2)).sum().backward()
    copied = clone_model(model)
    assert all(p.grad is None for p in copied.parameters())
    assert model[0].weight.grad is not None
    own = {t.data_ptr() for t in model.state_dict().values()}
    assert not own & {t.data_ptr() for t in copied.state_dict().values()}
    assert trained(copied).hash == trained(model).hash


def test_influence_state_is_named() -> None:
    plain = nn.Linear(2, 2)
    assert trained(plain).list_influence_state() == ("weights",)
    assert trained(nn.Sequential(nn.BatchNorm1d(2))).list_influence_state() == ("weights", "batch_norm")
    assert trained(nn.BatchNorm1d(2, track_running_stats=False)).list_influence_state() == ("weights",)
    everything = trained(
        nn.Sequential(plain, nn.BatchNorm1d(2), Counter()),
        mask=Mask({}, MaskProvenance("x")),
        provenance=Provenance(architecture={"normalisation_from": "training records"}),
        state={
            "patches": {},
            "pruning_scores": {},
            "pruning_weights": {},
            "rewind_checkpoint": {},
            "early_checkpoints": {},
            "optimiser_moments": {},
            "own": {},  # a method defined it
            "initial_weights": {},  # drawn before training
        },
    )
    assert everything.list_influence_state() == (*INFLUENCE_STATE, "own")


def test_provenance_round_trip() -> None:
    p = Provenance({"name": "mlp"}, {"name": "d", "hash": "h"}, {"epochs": 1}, {"initial": 2}, "training", ("one",))
    q = p.add_history("two")
    assert (p.history, q.history) == (("one",), ("one", "two"))
    body = json.loads(json.dumps(q.to_json()))
    assert Provenance.from_json({**body, "from a later release": 1}) == q


def test_passes_count_a_backward_as_two_forwards() -> None:
    assert Cost(200, 0, 100, 1.0).passes == 2
    assert Cost(0, 300, 100, 1.0).passes == 1
    assert Cost(5, 0, 0, 0.0).passes == 5


def test_steps_of_earlier_files_are_unknown() -> None:
    body = {"trained_records": 5, "forward_records": 3, "retain_records": 260, "seconds": 1.0, "passes": 0.02}
    assert Cost.from_json(body).optimiser_steps is None
    assert Cost.from_json({**body, "optimiser_steps": 7}) == Cost(5, 3, 260, 1.0, 7)


def test_versions_are_complete() -> None:
    assert {"python", "platform", "expunge", "torch", "numpy"} <= set(versions())
