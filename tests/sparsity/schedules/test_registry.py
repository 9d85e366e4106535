"""Schedules: the sparsity that they reach, the state that they store, the input that they refuse."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from sparse_toys import CPU, toy_trained

from expunge.core.errors import ConfigError, MaskError
from expunge.core.trained import plain_state
from expunge.sparsity import (
    Pruning,
    PruningRun,
    Schedule,
    criterion_names,
    find_channels,
    get_criterion,
    prune,
    register_schedule,
    repeat_pruning,
    schedule_names,
    scope_names,
    shrink,
)
from expunge.sparsity.channels.groups import find_kept_units
from expunge.sparsity.masks.granularity import obeys_pattern
from expunge.training import Context, fit
from expunge.training.loop import Interrupted


@pytest.fixture(scope="module")
def dense():
    return toy_trained("mlp", (12,), widths=(16, 12))


@pytest.fixture(scope="module")
def normed():
    return toy_trained("small-cnn", (4, 8, 8), widths=(8, 8), epochs=2)


@pytest.mark.parametrize("schedule", schedule_names())
@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_reaches_the_sparsity_and_repeats(dense, schedule, granularity):
    trained, records = dense
    before = {k: v.clone() for k, v in plain_state(trained.model).items()}
    how = {"sparsity": 0.5, "layers": ("linear",), "granularity": granularity, "schedule": schedule}
    sparse = prune(trained, Pruning(**how), Context(records, CPU))
    assert sparse.mask is not None
    assert sparse.mask.provenance.schedule == schedule
    if granularity == "weight":
        assert sparse.mask.kept_count == sparse.mask.total - round(0.5 * sparse.mask.total)
    assert sparse.mask.count_violations(sparse.model) == {}
    assert all(torch.equal(v, before[k]) for k, v in plain_state(trained.model).items())
    repeated = repeat_pruning(trained, sparse.mask, Context(records, CPU))
    assert repeated.hash == sparse.hash
    assert repeated.mask is not None
    assert repeated.mask.hash() == sparse.mask.hash()
    with pytest.raises(MaskError, match="already sparse"):
        prune(sparse, Pruning(**how), Context(records, CPU))


def compositions():
    """Every criterion with every granularity that it can rank, and every scope."""
    for criterion in criterion_names():
        granularities = ("filter",) if get_criterion(criterion).level == "channel" else ("weight", "filter", "2:4")
        for granularity in granularities:
            for scope in ("global",) if granularity == "2:4" else scope_names():
                yield criterion, granularity, scope


@pytest.mark.parametrize(("criterion", "granularity", "scope"), list(compositions()))
def test_criteria_granularities_and_scopes_compose(normed, criterion, granularity, scope):
    """On a network with convolutions and BatchNorm: the mask has the requested count and records its rule."""
    trained, records = normed
    sparsity = 0.5 if granularity == "2:4" else 0.25
    sparse = prune(
        trained,
        Pruning(
            sparsity=sparsity,
            layers=("conv",),
            criterion=criterion,
            granularity=granularity,
            scope=scope,
            schedule="one-shot",
            score_records=40,
        ),
        Context(records, CPU),
    )
    mask, provenance = sparse.mask, sparse.mask.provenance
    assert (provenance.criterion, provenance.granularity) == (criterion, granularity)
    assert provenance.scope == ("group" if granularity == "2:4" else scope)
    assert provenance.scores_hash
    assert mask.count_violations(sparse.model) == {}
    if granularity == "filter":
        channels = find_channels(trained.model, records.input_shape)
        pruned = ~find_kept_units(channels, dict(mask.kept))
        assert pruned.sum() == round(sparsity * len(pruned))
        small = shrink(sparse.model, mask, records.input_shape)
        assert small.parameters_after < 0.9 * small.parameters_before
    elif granularity == "weight":
        assert mask.kept_count == mask.total - round(sparsity * mask.total)
    else:
        assert all(obeys_pattern(kept, 2, 4) for kept in mask.kept.values())
        assert mask.density == 0.5


def test_imp_masks_are_nested_and_synflow_needs_its_rounds(dense):
    trained, records = dense
    how = {"layers": ("linear",)}
    less = prune(trained, Pruning(sparsity=1 - 0.8**2, schedule="imp", **how), Context(records, CPU))
    more = prune(trained, Pruning(sparsity=1 - 0.8**3, schedule="imp", **how), Context(records, CPU))
    for name, kept in more.mask.kept.items():
        assert not (kept & ~less.mask.kept[name]).any()
    # one round of SynFlow prunes a whole layer (layer collapse, in its paper), its 100 rounds do not
    with pytest.raises(MaskError, match="loses every weight"):
        prune(
            trained,
            Pruning(sparsity=0.9, criterion="SynFlow", schedule="at-init", options={"rounds": 1}, **how),
            Context(records, CPU),
        )
    many = prune(trained, Pruning(sparsity=0.9, criterion="SynFlow", schedule="at-init", **how), Context(records, CPU))
    assert many.mask.kept_count == many.mask.total - round(0.9 * many.mask.total)
    assert prune(trained, Pruning(sparsity=0.0, schedule="imp", **how), Context(records, CPU)).mask.sparsity == 0


def test_gradual_pruning_resumes_to_the_same_bits(dense, tmp_path, monkeypatch):
    """Interrupted after every epoch (a checkpoint each), resumed: same mask, same weights."""
    from expunge.training import loop

    trained, records = dense
    how = {"sparsity": 0.6, "layers": ("linear",), "schedule": "gradual"}
    whole = prune(trained, Pruning(**how), Context(records, CPU))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    seen = []

    def stop_in_epoch_five(label, done, total, info):
        seen.append(info["epoch"])
        if info["epoch"] == 5 and len(seen) < 1000:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.time, "perf_counter", iter(range(10**6)).__next__)
    path = tmp_path / "gradual.safetensors"
    with pytest.raises(Interrupted):
        prune(trained, Pruning(**how), Context(records, CPU, checkpoint=path, progress=stop_in_epoch_five))
    assert path.exists()
    resumed = prune(trained, Pruning(**how), Context(records, CPU, checkpoint=path))
    assert resumed.hash == whole.hash
    assert resumed.mask.hash() == whole.mask.hash()


def test_soft_pruning_stores_the_weights_that_it_scored_last(dense):
    trained, records = dense
    soft = prune(
        trained,
        Pruning(
            sparsity=0.5,
            layers=("linear",),
            granularity="filter",
            criterion="filter-l2",
            schedule="soft-filter",
            keep_weights=True,
        ),
        Context(records, CPU),
    )
    assert soft.mask.count_violations(soft.model) == {}
    assert "pruning_weights" in soft.state


def test_scoring_records_do_not_change_when_others_are_removed(dense):
    """Data-driven criteria choose the records that they read by hash: forgetting one does not affect the others."""
    trained, records = dense
    pruning, context = Pruning(criterion="SNIP", layers=("linear",), score_records=30), Context(records, CPU, seed=3)
    seen = torch.cat([x for x, _ in PruningRun(trained, pruning, context).make_scoring_batches()()])
    split = trained.split
    fewer = dataclasses.replace(trained, split=dataclasses.replace(split, retain=split.retain[10:]))
    after = torch.cat([x for x, _ in PruningRun(fewer, pruning, context).make_scoring_batches()()])
    common = sum(bool((x == after).all(1).any()) for x in seen)
    removed = {tuple(records.features[i].tolist()) for i in records.rows(split.retain[:10])}
    assert common == sum(tuple(x.tolist()) not in removed for x in seen)


def test_refusals(dense):
    trained, records = dense
    how = {"layers": ("linear",)}
    with pytest.raises(ConfigError, match="did you mean 'imp'"):
        prune(trained, Pruning(schedule="impp", **how), Context(records, CPU))
    with pytest.raises(ConfigError, match="no option 'rats'"):
        prune(trained, Pruning(schedule="imp", options={"rats": 0.1}, **how), Context(records, CPU))
    with pytest.raises(ConfigError, match="rate"):
        prune(trained, Pruning(schedule="imp", options={"rate": 1.0}, **how), Context(records, CPU))
    with pytest.raises(ConfigError, match="step by step"):
        prune(trained, Pruning(schedule="imp", granularity="2:4", **how), Context(records, CPU))
    with pytest.raises(ConfigError, match="begin"):
        prune(trained, Pruning(schedule="gradual", options={"begin": 0.9, "end": 0.5}, **how), Context(records, CPU))
    bare = dataclasses.replace(trained, state={})
    with pytest.raises(MaskError, match="rewind checkpoint"):
        prune(bare, Pruning(schedule="omp", **how), Context(records, CPU))
    unknown = dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, seeds={}))
    with pytest.raises(MaskError, match="initial weights"):
        prune(unknown, Pruning(schedule="at-init", **how), Context(records, CPU))
    sparse = prune(trained, Pruning(sparsity=0.5, schedule="one-shot", **how), Context(records, CPU))
    other = dataclasses.replace(sparse.mask, provenance=dataclasses.replace(sparse.mask.provenance, schedule="?"))
    with pytest.raises(MaskError, match="cannot be repeated"):
        repeat_pruning(trained, other, Context(records, CPU))
    assert callable(fit)


def test_a_schedule_has_the_defaults_of_its_decorator():
    """The decorator refers to the class for its arguments. By default a schedule trains, so it needs a recipe."""
    arguments = inspect.signature(register_schedule).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Schedule)}
    for name in ("rewinds", "trains", "check", "round_sparsities"):
        assert fields[name] == arguments[name].default, name
