"""One-shot pruning with rewinding: what is rewound, what is recorded, and the dense model is not modified."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import ConfigError, Interrupted, MaskError
from expunge.core.hashing import hash_tensors
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.sparsity import Pruning, prunable_weights, prune, score_weights, select_global
from expunge.training import Context, Recipe, Runtime, fit, loop
from expunge.training.train import prune_seed


def whole_hash(trained: Trained) -> str:
    states = {f"{name}/{k}": v for name, state in trained.state.items() for k, v in state.items()}
    return hash_tensors({**trained.model.state_dict(), **states})


def test_the_dense_model_is_not_modified(dense: Trained, digits: Records, cpu: Runtime) -> None:
    before, provenance = whole_hash(dense), dense.provenance
    found = prune(dense, Pruning(sparsity=0.5), Context(digits, cpu))
    assert whole_hash(dense) == before
    assert dense.mask is None
    assert dense.provenance == provenance
    assert "pruning_scores" not in dense.state
    assert found.model is not dense.model


def test_what_is_recorded(sparse: Trained, dense: Trained) -> None:
    assert sparse.mask is not None
    total = sparse.mask.total
    assert sparse.mask.kept_count == total - round(0.6 * total)
    assert sparse.mask.count_violations(sparse.model) == {}
    p = sparse.mask.provenance
    assert (p.criterion, p.scope, p.layers, p.schedule) == ("magnitude", "global", ("conv", "linear"), "omp")
    assert p.scores_hash == hash_tensors(sparse.state["pruning_scores"])
    assert p.details["rewind_epoch"] == 2
    assert sparse.list_influence_state() == ("weights", "batch_norm", "mask", "pruning_scores", "rewind_checkpoint")
    assert len(sparse.provenance.history) == 2
    assert sparse.split.hash == dense.split.hash


def test_the_mask_ranks_the_final_weights(sparse: Trained, dense: Trained) -> None:
    """The final weights of the dense model, not those of the rewind checkpoint."""
    ranked = score_weights("magnitude", prunable_weights(dense.model, ("conv", "linear")))
    expected = select_global(ranked, 0.6)
    assert sparse.mask is not None
    assert hash_tensors(dict(sparse.mask.kept)) == hash_tensors(expected)
    early = {k: dense.state["rewind_checkpoint"][k].abs() for k in ranked}
    assert hash_tensors(expected) != hash_tensors(select_global(early, 0.6))


def test_every_tensor_is_rewound(dense: Trained, digits: Records, cpu: Runtime) -> None:
    """With no epoch left after the rewind, the model is the masked checkpoint, buffers and classifier included."""
    recipe = {**dense.provenance.recipe, "rewind": 1.0}
    early = dense.state["rewind_checkpoint"]
    start = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, recipe=recipe))
    found = prune(start, Pruning(sparsity=0.7, layers=("conv",)), Context(digits, cpu))
    assert found.mask is not None
    state = found.model.state_dict()
    assert state.keys() == early.keys()
    for name, tensor in early.items():
        kept = found.mask.kept.get(name)
        expected = tensor if kept is None else torch.where(kept, tensor, torch.zeros(()))
        assert hash_tensors({"t": state[name]}) == hash_tensors({"t": expected}), name
    assert hash_tensors(early) != dense.hash


@pytest.mark.parametrize(("epochs", "stop"), [("remaining", 12), ("full", 14)])
def test_training_continues_from_the_checkpoint(
    dense: Trained, digits: Records, cpu: Runtime, epochs: str, stop: int
) -> None:
    """Pruning equals rewinding, masking and training by hand."""
    found = prune(dense, Pruning(sparsity=0.5, epochs=epochs), Context(digits, cpu, seed=4))
    model = copy.deepcopy(dense.model)
    model.load_state_dict(dense.state["rewind_checkpoint"])
    plan = Recipe(**dense.provenance.recipe)
    rows = digits.rows(dense.split.train)
    fit(model, rows, plan, Context(digits, cpu, prune_seed(4)), mask=found.mask, start=2, stop=stop)
    assert hash_tensors(model.state_dict()) == found.hash


def test_seeds(dense: Trained, digits: Records, cpu: Runtime) -> None:
    a, b, c = (prune(dense, Pruning(sparsity=0.5), Context(digits, cpu, seed=s)) for s in (1, 1, 2))
    assert a.hash == b.hash != c.hash
    assert a.mask is not None
    assert c.mask is not None
    assert a.mask.hash() == c.mask.hash(), "the mask depends on the dense weights only"


def test_no_sparsity_keeps_every_weight(dense: Trained, digits: Records, cpu: Runtime) -> None:
    found = prune(dense, Pruning(sparsity=0.0), Context(digits, cpu))
    assert found.mask is not None
    assert found.mask.density == 1.0


def test_resumed_equals_uninterrupted(
    dense: Trained, digits: Records, cpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    def stop(label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if info["epoch"] == 6:
            raise KeyboardInterrupt

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1
            return self.now

    monkeypatch.setattr(loop, "time", Clock())
    path = tmp_path / "c"
    with pytest.raises(Interrupted):
        prune(dense, Pruning(sparsity=0.5), Context(digits, cpu, checkpoint=path, progress=stop))
    assert path.exists()
    resumed = prune(dense, Pruning(sparsity=0.5), Context(digits, cpu, checkpoint=path))
    assert resumed.hash == prune(dense, Pruning(sparsity=0.5), Context(digits, cpu)).hash


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schedule": "opm"}, ConfigError, "did you mean 'omp'"),
        ({"epochs": "all"}, ConfigError, "`remaining` or `full`"),
        ({"layers": ("convs",)}, ConfigError, "did you mean 'conv'"),
        ({"criterion": "x"}, ConfigError, "known: .*magnitude"),
        ({"sparsity": 1.0}, MaskError, "fraction in"),
        ({"sparsity": 0.9999}, MaskError, "loses every weight"),
    ],
)
def test_wrong_options(
    dense: Trained, digits: Records, cpu: Runtime, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prune(dense, Pruning(**changes), Context(digits, cpu))


def test_what_cannot_be_pruned(dense: Trained, sparse: Trained, mlp: Trained, digits: Records, cpu: Runtime) -> None:
    with pytest.raises(MaskError, match="already sparse"):
        prune(sparse, Pruning(), Context(digits, cpu))
    with pytest.raises(MaskError, match="no rewind checkpoint"):
        prune(dataclasses.replace(dense, state={}), Pruning(), Context(digits, cpu))
    with pytest.raises(MaskError, match="no conv layer"):
        prune(mlp, Pruning(), Context(digits, cpu))
    nameless = dataclasses.replace(dense, provenance=dataclasses.replace(dense.provenance, recipe={}))
    with pytest.raises(MaskError, match="recipe of the dense model is not recorded"):
        prune(nameless, Pruning(), Context(digits, cpu))
    broken = copy.deepcopy(dense.model)
    broken.blocks[0][0].weight.data[0] = float("nan")
    with pytest.raises(MaskError, match="NaN"):
        prune(dataclasses.replace(dense, model=broken), Pruning(), Context(digits, cpu))
