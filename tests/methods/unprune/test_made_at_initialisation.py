"""Masks made at initialisation, in networks with BatchNorm, and masks that do not depend on records."""

from __future__ import annotations

import pytest
import torch

from expunge.core.hashing import hash_tensors
from expunge.methods import Context, get_method
from expunge.methods.unprune.influence import estimate_without_forget
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, Runtime, train

CPU = Runtime("cpu")
IDENTITY = {"method": "FT", "method_options": {"epochs": 0}}


@pytest.fixture(scope="module")
def dense(digits, digits_split):
    """A CNN with BatchNorm: at initialisation its running statistics are 0 and 1, those of a batch are not."""
    recipe = Recipe(name="test", epochs=2, batch_size=48, learning_rate=0.1, rewind=0.5)
    network = Architecture("small-cnn", {"widths": (8, 8)}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=recipe, seed=5, runtime=CPU)


@pytest.mark.parametrize("rounds", [1, 3])
def test_scores_at_initialisation_use_the_statistics_of_the_batches(dense, digits, request_20, rounds):
    """As pruning did: the mask of Un-prune is that of re-pruning without D_f, bit for bit."""
    pruning = Pruning(0.7, layers=("conv",), criterion="SNIP", schedule="at-init", options={"rounds": rounds})
    context = Context(digits, CPU, seed=1)
    sparse = prune(dense, pruning, context)
    reference = get_method("Retrain", mask="re-prune").forget(sparse, request_20, context).trained
    unlearned = get_method("Un-prune", rule="influence", **IDENTITY).forget(sparse, request_20, context).trained
    assert unlearned.mask.hash() == reference.mask.hash()
    assert unlearned.mask.hash() != sparse.mask.hash()


def test_a_recomputed_mask_is_rewritten_even_if_it_is_the_same(dense, digits, request_20):
    """SynFlow reads no records: re-pruning gives the same mask, and it does not remember D_f."""
    pruning = Pruning(0.5, layers=("conv",), criterion="SynFlow", schedule="at-init", options={"rounds": 2})
    sparse = prune(dense, pruning, Context(digits, CPU, seed=1))
    for mask, carried in (("re-prune", ()), ("same", ("mask",))):
        outcome = get_method("Retrain", mask=mask).forget(sparse, request_20, Context(digits, CPU, seed=1))
        assert outcome.trained.mask.hash() == sparse.mask.hash()
        assert outcome.carried == carried
        assert ("mask" in outcome.rewrote) == (mask == "re-prune")


def test_the_estimate_does_not_change_the_network_that_it_is_given(dense, digits):
    x, y = torch.from_numpy(digits.features[:40]).float() / 255, torch.from_numpy(digits.labels[:40])
    before = hash_tensors(dense.model.state_dict())
    for matrix_type in ("none", "gauss-newton"):
        found = estimate_without_forget(
            dense.model, [(x[:10], y[:10])], [(x[10:], y[10:])], removed=0.1, damping=1.0, matrix_type=matrix_type
        )
        assert hash_tensors(dense.model.state_dict()) == before
        assert hash_tensors(found.model.state_dict()) != before
