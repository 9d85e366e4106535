"""Networks with an attribute called `module`, which is also the prefix that data-parallel wrappers add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.evaluation.error_bound import unroll, weight_distance
from expunge.evaluation.leakage.shadow_models import measure_mask_leakage
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, find_channels, load_small_model, prune, save_small_model, shrink
from expunge.sparsity.compression.small_model import restore_masked_model
from expunge.training import Recipe, Runtime, train
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import train_ensemble

RECIPE = Recipe(name="test", epochs=3, batch_size=48, learning_rate=0.1, rewind=0.34)


def make_architecture(digits: Records, in_module: bool) -> Architecture:
    return Architecture("wrapped_layers:make", {"in_module": in_module}, digits.input_shape, digits.classes)


@pytest.fixture(scope="module")
def networks(digits: Records, digits_split: Split, cpu: Runtime) -> tuple[Trained, Trained]:
    """The same network, with its layers under `module` and under `layers`."""
    in_module, in_layers = (
        train(digits, digits_split, make_architecture(digits, option), recipe=RECIPE, seed=3, runtime=cpu)
        for option in (True, False)
    )
    return in_module, in_layers


def values(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_the_name_does_not_matter_for_pruning_and_un_pruning(
    networks: tuple[Trained, Trained], digits: Records, request_20: ForgetRequest, cpu: Runtime, granularity: str
) -> None:
    rule = {"layers": ("conv",), "granularity": granularity, "sparsity": 0.5, "keep_weights": True}
    sparse = [prune(trained, Pruning(**rule), Context(digits, cpu)) for trained in networks]
    assert torch.equal(values(sparse[0].model), values(sparse[1].model))
    assert sparse[0].mask is not None
    assert set(sparse[0].mask.kept) >= {"0.weight", "3.weight"}
    context = Context(digits, cpu, seed=1)
    options = {"method": "FT", "method_options": {"epochs": 1}}
    for rule_name in ("magnitude", "gradient", "influence"):
        after = [
            get_method("Un-prune", rule=rule_name, **options).forget(one, request_20, context).trained for one in sparse
        ]
        assert torch.equal(values(after[0].model), values(after[1].model))
        assert after[0].mask is not None
        assert after[0].mask.count_violations(after[0].model) == {}
    for mask in ("re-prune", "rewind", "same"):
        retrained = [get_method("Retrain", mask=mask).forget(one, request_20, context).trained for one in sparse]
        assert torch.equal(values(retrained[0].model), values(retrained[1].model))


def test_channels_have_plain_names_and_can_be_removed(
    networks: tuple[Trained, Trained], digits: Records, cpu: Runtime, tmp_path: Path
) -> None:
    channels = find_channels(networks[0].model, digits.input_shape)
    assert channels.units == 14
    assert channels.producers[0] == ("0.weight",)
    how = {"layers": ("conv",), "granularity": "filter", "sparsity": 0.5, "schedule": "one-shot"}
    sparse = prune(networks[0], Pruning(**how), Context(digits, cpu))
    assert sparse.mask is not None
    small = shrink(sparse.model, sparse.mask, digits.input_shape)
    assert small.difference < 1e-4
    assert small.parameters_after < small.parameters_before
    save_small_model(small, sparse, tmp_path / "small.safetensors")
    x = torch.rand(3, *digits.input_shape)
    assert torch.equal(load_small_model(tmp_path / "small.safetensors")(x), small.model(x))
    _, _, mask = restore_masked_model(tmp_path / "small.safetensors")
    assert isinstance(mask, Mask)
    assert mask.hash() == sparse.mask.hash()


def test_stacked_training_leakage_and_the_error_bound(
    networks: tuple[Trained, Trained], digits: Records, cpu: Runtime
) -> None:
    one = prune(networks[0], Pruning(sparsity=0.5, schedule="one-shot"), Context(digits, cpu))
    members = [Member(np.arange(100), seed=seed, mask=one.mask) for seed in (1, 2)]
    single, stacked = (
        train_ensemble(digits, make_architecture(digits, True), members, recipe=RECIPE, runtime=cpu, engine=engine)
        for engine in ("single", "vmap")
    )
    for index in range(2):
        for name, tensor in single.state(index).items():
            assert torch.allclose(stacked.state(index)[name], tensor, atol=1e-5), name
    assert one.mask is not None
    changed = clone_model(networks[0].model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1.0)
    weights = sum(parameter.numel() for parameter in changed.parameters())
    assert weight_distance(changed, networks[0].model, one.mask) == pytest.approx(
        (weights - one.mask.total + one.mask.kept_count) ** 0.5
    )
    leakage = measure_mask_leakage(
        [one.mask] * 8, architecture=make_architecture(digits, True), members=members * 4, permutations=2
    )
    assert 0 <= leakage.auc <= 1
    x, y = torch.rand(8, *digits.input_shape), torch.arange(8)
    assert unroll(networks[0].model, [one.mask], [(x, y)], eta=0.1).error < 1e-4
