"""Edge cases of un-pruning: partial masks, BatchNorm buffers after re-pruning, inner methods, what is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import MaskError, MethodError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.methods import Context, get_method
from expunge.methods.unprune.rescoring import sample
from expunge.models import Architecture
from expunge.sparsity import Pruning, Rule, make_mask, prune
from expunge.training import Recipe, batchnorm, train

IDENTITY = {"method": "FT", "method_options": {"epochs": 0}}
BOTH = ("conv", "linear")
FILTERS = {"layers": ("conv",), "granularity": "filter", "criterion": "filter-l2"}


@pytest.fixture(scope="module")
def context(digits, cpu):
    return Context(digits, cpu, seed=1)


def with_mask(trained, kept, **provenance):
    """The model with another mask, applied to its weights."""
    mask = Mask(kept, dataclasses.replace(trained.mask.provenance, **provenance))
    model = Architecture.from_json(trained.provenance.architecture).build(0)
    model.load_state_dict(trained.model.state_dict())
    mask.apply_(model)
    return dataclasses.replace(trained, model=model, mask=mask)


@pytest.mark.parametrize("rule", ["magnitude", "gradient", "random", "dense"])
def test_a_mask_that_leaves_a_layer_out_is_re_pruned_in_the_other_layers(sparse, request_20, context, rule):
    first, *others = sorted(sparse.mask.kept)
    kept = {name: sparse.mask.kept[name] for name in others}
    details = {**sparse.mask.provenance.details, "sparsity": Mask(kept, sparse.mask.provenance).sparsity}
    partial = with_mask(sparse, kept, details=details)
    after = get_method("Un-prune", rule=rule, method="FT", method_options={"epochs": 1}).forget(
        partial, request_20, context
    )
    assert sorted(after.trained.mask.kept) == others
    assert after.trained.mask.kept_count == partial.mask.kept_count
    assert (dict(after.trained.model.named_parameters())[first] != 0).all()


def test_masked_biases_stay_masked(sparse, request_20, context):
    bias = next(n for n, p in sparse.model.named_parameters() if n.endswith("classifier.bias"))
    half = torch.arange(10) % 2 == 0
    partial = with_mask(sparse, {**sparse.mask.kept, bias: half})
    for rule in ("random", "dense"):
        after = get_method("Un-prune", rule=rule, method="FT", method_options={"epochs": 1}).forget(
            partial, request_20, context
        )
        assert torch.equal(after.trained.mask.kept[bias], half)
        assert (dict(after.trained.model.named_parameters())[bias][~half] == 0).all()


def test_incomplete_channels_are_an_error(sparse, request_20, context):
    declared = with_mask(sparse, sparse.mask.kept, granularity="filter", criterion="filter-l2", layers=("conv",))
    with pytest.raises(MaskError, match=r"declared to prune coupled channels of conv layers, but does not name blocks"):
        get_method("Un-prune", **IDENTITY).forget(declared, request_20, context)


def test_pruned_weights_stay_pruned(dense, digits):
    shape, rule = digits.input_shape, Rule("magnitude", "weight", "layer", ("conv", "linear"), 0.2)
    within, _ = make_mask(dense.model, dataclasses.replace(rule, sparsity=0.7), input_shape=shape)
    for granularity, sparsity in (("weight", 0.2), ("2:4", 0.5)):
        mask, _ = make_mask(
            dense.model, dataclasses.replace(rule, granularity=granularity, sparsity=sparsity),
            input_shape=shape, within=within,
        )  # fmt: skip
        for name, kept in mask.kept.items():
            assert not (kept & ~within.kept[name]).any()
    assert make_mask(dense.model, rule, input_shape=shape, within=within)[0].hash() == within.hash()


def test_batch_norm_statistics_are_those_of_the_pruned_network(sparse, request_20, context, cpu):
    """After re-pruning, the buffers equal those of one pass of the final network over D_r, if requested."""
    options = {"rule": "magnitude", "method": "FT", "growth": 0.5}
    split = request_20.apply(sparse.split)
    for settings, expected in (
        ({"method_options": {"epochs": 1}}, True),
        ({"method_options": {"epochs": 1}, "re_estimate": 0}, False),
        ({"method_options": {"epochs": 1, "batch_norm": "frozen"}}, False),
    ):
        outcome = get_method("Un-prune", **options, **settings).forget(sparse, request_20, context)
        found = {n: b.clone() for n, b in outcome.trained.model.named_buffers() if "running" in n}
        copied = Architecture.from_json(outcome.trained.provenance.architecture).build(0)
        copied.load_state_dict(outcome.trained.model.state_dict())
        retain = sample(sparse, context, split.retain, 2048, cpu)
        batchnorm.re_estimate(copied, retain.in_order(), cpu)
        same = all(torch.allclose(b, found[n], rtol=1e-4, atol=1e-5) for n, b in copied.named_buffers() if n in found)
        assert same is expected
        assert (outcome.cost.forward_records == len(split.retain)) is expected
        assert ("batch_norm" in outcome.rewrote) is ("frozen" not in str(settings))


def test_methods_that_do_not_train_cannot_be_inner_methods():
    with pytest.raises(MethodError, match="patch does not train weights"):
        get_method("Un-prune", method="patch")
    assert get_method("Un-prune", method="patch", rule="unchanged").rule == "unchanged"


def test_proximal_l1_thins_a_mask_of_weights_but_not_of_channels(sparse, dense, digits, request_20, context, cpu):
    proximal = get_method("l1-sparse", step="proximal", gamma=0.05, epochs=3, learning_rate=0.05)
    after = proximal.forget(sparse, request_20, context).trained
    assert sorted(after.mask.kept) == sorted(sparse.mask.kept)
    assert after.mask.kept_count < sparse.mask.kept_count
    assert not any((after.mask.kept[n] & ~sparse.mask.kept[n]).any() for n in sparse.mask.kept)
    assert after.mask.provenance.layers == sparse.mask.provenance.layers
    assert after.mask.provenance.details["sparsity"] == after.mask.sparsity
    filters = prune(dense, Pruning(sparsity=0.5, **FILTERS, keep_weights=True), Context(digits, cpu))
    assert proximal.forget(filters, request_20, context).trained.mask.hash() == filters.mask.hash()
    inner = {
        "method": "l1-sparse",
        "method_options": {"step": "proximal", "gamma": 0.05, "epochs": 3, "learning_rate": 0.05},
    }
    for rule in ("magnitude", "influence"):
        outcome = get_method("Un-prune", rule=rule, **inner).forget(filters, request_20, context)
        assert sorted(outcome.trained.mask.kept) == sorted(filters.mask.kept)
    weights = prune(dense, Pruning(sparsity=0.6, layers=BOTH, keep_weights=True), Context(digits, cpu))
    outcome = get_method("Un-prune", rule="influence", **inner).forget(weights, request_20, context)
    thinned = outcome.trained.mask
    assert thinned.kept_count < weights.mask.kept_count
    assert thinned.provenance.details["sparsity"] == pytest.approx(thinned.sparsity)


def test_pruning_an_unlearned_model_does_not_read_forgotten_records(dense, digits, request_20, cpu, context):
    """Changing the forgotten records does not change the result."""
    unlearned = get_method("FT", epochs=1).forget(dense, request_20, context).trained
    features, labels = digits.features.copy(), digits.labels.copy()
    rows = digits.rows(request_20.record_ids)
    features[rows], labels[rows] = 255 - features[rows], (labels[rows] + 1) % 10
    poisoned = dataclasses.replace(digits, features=features, labels=labels)
    for how in (
        {"schedule": "one-shot", "criterion": "SNIP"},
        {"schedule": "at-init", "criterion": "SNIP"},
        {"schedule": "gradual"},
        {"schedule": "soft-filter", "granularity": "filter", "criterion": "filter-l2", "layers": ("conv",)},
    ):
        first, second = (
            prune(unlearned, Pruning(**{"sparsity": 0.5, "layers": BOTH, **how}), Context(records, cpu))
            for records in (digits, poisoned)
        )
        assert first.mask.hash() == second.mask.hash()
        assert first.hash == second.hash


def test_a_last_batch_of_one_record_is_scored(digits, digits_split, cpu):
    network = Architecture("small-cnn", {"widths": (4,)}, digits.input_shape, digits.classes)
    recipe = Recipe(name="test", epochs=1, batch_size=40, learning_rate=0.1)
    trained = train(digits, digits_split, network, recipe=recipe, seed=5, runtime=cpu)
    for criterion in ("SNIP", "GraSP", "Taylor"):
        sparse = prune(
            trained,
            Pruning(sparsity=0.5, layers=("conv",), schedule="at-init", criterion=criterion, score_records=41),
            Context(digits, cpu),
        )
        assert 0 < sparse.mask.sparsity < 1


@pytest.mark.parametrize("schedule", ["at-init", "gradual"])
def test_the_reference_of_masks_from_initialisation_trains_once(
    digits, digits_split, request_20, cpu, context, schedule
):
    network = Architecture("mlp", {"widths": (12,)}, digits.input_shape, digits.classes)
    recipe = Recipe(name="test", epochs=4, batch_size=48, learning_rate=0.1, rewind=0.25)
    trained = train(digits, digits_split, network, recipe=recipe, seed=5, runtime=cpu)
    criterion = "SNIP" if schedule == "at-init" else "magnitude"
    sparse = prune(
        trained, Pruning(sparsity=0.5, layers=("linear",), schedule=schedule, criterion=criterion), Context(digits, cpu)
    )
    retrained = get_method("Retrain", mask="re-prune").forget(sparse, request_20, context)
    assert retrained.cost.trained_records == 4 * len(retrained.trained.split.retain)
    # the same as training on D_r and pruning that model
    retain_only = dataclasses.replace(digits_split, retain=retrained.trained.split.retain, forget=())
    direct = prune(
        train(digits, retain_only, network, recipe=recipe, seed=5, runtime=cpu),
        Pruning(sparsity=0.5, layers=("linear",), schedule=schedule, criterion=criterion),
        Context(digits, cpu),
    )
    assert retrained.trained.mask.hash() == direct.mask.hash()
    if schedule == "at-init":
        rewound = get_method("Retrain", mask="rewind").forget(sparse, request_20, context)
        same = get_method("Retrain", mask="same").forget(sparse, request_20, context)
        assert rewound.trained.hash == same.trained.hash


def test_whether_the_initial_weights_were_verified_is_recorded(sparse, request_20, context):
    after = get_method("Un-prune", **IDENTITY).forget(sparse, request_20, context).trained
    assert after.mask.provenance.details["unpruned"]["initial_weights_verified"] is True
    unrecorded = dataclasses.replace(sparse, provenance=dataclasses.replace(sparse.provenance, initial_weights=""))
    after = get_method("Un-prune", **IDENTITY).forget(unrecorded, request_20, context).trained
    assert after.mask.provenance.details["unpruned"]["initial_weights_verified"] is False


def test_an_empty_request_changes_no_buffer(sparse, context):
    outcome = get_method("Un-prune", method="FT").forget(sparse, ForgetRequest(np.array([], dtype=str)), context)
    assert outcome.trained.hash == sparse.hash
    assert any(isinstance(m, nn.BatchNorm2d) for m in sparse.model.modules())


@pytest.mark.parametrize("rule", ["magnitude", "gradient", "random", "dense", "influence"])
@pytest.mark.parametrize("criterion", ["SNIP", "Taylor"])
def test_un_pruning_does_not_read_forgotten_records(dense, digits, request_20, context, cpu, rule, criterion):
    """Changing the forgotten records changes neither masks nor weights.

    (The influence rule reads them to correct trained weights, but not for masks made at initialisation.)
    """
    features, labels = digits.features.copy(), digits.labels.copy()
    rows = digits.rows(request_20.record_ids)
    features[rows], labels[rows] = 255 - features[rows], (labels[rows] + 1) % 10
    poisoned = Context(dataclasses.replace(digits, features=features, labels=labels), cpu, seed=1)
    schedule = "at-init" if rule == "influence" else "one-shot"
    trained = prune(
        dense, Pruning(sparsity=0.6, layers=BOTH, criterion=criterion, schedule=schedule), Context(digits, cpu)
    )
    method = get_method("Un-prune", method="FT", method_options={"epochs": 1}, rule=rule, score_records=2000)
    first, second = (method.forget(trained, request_20, where).trained for where in (context, poisoned))
    assert first.mask.hash() == second.mask.hash()
    assert first.hash == second.hash
    recorded = first.mask.provenance.details["unpruned"]["records"]
    assert recorded == request_20.apply(trained.split).hash != trained.split.hash


def test_influence_counts_the_records_that_the_model_was_trained_on(dense, digits, digits_split, cpu, monkeypatch):
    """After an earlier request and a retraining, N is the number of retained records."""
    from expunge.methods.unprune.rules import influence

    first = ForgetRequest(digits_split.retain[::2])
    second = ForgetRequest(digits_split.retain[1:101:2])
    sparse = prune(
        dense, Pruning(sparsity=0.5, layers=BOTH, schedule="one-shot", keep_weights=True), Context(digits, cpu)
    )
    retrained = get_method("Retrain", mask="re-prune").forget(sparse, first, Context(digits, cpu)).trained
    seen = []

    def watched(*arguments, removed, damping, **settings):
        seen.append(removed)
        return estimate_without_forget(*arguments, removed=removed, damping=damping, **settings)

    estimate_without_forget = influence.estimate_without_forget
    monkeypatch.setattr(influence, "estimate_without_forget", watched)
    get_method("Un-prune", rule="influence", score_records=64, **IDENTITY).forget(
        retrained, second, Context(digits, cpu)
    )
    assert seen == [50 / (len(digits_split.train) - len(first.record_ids))]


def test_final_fine_tuning_has_its_own_rate(sparse, request_20, context):
    options = {"rule": "random", "method": "FT", "method_options": {"epochs": 1, "batch_norm": "frozen"}}

    def weights(**settings):
        trained = get_method("Un-prune", **options, **settings).forget(sparse, request_20, context).trained
        return torch.cat([p.detach().reshape(-1) for p in trained.model.parameters()])

    without, rate_zero, tuned = weights(), weights(final_epochs=1, final_learning_rate=0.0), weights(final_epochs=1)
    assert torch.equal(without, rate_zero)
    assert not torch.equal(without, tuned)
