"""Un-pruning masks without a recorded sparsity, and the sparsity recorded for masks that the method thins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.core.files import write_tensors
from expunge.core.mask import Mask
from expunge.core.trained import plain_state
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, find_channels, import_model, prune
from expunge.sparsity.channels.groups import find_kept_units
from expunge.sparsity.masks.consistency import count_ranked

IDENTITY = {"method": "FT", "method_options": {"epochs": 0}}


def without_record(trained, kept=None):
    """The model with a mask whose provenance does not record its sparsity."""
    provenance = dataclasses.replace(trained.mask.provenance, details={})
    return dataclasses.replace(trained, mask=Mask(kept or trained.mask.kept, provenance))


@pytest.mark.parametrize("rule", ["magnitude", "gradient", "random", "influence"])
def test_the_number_of_kept_channels_does_not_change(dense, digits, request_20, cpu, rule):
    sparse = prune(
        dense,
        Pruning(
            sparsity=0.5,
            layers=("conv",),
            granularity="filter",
            criterion="filter-l2",
            scope="global",
            schedule="one-shot",
            keep_weights=True,
        ),
        Context(digits, cpu),
    )
    growth = {} if rule == "influence" else {"growth": 0.5}
    method = get_method("Un-prune", rule=rule, **growth, **IDENTITY)
    after = method.forget(without_record(sparse), request_20, Context(digits, cpu)).trained
    channels = find_channels(after.model, digits.input_shape)
    units = np.concatenate(list(channels.pools(("conv",)).values()))
    counts = [int(find_kept_units(channels, dict(model.mask.kept))[units].sum()) for model in (sparse, after)]
    assert counts[0] == counts[1] == 12
    assert "thinned" not in after.mask.provenance.details


def test_a_masked_bias_is_not_counted_as_a_weight(dense, digits, request_20, cpu):
    """With an identity method and growth 0 the mask is unchanged, also if it names a bias."""
    sparse = prune(
        dense,
        Pruning(sparsity=0.6, layers=("conv", "linear"), scope="layer", schedule="one-shot"),
        Context(digits, cpu),
    )
    bias = torch.ones(10, dtype=torch.bool)
    bias[:7] = False
    masked = without_record(sparse, {**sparse.mask.kept, "classifier.bias": bias})
    model = Architecture.from_json(sparse.provenance.architecture).build(0)
    model.load_state_dict(sparse.model.state_dict())
    masked.mask.apply_(model)
    masked = dataclasses.replace(masked, model=model)
    after = get_method("Un-prune", growth=0.0, **IDENTITY).forget(masked, request_20, Context(digits, cpu)).trained
    assert after.mask.hash() == masked.mask.hash()


@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
def test_a_mask_that_the_method_thins_records_it_and_can_be_imported(
    dense, digits, request_20, cpu, scope, tmp_path: Path
):
    sparse = prune(
        dense, Pruning(sparsity=0.4, layers=("conv", "linear"), scope=scope, schedule="one-shot"), Context(digits, cpu)
    )
    options = {"epochs": 1, "gamma": 1.0, "learning_rate": 0.05, "step": "proximal", "no_l1_epochs": 0}
    method = get_method("Un-prune", method="l1-sparse", method_options=options, rule="magnitude")
    after = method.forget(sparse, request_20, Context(digits, cpu)).trained
    counts = count_ranked(after.mask, after.model, ("conv", "linear"), digits.input_shape)
    pruned, total = (sum(column) for column in zip(*counts.values(), strict=True))
    assert pruned > 0.41 * total
    details = after.mask.provenance.details
    assert details["sparsity"] == pruned / total
    assert details["thinned"] == {"method": "l1-sparse"}
    write_tensors(tmp_path / "w.safetensors", plain_state(after.model), {})
    after.mask.save(tmp_path / "m.safetensors")
    architecture = Architecture.from_json(after.provenance.architecture)
    imported = import_model(architecture, tmp_path / "w.safetensors", mask=tmp_path / "m.safetensors")
    assert imported.mask is not None
    assert imported.mask.hash() == after.mask.hash()
