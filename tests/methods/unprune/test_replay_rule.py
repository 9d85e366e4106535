"""The rule replay: with all epochs replayed it gives the mask of retraining and pruning again, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from replayed_masks import CPU, PRUNINGS, RECIPE, K, T, declare, make_dense, of_mask, replay, same, shrink

import expunge
from expunge.core.early_checkpoints import unpack_checkpoints
from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.evaluation import iou
from expunge.methods import Context, get_method
from expunge.methods.unprune.replayed_rounds import combine_round
from expunge.methods.unprune.rules.replay import count_passes, count_reference_passes
from expunge.models import Architecture
from expunge.training import train
from expunge.training.batchnorm import re_estimate


@pytest.fixture(scope="module")
def dense(digits: Records, digits_split: Split) -> Trained:
    return make_dense(digits, digits_split)


@pytest.fixture(scope="module")
def request_class(digits: Records, digits_split: Split) -> ForgetRequest:
    """All records of a class: the mask of retraining is another."""
    retain = digits_split.retain
    return ForgetRequest(retain[digits.labels[digits.rows(retain)] == 3])


@pytest.fixture(scope="module")
def context(digits: Records) -> Context:
    return Context(digits, CPU, seed=1)


# ---- truth: all epochs replayed


@pytest.mark.parametrize("name", PRUNINGS)
def test_all_epochs_replayed_give_the_mask_of_retraining(
    name: str, dense: Trained, digits: Records, request_class: ForgetRequest, context: Context
) -> None:
    """With stored weights of pruning time and with recomputed ones; and every pass is counted."""
    sparse = shrink(dense, digits, name)
    reference = get_method("Retrain", mask="re-prune").forget(sparse, request_class, context)
    expected = reference.trained
    wanted = expected.state["pruning_weights"]
    method = get_method("Un-prune", rule="replay", prefix_epochs=T)
    bare = dataclasses.replace(sparse, state={k: v for k, v in sparse.state.items() if k != "pruning_weights"})
    for trained in (sparse, bare):
        outcome = replay(trained, request_class, context, prefix_epochs=T)
        found = outcome.trained
        assert of_mask(found).hash() == of_mask(expected).hash()
        assert of_mask(found).hash() != of_mask(sparse).hash()
        assert ("pruning_weights" in found.state) == (trained is sparse)
        if trained is sparse:
            stored = found.state["pruning_weights"]
            assert stored.keys() == wanted.keys()
            assert all(torch.equal(stored[key], tensor) for key, tensor in wanted.items())
        if "score_records" not in PRUNINGS[name]:
            on_retained, on_all = count_passes(method, trained)
            counts = len(found.split.retain), len(dense.split.retain)
            assert outcome.cost.trained_records == on_retained * counts[0] + on_all * counts[1]
            assert reference.cost.trained_records == count_reference_passes(sparse) * counts[0]


def test_scores_depend_on_normalisation_measured_without_the_forgotten_records(
    digits: Records, digits_split: Split, request_class: ForgetRequest, context: Context
) -> None:
    network = expunge.architecture("mlp", digits, digits_split, widths=(12,))
    sparse = shrink(train(digits, digits_split, network, recipe=RECIPE, seed=5, runtime=CPU), digits, "Taylor")
    reference = get_method("Retrain", mask="re-prune").forget(sparse, request_class, context).trained
    found = replay(sparse, request_class, context, prefix_epochs=T).trained
    assert of_mask(found).hash() == of_mask(reference).hash()
    assert found.provenance.architecture == reference.provenance.architecture != sparse.provenance.architecture


def test_a_recipe_squeezed_into_all_epochs_is_the_recipe(
    dense: Trained, digits: Records, request_class: ForgetRequest, context: Context
) -> None:
    sparse = shrink(dense, digits)
    found = replay(sparse, request_class, context, prefix_epochs=T, prefix="compressed").trained
    assert same(found, replay(sparse, request_class, context, prefix_epochs=T).trained)
    assert "early_checkpoints" not in found.state
    assert not found.provenance.checkpoints


# ---- where the first epochs, and the weights of pruning time, come from


@pytest.mark.parametrize("name", ["omp", "imp"])
def test_recomputed_is_recorded(
    name: str, dense: Trained, digits: Records, request_class: ForgetRequest, context: Context
) -> None:
    sparse, bare = shrink(dense, digits, name), shrink(dense, digits, name, keep=False)
    outcomes = {
        "recorded": replay(sparse, request_class, context),
        "recomputed": replay(sparse, request_class, context, prefix="recomputed"),
        "weights recomputed": replay(bare, request_class, context),
        "both recomputed": replay(bare, request_class, context, prefix="recomputed"),
    }
    before, after = len(dense.split.retain), len(outcomes["recorded"].trained.split.retain)
    rounds = {"omp": 0, "imp": 2}[name]  # 0.5, 0.75, 0.8: three rounds, of which the last needs no training
    on_all = {"recorded": 0, "recomputed": K, "weights recomputed": T, "both recomputed": T}
    for label, outcome in outcomes.items():
        assert same(outcome.trained, outcomes["recorded"].trained), label
        short, whole = rounds * K, rounds * (T - 1)
        passes = (K + short, on_all[label] + (whole if "weights" in label or "both" in label else short))
        assert outcome.cost.trained_records == passes[0] * after + passes[1] * before, label
        method = get_method("Un-prune", rule="replay", prefix_epochs=K, prefix=outcome.options["prefix"])
        assert count_passes(method, sparse if "rec" in label[:5] else bare) == passes, label
    assert of_mask(outcomes["recorded"].trained).hash() != of_mask(sparse).hash()


def test_the_selected_epoch_is_recomputed(
    digits: Records, digits_split: Split, request_class: ForgetRequest, context: Context
) -> None:
    recipe = dataclasses.replace(RECIPE, select="best", learning_rate=0.2)
    dense = make_dense(digits, digits_split, recipe)
    last = train(digits, digits_split, Architecture.from_json(dense.provenance.architecture), seed=5, runtime=CPU,
                 recipe=dataclasses.replace(recipe, select="last"))  # fmt: skip
    assert dense.hash != last.hash, "the best epoch is the last: the test shows nothing"
    for name in ("one-shot", "imp"):
        stored, bare = shrink(dense, digits, name), shrink(dense, digits, name, keep=False)
        if name == "imp":
            rounds = [
                shrink(declare(dense, recipe={**recipe.to_json(), "select": select}), digits, name).state
                for select in ("best", "last")
            ]
            assert any(not torch.equal(rounds[0]["pruning_weights"][key], tensor)
                       for key, tensor in rounds[1]["pruning_weights"].items()), "as above"  # fmt: skip
        found = replay(bare, request_class, context)
        assert same(found.trained, replay(stored, request_class, context).trained)
        assert found.cost.forward_records > 0


# ---- the weights under the new mask


def test_the_weights_are_the_formula(
    dense: Trained, digits: Records, request_class: ForgetRequest, context: Context
) -> None:
    """In float64, with numpy: theta_T(D) + c (theta_k(D_r) - theta_k(D)), pruned by the new mask."""
    sparse = shrink(dense, digits)
    options: dict[str, Any] = {"scale": 0.5, "re_estimate": 0}
    found = replay(sparse, request_class, context, **options).trained
    mixed = replay(sparse, request_class, context, replay_weights="mixed", **options).trained
    shifted = replay(sparse, request_class, context, replay_weights="shifted", **options).trained
    assert of_mask(found).hash() == of_mask(mixed).hash() == of_mask(shifted).hash()
    before = unpack_checkpoints(dense.state["early_checkpoints"])[K]
    after = unpack_checkpoints(found.state["early_checkpoints"])[K]
    final, old = sparse.state["pruning_weights"], plain_parameters(sparse.model)
    regrown = 0
    for name, parameter in plain_parameters(found.model).items():
        a, b, c = (tensors[name].numpy().astype(np.float64) for tensors in (final, before, after))
        hat = (a + 0.5 * (c - b)).astype(np.float32)
        kept, new = of_mask(sparse).kept.get(name), of_mask(found).kept.get(name)
        expected, expected_mixed = hat, old[name].detach().numpy()
        expected_shifted = (expected_mixed.astype(np.float64) + 0.5 * (c - b)).astype(np.float32)
        if kept is not None and new is not None:
            expected = np.where(new.numpy(), hat, np.float32(0))
            expected_mixed = np.where((kept & new).numpy(), expected_mixed, expected)
            expected_shifted = np.where((kept & new).numpy(), expected_shifted, expected)
            regrown += int((new & ~kept).sum())
        assert np.array_equal(parameter.detach().numpy(), expected), name
        assert np.array_equal(plain_parameters(mixed.model)[name].detach().numpy(), expected_mixed), name
        assert np.array_equal(plain_parameters(shifted.model)[name].detach().numpy(), expected_shifted), name
    assert regrown
    for name, buffer in found.model.named_buffers():
        assert torch.equal(buffer, after[name]), name


def test_the_weights_of_a_round_are_the_formula() -> None:
    """By hand, c = 1/2; entries: kept by both masks, by the replayed one only, by the original's only, by neither."""

    def tensors(*weight: float, bias: float, count: float) -> dict[str, torch.Tensor]:
        return {"0.weight": torch.tensor([weight]), "0.bias": torch.tensor([bias]), "1.num": torch.tensor(count)}

    model = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Identity())
    model[1].register_buffer("num", torch.tensor(1.0))
    before, after = tensors(2, 0, 3, 0, bias=1, count=1), tensors(4, 5, 0, 0, bias=2, count=7)
    model.load_state_dict(tensors(10, 0, 20, 0, bias=30, count=1))
    masks = (torch.tensor([[flag in kept for flag in range(4)]]) for kept in ((0, 2), (0, 1)))
    old, new = (Mask({"0.weight": kept}, MaskProvenance("magnitude")) for kept in masks)
    found = combine_round(model, before, after, old, new, 0.5).state_dict()
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "0.weight": [[11.0, 5.0, 0.0, 0.0]], "0.bias": [30.5], "1.num": 7.0,
    }  # fmt: skip


