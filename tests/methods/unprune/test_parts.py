"""Parts of un-pruning by hand: the final fine-tuning, the records for scores, and the cost."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.core.mask import Mask
from expunge.core.seeds import derive
from expunge.methods import Context, get_method
from expunge.methods.unprune.rescoring import recorded_score_records
from expunge.sparsity import Pruning, prune


@pytest.fixture(scope="module")
def context(digits, cpu):
    return Context(digits, cpu, seed=1)


def test_final_fine_tuning_uses_the_batches_of_the_inner_method(sparse, request_20, context):
    """With the batch size and the augmentation of the options, and every record that is left of the training set."""
    options = {"rule": "random", "method": "FT", "method_options": {"epochs": 1, "batch_size": 24}, "re_estimate": 0}
    found = get_method("Un-prune", **options, final_epochs=1, final_learning_rate=0.02).forget(
        sparse, request_20, context
    )
    before = get_method("Un-prune", **options).forget(sparse, request_20, context)
    start = dataclasses.replace(before.trained, split=sparse.split)
    seed = derive(context.seed, "un-prune", "final")
    after = get_method("FT", epochs=1, batch_size=24, learning_rate=0.02).forget(
        start, request_20, dataclasses.replace(context, seed=seed)
    )
    assert found.trained.hash == after.trained.hash
    assert found.cost.trained_records == before.cost.trained_records + after.cost.trained_records


@pytest.mark.parametrize(("details", "records"), [({"score_records": 30}, 30), ({}, 7)])
def test_scores_are_recomputed_on_as_many_records_as_pruning_used(sparse, details, records):
    mask = Mask(sparse.mask.kept, dataclasses.replace(sparse.mask.provenance, details=details))
    assert recorded_score_records(mask, 7) == records


def test_the_influence_rule_counts_the_records_that_it_reads(mlp, digits, request_20, context):
    """One gradient on D_r and one on D_f; nothing is trained."""
    pruned = prune(mlp, Pruning(0.5, layers=("linear",), keep_weights=True), context)
    method = get_method("Un-prune", rule="influence", curvature="none", method="FT", method_options={"epochs": 0})
    assert method.forget(pruned, request_20, context).cost.trained_records == len(pruned.split.train)
