"""Iterative schedules, round by round, by hand; and the records that a data-driven criterion reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from expunge.core.errors import ConfigError
from expunge.core.hashing import hash_tensors
from expunge.core.seeds import derive, epoch_order
from expunge.core.trained import clone_model
from expunge.data.batches import Batches
from expunge.models import Architecture
from expunge.sparsity import Pruning, Rule, make_mask, prune
from expunge.training import Context, Recipe, Runtime, fit
from expunge.training.loop import order_seed
from expunge.training.train import prune_seed, train

CPU = Runtime("cpu")
LINEAR = ("linear",)
RECIPE = Recipe(name="rounds", epochs=4, batch_size=48, learning_rate=0.1, lr_schedule="cosine", rewind=0.25)


@pytest.fixture(scope="module")
def trained(digits, digits_split):
    network = Architecture("mlp", {"widths": (16,)}, digits.input_shape, digits.classes)
    return train(digits, digits_split, network, recipe=RECIPE, seed=5, runtime=CPU)


@pytest.mark.parametrize(("epochs", "stop"), [("remaining", 4), ("full", 5)])
def test_imp_rewinds_and_trains_after_every_round(trained, digits, epochs, stop):
    """Sparsity 0.6 at a rate of 0.3: 0.3, 0.51 and 0.6. Each round ranks the weights that the one before trained."""
    pruning = Pruning(0.6, layers=LINEAR, schedule="imp", options={"rate": 0.3}, epochs=epochs)
    found = prune(trained, pruning, Context(digits, CPU, seed=7))
    rule, model, mask, masks = Rule("magnitude", "weight", "global", LINEAR), trained.model, None, []
    for sparsity in (0.3, 0.51, 0.6):
        mask, _ = make_mask(model, rule, sparsity=sparsity, within=mask)
        model = clone_model(trained.model)
        model.load_state_dict(trained.state["rewind_checkpoint"])
        context = Context(digits, CPU, seed=prune_seed(7))
        fit(model, digits.rows(trained.split.train), RECIPE, context, mask=mask, start=1, stop=stop)
        masks.append(mask)
    assert found.mask.hash() == masks[-1].hash()
    assert found.hash == hash_tensors(model.state_dict())
    one_shot, _ = make_mask(trained.model, rule, sparsity=0.6)
    assert one_shot.hash() != masks[-1].hash()


def test_weights_pruned_in_one_round_of_imp_stay_pruned_in_the_next(trained, digits):
    """GraSP scores many weights below 0, so a pruned weight, which scores 0, is not the last by itself."""
    kept = []
    for rounds in (1, 2, 3):  # the first rounds of the three runs are the same
        sparsity = 1 - 0.75**rounds
        pruning = Pruning(
            sparsity, layers=LINEAR, schedule="imp", criterion="GraSP", options={"rate": 0.25}, score_records=100
        )
        found = prune(trained, pruning, Context(digits, CPU))
        kept.append(torch.cat([found.mask.kept[name].reshape(-1) for name in sorted(found.mask.kept)]))
        assert int((~kept[-1]).sum()) == round(sparsity * len(kept[-1]))
    assert not (kept[1] & ~kept[0]).any()
    assert not (kept[2] & ~kept[1]).any()


@pytest.mark.parametrize("criterion", ["SNIP", "GraSP"])
def test_rounds_at_initialisation_rank_the_kept_weights_again(trained, digits, criterion):
    """Three rounds: densities (1 - s)^(k / 3), every round on the masked initial weights."""
    pruning = Pruning(
        0.8, layers=LINEAR, schedule="at-init", criterion=criterion, options={"rounds": 3}, score_records=100
    )
    found = prune(trained, pruning, Context(digits, CPU, seed=7))
    rows = digits.rows(trained.split.retain)
    chosen = rows[epoch_order(digits.keys[rows], derive(7, "score"), 0)[:100]]
    batches = Batches(digits, chosen, batch_size=48).in_order
    model = Architecture.from_json(trained.provenance.architecture).build(5)
    rule, mask, masks = Rule(criterion, "weight", "global", LINEAR), None, []
    for number in (1, 2, 3):
        sparsity = 1 - 0.2 ** (number / 3)
        mask, _ = make_mask(model, rule, batches=batches, batch_statistics=True, seed=7, within=mask, sparsity=sparsity)
        mask.apply_(model)
        masks.append(mask)
    context = Context(digits, CPU, seed=order_seed(5))
    fit(model, digits.rows(trained.split.train), RECIPE, context, mask=mask)
    assert found.mask.hash() == mask.hash()
    assert found.hash == hash_tensors(model.state_dict())


def test_the_records_that_scores_read_are_drawn_from_the_seed(trained, digits):
    def pruned(seed: int, **changes: object) -> str:
        how = {"sparsity": 0.5, "layers": LINEAR, "criterion": "SNIP", "schedule": "one-shot", "score_records": 20}
        return prune(trained, Pruning(**{**how, **changes}), Context(digits, CPU, seed=seed)).mask.hash()

    assert pruned(1) == pruned(1)
    assert len({pruned(seed) for seed in (0, 1, 2, 3)}) == 4
    assert len({pruned(seed, criterion="magnitude") for seed in (0, 1)}) == 1


@pytest.mark.parametrize("seed", [0, 3])
def test_they_are_the_first_in_the_order_of_their_hashes(trained, digits, seed):
    """Also for a split with forgotten records: those are not read."""
    forgotten = trained.split.retain[::7]
    split = dataclasses.replace(trained.split, retain=trained.split.retain[1::2], forget=forgotten[:0])
    later = dataclasses.replace(trained, split=split)
    rows = digits.rows(split.retain)
    chosen = rows[epoch_order(digits.keys[rows], derive(seed, "score"), 0)[:30]]
    x = torch.from_numpy(digits.features[chosen]).float() / 255
    y = torch.from_numpy(digits.labels[chosen])
    model = clone_model(trained.model).eval()
    pruning = Pruning(0.5, layers=LINEAR, criterion="SNIP", schedule="one-shot", score_records=30)
    found = prune(later, pruning, Context(digits, CPU, seed=seed))
    names = sorted(found.mask.kept)
    parameters = [model.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), parameters)
    scores = torch.cat([(g * p).abs().reshape(-1) for g, p in zip(gradients, parameters, strict=True)])
    kept = torch.cat([found.mask.kept[name].reshape(-1) for name in names])
    wanted = torch.zeros_like(kept)
    wanted[scores.argsort(descending=True)[: int(kept.sum())]] = True
    assert (wanted == kept).float().mean() > 0.99  # scores that differ in the last bits may change places


@pytest.mark.parametrize("options", [{"begin": -0.1}, {"begin": 1.0}, {"end": 0.0}, {"end": 1.1}, {"begin": 0.8}])
def test_fractions_of_gradual_pruning_are_checked(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Pruning(0.5, schedule="gradual", options=options)
