"""Pruning, curvature and unlearning methods run on adapted models of transformers, with the user's names of weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_transformers import make_model, make_records

import expunge
from expunge.core.errors import MaskError
from expunge.models import live
from expunge.sparsity import shrink
from expunge.sparsity.channels import dependency
from expunge.sparsity.channels.groups import find_channels
from expunge.training.curvature import per_record_gradients

pytest.importorskip("transformers")
KINDS = ("bert", "vit")


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    kind = request.param
    records = make_records(kind)
    split = expunge.make_split(records, seed=0)
    name = live.register_factory(lambda: make_model(kind), title=f"small-{kind}")
    architecture = expunge.architecture(name, records, split)
    assert architecture.call.output == "logits"
    recipe = dataclasses.replace(expunge.get_recipe("one-cycle", epochs=2), batch_size=8)
    return records, expunge.train(records, split, architecture, recipe=recipe)


def forget(trained, records, method, **options):
    request = expunge.forget_random(records, trained.split, count=4, seed=1)
    return expunge.get_method(method, **options).forget(trained, request, expunge.Context(records))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("FT", {"epochs": 1, "batch_size": 8}),
        ("GA", {"epochs": 1, "batch_size": 8}),
        ("l1-sparse", {"epochs": 1, "batch_size": 8}),
        ("Retrain", {}),
    ],
)
def test_methods_run_and_keep_names_and_class(trained, method, options):
    records, original = trained
    outcome = forget(original, records, method, **options)
    before, after = original.model.state_dict(), outcome.trained.model.state_dict()
    assert list(before) == list(after)
    assert type(outcome.trained.model) is type(original.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


@pytest.mark.parametrize("granularity", ["weight", "2:4"])
def test_masked_weights_stay_zero_under_a_method(trained, granularity, tmp_path):
    records, original = trained
    sparsity = 0.5 if granularity == "2:4" else 0.6
    pruning = expunge.Pruning(
        sparsity=sparsity, layers=("linear",), granularity=granularity, criterion="magnitude", schedule="one-shot"
    )
    sparse = expunge.prune(original, pruning, expunge.Context(records))
    assert sparse.mask is not None
    assert abs(sparse.mask.sparsity - sparsity) < 0.01
    outcome = forget(sparse, records, "FT", epochs=1, batch_size=8)
    assert outcome.trained.mask.count_violations(outcome.trained.model) == {}
    expunge.save_trained(outcome.trained, tmp_path / "model")
    loaded = expunge.load_trained(tmp_path / "model")
    assert loaded.hash == outcome.trained.hash
    assert type(loaded.model) is type(original.model)


def test_gradients_of_single_records_average_to_that_of_the_batch(trained):
    records, original = trained
    model = original.model.eval()
    x, y = torch.from_numpy(records.features[:4]), torch.from_numpy(records.labels[:4])
    found = per_record_gradients(model, x, y)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name].mean(0), parameter.grad, atol=1e-5), name
    model.zero_grad()


def test_heads_and_mlp_channels_are_pruned_and_removed_as_a_whole(trained):
    records, original = trained
    pruning = expunge.Pruning(
        0.5, layers=("linear",), granularity="filter", criterion="filter-l2", scope="layer", schedule="one-shot"
    )
    sparse = expunge.prune(original, pruning, expunge.Context(records))
    names = [name for name in sparse.mask.kept if "attention" in name and name.endswith("weight")]
    assert len(names) == 6  # queries, keys and values of 2 layers
    for name in names:
        heads = sparse.mask.kept[name].reshape(4, 8, 32)  # 4 heads of 8 rows
        assert all(bool(head.all()) or not bool(head.any()) for head in heads), name
    assert any("intermediate" in name or "fc1" in name for name in sparse.mask.kept)
    outcome = forget(sparse, records, "FT", epochs=1, batch_size=8)
    assert outcome.trained.mask.count_violations(outcome.trained.model) == {}
    model = outcome.trained.model.eval()
    small = shrink(model, outcome.trained.mask, records.input_shape)
    assert small.parameters_after < small.parameters_before
    x = torch.from_numpy(records.features[:6])
    with torch.no_grad():
        assert torch.allclose(small.model(x), model(x), atol=1e-5)


def test_units_whose_removal_changes_the_logits_are_refused(trained, monkeypatch):
    records, original = trained
    monkeypatch.setattr(dependency, "_HEADS", ())  # single channels of a head are no unit
    with pytest.raises(MaskError, match=r"cannot be traced(.|\n)*(logits differ|cannot be run)"):
        find_channels(original.model, records.input_shape)
