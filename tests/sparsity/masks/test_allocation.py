"""Masks against torch.nn.utils.prune; exact counts; ties; what may be pruned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from expunge.core.errors import ConfigError, MaskError
from expunge.core.hashing import hash_tensors
from expunge.sparsity import prunable_weights, score_weights, select_global
from expunge.sparsity.masks.allocation import Pool, allocate, pruned_count


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False), nn.Flatten(), nn.Linear(32, 5)
    )


@pytest.mark.parametrize("layer_types", [("conv",), ("conv", "linear"), ("linear",)])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.777])
def test_masks_equal_those_of_torch(layer_types: tuple[str, ...], sparsity: float) -> None:
    model = network()
    before = hash_tensors(model.state_dict())
    masks = select_global(score_weights("magnitude", prunable_weights(model, layer_types)), sparsity)
    assert hash_tensors(model.state_dict()) == before
    types = {"conv": nn.Conv2d, "linear": nn.Linear}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tuple(types[k] for k in layer_types))}
    torch_prune.global_unstructured(
        [(m, "weight") for m in layers.values()], pruning_method=torch_prune.L1Unstructured, amount=sparsity
    )
    assert set(masks) == {f"{n}.weight" for n in layers}
    for name, layer in layers.items():
        assert torch.equal(masks[f"{name}.weight"], layer.weight_mask.bool()), name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=40), st.floats(0, 0.99))
def test_counts_are_exact_even_with_ties(values: list[float], sparsity: float) -> None:
    score = {"w": torch.tensor(values).abs()}
    want = round(sparsity * len(values))
    if want == len(values):
        with pytest.raises(MaskError, match="loses every weight"):
            select_global(score, sparsity)
        return
    kept = select_global(score, sparsity)["w"]
    assert int((~kept).sum()) == want == pruned_count(len(values), sparsity)
    if want:
        assert score["w"][~kept].max() <= score["w"][kept].min()


def test_ties_go_by_position() -> None:
    kept = select_global({"b": torch.ones(3), "a": torch.tensor([1.0, 2.0])}, 0.4)
    assert kept["b"].tolist() == [False, False, True]
    assert kept["a"].tolist() == [True, True]


def test_half_counts_round_as_torch_does() -> None:
    for total in range(1, 30):
        module = nn.Linear(total, 1)
        for fraction in (0.1, 0.25, 0.5, 0.75):
            torch_prune.l1_unstructured(module, "weight", fraction)
            assert pruned_count(total, fraction) == int((module.weight_mask == 0).sum())
            torch_prune.remove(module, "weight")
            nn.init.normal_(module.weight)


def test_a_layer_that_loses_every_weight_is_named() -> None:
    with pytest.raises(MaskError, match="loses every weight") as caught:
        select_global({"big": torch.ones(10), "small": torch.full((2, 2), 0.1)}, 0.5)
    assert caught.value.where == "small"


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_sparsity_must_be_a_fraction(sparsity: float) -> None:
    with pytest.raises(MaskError, match=r"fraction in \[0, 1\)"):
        select_global({"w": torch.ones(3)}, sparsity)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_scores_are_refused(value: float) -> None:
    with pytest.raises(MaskError, match="NaN or infinite"):
        select_global({"w": torch.tensor([1.0, value])}, 0.5)


def test_names_and_layer_types() -> None:
    assert list(prunable_weights(network())) == ["0.weight", "2.weight"]
    assert list(prunable_weights(network(), ("linear",))) == ["4.weight"]
    assert list(prunable_weights(nn.DataParallel(network()))) == ["0.weight", "2.weight"]
    with pytest.raises(MaskError, match="no conv layer"):
        prunable_weights(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        prunable_weights(network(), ("linaer",))
    with pytest.raises(ConfigError, match="did you mean 'magnitude'"):
        score_weights("magnitud", {})


def test_a_shared_weight_is_one_weight() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert list(prunable_weights(nn.Sequential(first, second), ("linear",))) == ["0.weight"]


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_ties_go_by_position_where_the_sort_of_a_device_is_not_stable(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sort = torch.argsort

    def argsort(values: torch.Tensor, *, stable: bool = False) -> torch.Tensor:
        return sort(values, stable=True) if stable else len(values) - 1 - sort(values.flip(0), stable=True)

    pools = {"a": Pool(torch.zeros(6)), "b": Pool(torch.zeros(6))}
    expected = allocate(scope, pools, 0.5)
    monkeypatch.setattr(torch, "argsort", argsort)
    found = allocate(scope, pools, 0.5)
    assert {name: kept.tolist() for name, kept in found.items()} == {n: kept.tolist() for n, kept in expected.items()}
    if scope == "layer":
        assert found["a"].tolist() == [False] * 3 + [True] * 3