@pytest.mark.parametrize("weights", ["replayed", "mixed", "shifted"])
@pytest.mark.parametrize("name", ["omp", "filters", "imp"])
def test_pruned_weights_are_positive_zeros(
    name: str, weights: str, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    sparse = shrink(dense, digits, name)
    for epochs in (0, 1):
        found = replay(sparse, request_20, context, epochs=epochs, scale=-1.0, replay_weights=weights).trained
        for key, kept in of_mask(found).kept.items():
            pruned = plain_parameters(found.model)[key].detach()[~kept]
            assert not pruned.any()
            assert not torch.signbit(pruned).any()
        assert of_mask(found).kept_count == of_mask(sparse).kept_count


def test_buffers_are_those_of_the_retained_records(
    dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    sparse = shrink(dense, digits, "one-shot")
    outcome = replay(sparse, request_20, context)
    wiped = replay(sparse, request_20, context, re_estimate=0).trained
    assert outcome.cost.forward_records == 2 * len(outcome.trained.split.retain)  # dense, to score; then sparse
    expected = clone_model(wiped.model)
    rows = digits.rows(outcome.trained.split.retain)
    re_estimate(expected, Batches(digits, rows, batch_size=256).in_order(), CPU)
    for (key, found), (_, wanted) in zip(outcome.trained.model.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.allclose(found.float(), wanted.float(), rtol=0, atol=2e-3), key  # other batches
    assert "batch_norm" in outcome.recomputed


# ---- what stays, and what is dropped


def test_the_state_of_the_result(dense: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    sparse = shrink(dense, digits)
    outcome = replay(sparse, request_20, context, epochs=1)
    found = outcome.trained
    assert set(found.state) == {"early_checkpoints", "rewind_checkpoint", "pruning_weights"}
    for name in found.state:  # nothing of the original's is left
        assert all(not torch.equal(tensor, found.state[name][key])
                   for key, tensor in sparse.state[name].items() if tensor.dim() > 1)  # fmt: skip
    assert outcome.dropped == ("pruning_scores",)
    assert {"early_checkpoints", "rewind_checkpoint"} <= set(outcome.recomputed)
    assert not {"mask", "weights", "pruning_weights"} & set(outcome.recomputed)  # theta_T(D) is a part of them
    assert outcome.guarantee == "empirical"
    assert found.provenance.checkpoints[str(K)]["count"] == len(found.split.retain)
    assert len(found.provenance.history) == len(sparse.provenance.history) + 1
    assert "the first 2 epochs replayed" in found.provenance.history[-1]
    retrained = get_method("Retrain", mask="re-prune").forget(sparse, request_20, context).trained
    assert retrained.provenance.recipe == found.provenance.recipe
    bare = replay(shrink(dense, digits, keep=False), request_20, context).trained
    assert set(bare.state) == {"early_checkpoints", "rewind_checkpoint"}
    assert "recomputed" in bare.provenance.history[-1]


def test_an_empty_request_is_the_identity(dense: Trained, digits: Records, context: Context) -> None:
    sparse = shrink(dense, digits, keep=False)
    outcome = replay(sparse, ForgetRequest(()), context)
    assert same(outcome.trained, sparse)
    assert outcome.trained.state.keys() == sparse.state.keys()
    assert outcome.cost.trained_records == 0


@pytest.mark.parametrize("name", ["one-shot", "imp"])
def test_one_request_after_another_is_both_together(
    name: str, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    sparse = shrink(dense, digits, name)
    first, second = ForgetRequest(request_20.record_ids[:12]), ForgetRequest(request_20.record_ids[12:])
    one = replay(sparse, first, context).trained
    outcome = replay(one, second, context)
    together = replay(sparse, request_20, context).trained
    for state in ("early_checkpoints", "rewind_checkpoint"):
        found, expected = outcome.trained.state[state], together.state[state]
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert outcome.trained.provenance.checkpoints == together.provenance.checkpoints
    if name == "one-shot":  # the first epochs on D are not run, and the dense weights differ by rounding only
        assert outcome.cost.trained_records == K * len(together.split.retain)
        found, expected = outcome.trained.state["pruning_weights"], together.state["pruning_weights"]
        for key, tensor in expected.items():
            if "running" not in key and "num_batches" not in key:
                assert torch.allclose(found[key], tensor, rtol=0, atol=1e-5), key
        assert float(iou(of_mask(outcome.trained), of_mask(together))) > 0.99


def test_frozen_parameters_stay(dense: Trained, digits: Records, request_20: ForgetRequest, context: Context) -> None:
    sparse = shrink(dense, digits, layers=("linear",), sparsity=0.5)
    model = clone_model(sparse.model)
    first = next(name for name, p in model.named_parameters() if p.dim() == 4)
    plain_parameters(model)[first].requires_grad_(False)
    declared = dataclasses.replace(sparse, model=model)
    # it was trained, then frozen: the replayed runs train it, as Retrain does
    found = replay(declared, request_20, context).trained
    assert not plain_parameters(found.model)[first].requires_grad
    pruned = shrink(dense, digits)
    model = clone_model(pruned.model)
    plain_parameters(model)[first].requires_grad_(False)
    with pytest.raises(MethodError, match="prunes a frozen parameter"):
        replay(dataclasses.replace(pruned, model=model), request_20, context)
