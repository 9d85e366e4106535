"""Games of topology leakage: who is trained on what, what replay makes of it, and what the masks then show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError
from expunge.core.split import Split
from expunge.data import forget_class, forget_ids, forget_random, load_records, make_split
from expunge.evaluation.leakage.games import draw_shadow_game, replay_shadow_models, train_shadow_game
from expunge.evaluation.leakage.mask_attack import _score_attacks
from expunge.evaluation.leakage.shadow_models import measure_mask_leakage, prune_shadow_models, train_shadow_models
from expunge.evaluation.topology import iou
from expunge.methods import get_method
from expunge.models import architecture
from expunge.sparsity import Pruning, Rule, prune
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.checkpoint import load_state
from expunge.training.ensemble import train_ensemble

CPU = Runtime("cpu")
RECIPE = Recipe(name="short", epochs=4, batch_size=64, learning_rate=0.1, lr_schedule="one-cycle")
RULE = Rule(layers=("linear",), sparsity=0.8)


@pytest.fixture(scope="module")
def world():
    records = load_records("digits")
    split = make_split(records)
    blueprint = architecture("mlp", records, split, normalise="none", widths=(16,))
    return records, split, blueprint, forget_class(records, split, 3), forget_class(records, split, 5)


def make_masks(world, game, states, members):
    records, _, blueprint, _, _ = world

    def build_model(number):
        network = blueprint.build(0).eval()
        load_state(network, {name: tensor[number] for name, tensor in states.items()})
        return network

    return prune_shadow_models(records, members, build_model, RULE)


@pytest.mark.parametrize("initial", ["shared", "own"])
def test_the_records_of_the_two_games(world, initial: str) -> None:
    records, split, _, request, other = world
    forgotten, others = (records.rows(one.record_ids) for one in (request, other))
    settings = {"models": 5, "initial": initial, "seed": 2}
    unlearned = draw_shadow_game(records, split, request, game="unlearned", **settings)
    assert unlearned.forgets.tolist() == [True] * 5 + [False] * 5
    two = draw_shadow_game(records, split, request, game="two-requests", other=other, **settings)
    assert two.forgets.all()
    for game, second, unused in ((unlearned, [], forgotten), (two, others, np.union1d(forgotten, others))):
        assert len({len(member.rows) for member in game.remaining}) == 1
        for number, (before, after) in enumerate(zip(game.members, game.remaining, strict=True)):
            extra = forgotten if number < 5 else second
            lost = np.setdiff1d(before.rows, after.rows)
            assert np.isin(lost, extra).all()
            assert len(lost) == (min(len(extra), len(others)) if game is two else len(extra))
            assert not np.isin(after.rows, unused).any()
            assert np.isin(before.rows, records.rows(split.train)).all()
            assert len(np.unique(before.rows)) == len(before.rows)
            assert before.seeds == after.seeds
        assert not np.array_equal(game.remaining[0].rows, game.remaining[5].rows)
        assert len({member.seeds["initial"] for member in game.members}) == (1 if initial == "shared" else 10)


def test_two_requests_in_the_other_order_exchange_the_sides(world) -> None:
    records, split, _, request, other = world
    one = draw_shadow_game(records, split, request, game="two-requests", other=other, models=4)
    two = draw_shadow_game(records, split, other, game="two-requests", other=request, models=4)
    for number in range(8):
        assert np.array_equal(one.remaining[number].rows, two.remaining[number].rows)
        there = number + 4 if number < 4 else number - 4
        lost = np.setdiff1d(one.members[number].rows, one.remaining[number].rows)
        assert np.array_equal(lost, np.setdiff1d(two.members[there].rows, two.remaining[there].rows))


def test_an_exchange_of_the_sides_turns_the_scores_round() -> None:
    draws = np.random.default_rng(0)
    features, labels = draws.random((24, 40)), np.arange(24) < 12
    features[labels] += 0.2
    fits = np.arange(24) % 2 == 0
    here, there = (_score_attacks(features, fits[None], truth[None])[0] for truth in (labels, ~labels))
    assert np.allclose(here, -there)


@pytest.mark.parametrize("game", ["unlearned", "two-requests"])
def test_replay_of_all_epochs_is_retraining(world, game: str) -> None:
    """theta_T(D) + (theta_T(D_r) - theta_T(D)) = theta_T(D_r), bit for bit, and so are the masks and the AUC."""
    records, split, blueprint, request, other = world
    drawn = draw_shadow_game(
        records, split, request, game=game, other=other if game == "two-requests" else None, models=8
    )
    states = train_shadow_game(records, blueprint, drawn, recipe=RECIPE, runtime=CPU)
    retrained = train_shadow_game(records, blueprint, drawn, recipe=RECIPE, runtime=CPU, retrained=True)
    replayed = replay_shadow_models(records, blueprint, drawn, states, recipe=RECIPE, epochs=4, runtime=CPU)
    shorter = replay_shadow_models(records, blueprint, drawn, states, recipe=RECIPE, epochs=3, runtime=CPU)
    for name, tensor in retrained.items():
        assert torch.equal(replayed[name], tensor), name
        assert not torch.equal(shorter[name], tensor), name
        assert torch.equal(shorter[name][~drawn.forgets], states[name][~drawn.forgets])
    found = []
    for one in (retrained, replayed, shorter):
        masks = make_masks(world, drawn, one, drawn.remaining)
        found.append((measure_mask_leakage(masks, permutations=40), [mask.hash() for mask in masks]))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]
    assert found[0][0].interval.low <= 0.5 <= found[0][0].interval.high  # both sides are drawn alike


def test_unchanged_masks_of_two_requests_are_those_of_plain_training_on_one_set_or_the_other(world) -> None:
    records, split, blueprint, request, other = world
    drawn = draw_shadow_game(records, split, request, game="two-requests", other=other, models=8)
    sets = [records.rows(one.record_ids) for one in (request, other)]
    size = min(map(len, sets))
    cut = [rows[np.argsort(records.keys[rows], kind="stable")[:size]] for rows in sets]
    plain = [
        dataclasses.replace(member, rows=np.sort(np.concatenate([member.rows, cut[number // 8]])))
        for number, member in enumerate(drawn.remaining)
    ]
    states = train_shadow_game(records, blueprint, drawn, recipe=RECIPE, runtime=CPU)
    unscaled = replay_shadow_models(records, blueprint, drawn, states, recipe=RECIPE, epochs=2, scale=0.0, runtime=CPU)
    masks = make_masks(world, drawn, states, drawn.members)
    for name, tensor in states.items():
        assert torch.equal(unscaled[name], tensor), name
    trained = train_shadow_models(records, blueprint, plain, recipe=RECIPE, runtime=CPU)
    assert [mask.hash() for mask in masks] == [
        mask.hash() for mask in prune_shadow_models(records, plain, trained.model, RULE)
    ]
    assert measure_mask_leakage(masks, permutations=20).auc > 0.9


def test_stacked_replay_equals_replay_of_one_model_after_the_other(world) -> None:
    records, split, blueprint, request, other = world
    drawn = draw_shadow_game(records, split, request, game="two-requests", other=other, models=4, initial="own")
    states = train_shadow_game(records, blueprint, drawn, recipe=RECIPE, runtime=CPU)
    replayed = replay_shadow_models(records, blueprint, drawn, states, recipe=RECIPE, epochs=2, scale=0.5, runtime=CPU)
    for number in (0, 7):
        runs = []
        for member, stop in ((drawn.members[number], 4), (drawn.members[number], 2), (drawn.remaining[number], 2)):
            model = blueprint.build(member.seeds["initial"])
            fit(model, member.rows, RECIPE, Context(records, CPU, member.seeds["order"]), stop=stop)
            runs.append(dict(model.named_parameters()))
        for name, trained in runs[0].items():
            expected = trained.double() + 0.5 * (runs[2][name].double() - runs[1][name].double())
            assert torch.allclose(replayed[name][number].double(), expected, atol=1e-5, rtol=1e-5), name
            assert not torch.allclose(states[name][number].double(), expected, atol=1e-4), name


def test_shadow_models_forget_as_the_method_does(world) -> None:
    records, split, blueprint, request, _ = world
    drawn = draw_shadow_game(records, split, request, game="unlearned", models=4, initial="own")
    trained = train_ensemble(records, blueprint, drawn.members, recipe=RECIPE, runtime=CPU)  # keeps what OMP rewinds to
    replayed = replay_shadow_models(records, blueprint, drawn, trained.states, recipe=RECIPE, epochs=2, runtime=CPU)
    number = 1
    unused = np.setdiff1d(records.record_ids, records.record_ids[drawn.members[number].rows])
    own_split = Split(records.record_ids[drawn.members[number].rows], (), (), (), unused)
    model = trained.as_trained(number, records, own_split)
    method = get_method("Replay", prefix_epochs=2, epochs=0, re_estimate=0)
    outcome = method.forget(model, request, Context(records, CPU, seed=0))
    for name, tensor in outcome.trained.model.state_dict().items():
        assert torch.allclose(replayed[name][number], tensor, atol=1e-5, rtol=1e-5), name
        assert not torch.allclose(trained.states[name][number], tensor, atol=1e-4), name
    sparse = prune(model, Pruning(sparsity=0.8, layers=("linear",), keep_weights=True), Context(records, CPU, seed=0))
    rule = get_method("Un-prune", rule="replay", prefix_epochs=2, method_options={"epochs": 1})
    unpruned = rule.forget(sparse, request, Context(records, CPU, seed=0)).trained.mask
    masks = make_masks(world, drawn, replayed, drawn.remaining)
    unchanged = make_masks(world, drawn, trained.states, drawn.members)
    assert iou(masks[number], unpruned) > 0.99  # weights of stacked training differ in rounding
    assert iou(unchanged[number], sparse.mask) > 0.99
    assert iou(unchanged[number], unpruned) < 0.95


def test_bad_games(world) -> None:
    records, split, blueprint, request, other = world
    with pytest.raises(ConfigError, match="did you mean 'unlearned'"):
        draw_shadow_game(records, split, request, game="unlearnt")
    with pytest.raises(ConfigError, match="needs another set"):
        draw_shadow_game(records, split, request, game="two-requests")
    with pytest.raises(ConfigError, match="needs another set"):
        draw_shadow_game(records, split, request, game="unlearned", other=other)
    with pytest.raises(ConfigError, match="too few"):
        draw_shadow_game(records, split, request, game="unlearned", models=3)
    with pytest.raises(DataError, match="records of D_f"):
        draw_shadow_game(records, split, request, game="two-requests", other=request)
    small = forget_random(records, request.apply(split), count=20)
    with pytest.raises(DataError, match="the other set has 20 records"):
        draw_shadow_game(records, split, request, game="two-requests", other=small)
    most = forget_ids(records, split, split.retain[:-1].tolist())
    with pytest.raises(DataError, match="too few to draw from"):
        draw_shadow_game(records, split, most, game="unlearned")
    drawn = draw_shadow_game(records, split, request, game="unlearned", models=4)
    with pytest.raises(ConfigError, match="5 epochs of a recipe of 4"):
        replay_shadow_models(records, blueprint, drawn, {}, recipe=RECIPE, epochs=5)
