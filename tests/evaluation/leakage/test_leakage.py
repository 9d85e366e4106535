"""Topology leakage of shadow models: which records they are trained on, and what their masks leak."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured import measure, names_with

from expunge.core.errors import ConfigError, DataError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained
from expunge.data import forget_class, forget_ids, load_records, make_split
from expunge.evaluation.leakage.shadow_models import (
    draw_shadow_members,
    measure_mask_leakage,
    prune_shadow_models,
    train_shadow_models,
)
from expunge.evaluation.topology import iou, random_iou
from expunge.models import architecture
from expunge.sparsity import Rule
from expunge.training import Recipe, Runtime

RECIPE = Recipe(name="short", epochs=3, batch_size=64, learning_rate=0.1, lr_schedule="constant")
RULE = Rule(layers=("linear",), sparsity=0.8)


@pytest.fixture(scope="module")
def world():
    records = load_records("digits")
    split = make_split(records)
    return records, split, forget_class(records, split, 3)


@pytest.mark.parametrize("initial", ["shared", "own"])
def test_only_the_first_half_is_trained_with_the_forget_set(world, initial: str) -> None:
    records, split, request = world
    members = draw_shadow_members(records, split, request, models=5, initial=initial, seed=2)
    forget_rows = records.rows(request.record_ids)
    assert len({len(member.rows) for member in members}) == 1
    for number, member in enumerate(members):
        assert np.isin(forget_rows, member.rows).all() == (number < 5)
        assert np.isin(forget_rows, member.rows).any() == (number < 5)
        assert np.isin(records.record_ids[member.rows], split.train).all()
        assert len(np.unique(member.rows)) == len(member.rows)
    assert len({member.seeds["initial"] for member in members}) == (1 if initial == "shared" else 10)
    assert len({member.seeds["order"] for member in members}) == 10
    assert not np.array_equal(members[0].rows, members[1].rows)


def test_a_class_leaks_and_models_drawn_alike_do_not(world) -> None:
    records, split, request = world
    blueprint = architecture("mlp", records, split, normalise="none", widths=(16,))
    members = draw_shadow_members(records, split, request, models=16, seed=0)
    trained = train_shadow_models(records, blueprint, members, recipe=RECIPE, runtime=Runtime("cpu"))
    masks = prune_shadow_models(records, members, trained.model, RULE)
    assert all(abs(mask.sparsity - 0.8) < 1e-3 for mask in masks)
    leak = measure_mask_leakage(masks, permutations=60)
    assert leak.auc > 0.9
    assert leak.p_value < 0.05
    alike = measure_mask_leakage([masks[i] for i in (*range(0, 16, 2), *range(1, 16, 2))], permutations=60)
    assert alike.interval.low <= 0.5 <= alike.interval.high
    knowing = measure_mask_leakage(masks, architecture=blueprint, members=members, permutations=20)
    assert knowing.auc > 0.9


def test_a_data_driven_criterion_uses_the_records_of_its_model(world) -> None:
    records, split, request = world
    blueprint = architecture("mlp", records, split, normalise="none", widths=(8,))
    members = draw_shadow_members(records, split, request, models=4, seed=0)
    rule = Rule("SNIP", layers=("linear",), sparsity=0.5)
    masks = prune_shadow_models(records, members, lambda number: blueprint.build(1), rule, score_records=200)
    assert len({mask.hash() for mask in masks}) > 1  # one network, different records


def test_bad_input(world) -> None:
    records, split, request = world
    with pytest.raises(ConfigError, match="too few"):
        draw_shadow_members(records, split, request, models=3)
    with pytest.raises(ConfigError, match="did you mean 'shared'"):
        draw_shadow_members(records, split, request, initial="share")
    most = forget_ids(records, split, split.retain[:-100].tolist())
    with pytest.raises(DataError, match="too few other records"):
        draw_shadow_members(records, split, most)


def topology(mask: Mask, original: Mask, reference: Mask) -> dict[str, float]:
    trained = Trained(torch.nn.Identity(), mask, Split(["a"], (), (), (), ()), Provenance({}))
    found = measure(names_with("masks"), trained=trained, original_mask=original, reference_mask=reference)
    return {name: score.value for name, score in found.items()}


def test_topology_scores_by_hand() -> None:
    def mask(*bits: int) -> Mask:
        return Mask({"w": torch.tensor(bits).bool()}, MaskProvenance("magnitude"))

    one, original, reference = mask(1, 1, 0, 0), mask(1, 0, 1, 0), mask(1, 1, 1, 0)
    found = topology(one, original, reference)
    assert found["IoU"] == pytest.approx(2 / 3)
    assert found["IoU of the original"] == pytest.approx(2 / 3)
    assert found["Hamming"] == 0.25
    assert found["Random IoU"] == pytest.approx((0.5 * 0.75) / (0.5 + 0.75 - 0.375))
    assert "Hamming" not in topology(
        mask(1, 0, 0, 0), original, reference
    )  # two weights fewer: it would measure sparsity


def test_random_masks_have_the_expected_iou() -> None:
    draws = torch.Generator().manual_seed(0)

    def random(p: float, q: float) -> Mask:
        tensors = {"a": torch.rand(200_000, generator=draws) < p, "b": torch.rand(50_000, generator=draws) < q}
        return Mask(tensors, MaskProvenance("random"))

    one, two = random(0.1, 0.5), random(0.1, 0.5)
    expected = topology(one, one, two)["Random IoU"]
    assert iou(one, two) == pytest.approx(expected, abs=0.003)
    assert abs(expected - random_iou(one.density)) > 0.05  # one density for all layers would be wrong here


def test_the_seed_draws_the_halves_and_the_permutations() -> None:
    draws = np.random.default_rng(4)
    masks = [
        Mask({"0.weight": torch.from_numpy(draws.random((6, 8)) < 0.5)}, MaskProvenance("random")) for _ in range(16)
    ]
    first, again, other = (measure_mask_leakage(masks, permutations=30, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert len(first.null) == 30
    assert first.null != other.null
