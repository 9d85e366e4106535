"""The course of each schedule: the network and the mask before every epoch, not only the result."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from expunge.core.errors import MaskError
from expunge.core.trained import clone_model
from expunge.sparsity import Pruning, Rule, make_mask, prune
from expunge.sparsity.schedules import run as schedules
from expunge.sparsity.schedules.from_initialisation import find_gradual_epochs
from expunge.training import Context

CONV = ("conv",)


@pytest.fixture
def course(monkeypatch):
    """A list that gets (epoch, network before the epoch, mask passed) at every epoch of masked training."""
    seen = []
    train = schedules.fit

    def watched(model, *arguments, steps, **settings):
        def before(network, epoch):
            mask = None if steps.before_epoch is None else steps.before_epoch(network, epoch)
            seen.append((epoch, clone_model(network), mask))
            return mask

        return train(model, *arguments, steps=dataclasses.replace(steps, before_epoch=before), **settings)

    monkeypatch.setattr(schedules, "fit", watched)
    return seen


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_gradual_pruning_is_cubic(dense, digits, cpu, course, granularity):
    criterion = "magnitude" if granularity == "weight" else "filter-l2"
    options = {"begin": 0.25, "end": 0.75}
    sparse = prune(
        dense,
        Pruning(
            sparsity=0.8,
            layers=CONV,
            schedule="gradual",
            granularity=granularity,
            criterion=criterion,
            scope="layer",
            options=options,
        ),
        Context(digits, cpu),
    )
    assert [epoch for epoch, _, _ in course] == list(range(12))
    for epoch, _, mask in course:
        if epoch < 3:
            assert mask is None
            continue
        progress = min(1.0, (epoch - 3) / 6)
        wanted = 0.8 * (1 - (1 - progress) ** 3)
        if granularity == "weight":
            assert all(int((~kept).sum()) == round(kept.numel() * wanted) for kept in mask.kept.values())
        else:
            pruned = [int((~mask.kept[f"blocks.{i}.1.weight"]).sum()) for i in range(2)]
            assert pruned == [round(8 * wanted), round(16 * wanted)]
    assert sparse.mask.sparsity > 0.7
    assert sparse.provenance.history[-1].endswith("gradually in epochs 4 to 10 of 12")


def test_the_epochs_of_a_gradual_course():
    """At least one epoch between the first and the last mask, and one to train afterwards."""
    for begin, end, epochs, expected in (
        (0.2, 0.7, 20, (4, 14)), (0.2, 0.3, 5, (1, 2)), (0.0, 0.1, 5, (0, 1)), (0.5, 0.6, 10, (5, 6)),
    ):  # fmt: skip
        assert find_gradual_epochs({"begin": begin, "end": end}, epochs) == expected
    for begin, end, epochs in ((0.5, 1.0, 10), (0.8, 0.9, 5), (0.0, 0.5, 1)):
        with pytest.raises(MaskError, match=f"a recipe of {epochs} epochs? is too short"):
            find_gradual_epochs({"begin": begin, "end": end}, epochs)


def test_gradual_pruning_from_the_first_epoch_keeps_channels_whole(dense, digits, cpu, course):
    """Shifts are 0 before the first step, which does not mean that they are pruned."""
    sparse = prune(
        dense,
        Pruning(
            sparsity=0.5,
            layers=CONV,
            schedule="gradual",
            granularity="filter",
            criterion="filter-l2",
            options={"begin": 0.0, "end": 0.5},
        ),
        Context(digits, cpu),
    )
    for _, _, mask in course:
        for layer in (0, 1):
            scales, shifts = (mask.kept[f"blocks.{layer}.1.{part}"] for part in ("weight", "bias"))
            assert torch.equal(scales, shifts)
            assert torch.equal(scales, mask.kept[f"blocks.{layer}.0.weight"].flatten(1).all(1))
    assert sum(int(sparse.mask.kept[f"blocks.{layer}.1.bias"].sum()) for layer in (0, 1)) == 12
    pruned = [frozenset(torch.nonzero(~mask.kept["blocks.1.1.weight"]).flatten().tolist()) for _, _, mask in course]
    assert all(earlier <= later for earlier, later in itertools.pairwise(pruned))  # what is pruned stays pruned


def test_soft_filters_are_zeroed_before_every_epoch_but_the_first(dense, digits, cpu, course):
    sparse = prune(
        dense,
        Pruning(sparsity=0.5, layers=CONV, schedule="soft-filter", granularity="filter", criterion="filter-l2"),
        Context(digits, cpu),
    )
    rule = Rule("filter-l2", "filter", "global", CONV, 0.5)
    zeroed, sets = [], set()
    for epoch, network, mask in course:
        assert mask is None  # they may grow again
        weights = [module.weight for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
        zeroed.append(sum(int((w.flatten(1) == 0).all(1).sum()) for w in weights))
        if epoch:
            remade, _ = make_mask(network, rule, input_shape=digits.input_shape)
            pruned = [name for name, kept in remade.kept.items() if not kept.all() and kept.dim() > 1]
            assert pruned
            assert all((dict(network.named_parameters())[n][~remade.kept[n]] == 0).all() for n in pruned)
            sets.add(remade.hash())
    assert zeroed == [0, *[12] * (len(course) - 1)]  # half of 24 filters
    assert len(sets) > 2  # filters grow again, and others are zeroed
    assert sparse.mask.count_violations(sparse.model) == {}  # at the end whole channels
    assert sum(int((~sparse.mask.kept[f"blocks.{layer}.1.bias"]).sum()) for layer in (0, 1)) == 12


def test_training_after_rewinding_uses_the_recorded_order(dense, digits, cpu, request_20):
    """The reference trains with the recorded seed of the order after pruning, as the original does."""
    from expunge.methods import Context, get_method

    sparse = prune(dense, Pruning(sparsity=0.6, layers=CONV), Context(digits, cpu, seed=4))
    rewound = get_method("Retrain", mask="rewind")
    first = rewound.forget(sparse, request_20, Context(digits, cpu)).trained
    seeds = {**sparse.provenance.seeds, "pruning_order": sparse.provenance.seeds["pruning_order"] + 1}
    other = dataclasses.replace(sparse, provenance=dataclasses.replace(sparse.provenance, seeds=seeds))
    second = rewound.forget(other, request_20, Context(digits, cpu)).trained
    assert first.hash != second.hash
