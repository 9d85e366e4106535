"""Retrain by hand: other seeds, the full number of epochs after rewinding, rewinding where the best epoch is kept."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.core.hashing import hash_tensors
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, Runtime, fit, train
from expunge.training.loop import order_seed
from expunge.training.predict import make_validator

STEADY = Recipe(name="steady", epochs=4, batch_size=32, learning_rate=0.1, rewind=0.5)
#: The validation accuracy of the second epoch is below that of the first: at this rate training is not steady.
UNSTEADY = dataclasses.replace(STEADY, name="unsteady", learning_rate=1.2, select="best")


def original(records: Records, split: Split, recipe: Recipe, cpu: Runtime, seed: int = 6) -> Trained:
    network = Architecture("mlp", {"widths": (16,)}, records.input_shape, records.classes)
    return train(records, split, network, recipe=recipe, seed=seed, runtime=cpu)


def without(split: Split, request: ForgetRequest) -> Split:
    return dataclasses.replace(split, retain=request.apply(split).retain)


@pytest.mark.parametrize("epochs", ["remaining", "full"])
@pytest.mark.parametrize("recipe", [STEADY, UNSTEADY], ids=lambda recipe: recipe.name)
def test_a_rewound_reference_is_trained_as_the_original_was(
    recipe: Recipe, epochs: str, digits: Records, digits_split: Split, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """Dense training without D_f, its checkpoint at the rewind epoch, then the masked epochs of the original."""
    dense = original(digits, digits_split, recipe, cpu)
    sparse = prune(dense, Pruning(0.5, layers=("linear",), epochs=epochs), Context(digits, cpu, seed=2))
    outcome = get_method("Retrain", mask="rewind").forget(sparse, request_20, Context(digits, cpu, seed=9))

    never = without(digits_split, request_20)
    early = original(digits, never, recipe, cpu)
    model = clone_model(early.model)
    model.load_state_dict(early.state["rewind_checkpoint"])  # the state after two epochs, not that of the best epoch
    order = sparse.provenance.seeds["pruning_order"]
    stop = {"remaining": 4, "full": 4 + 2}[epochs]
    fit(
        model, digits.rows(never.retain), recipe, Context(digits, cpu, seed=order), mask=sparse.mask, start=2,
        stop=stop, validate=make_validator(digits, digits.rows(never.validation), cpu),
    )  # fmt: skip
    assert outcome.trained.hash == hash_tensors(model.state_dict())
    assert outcome.cost.trained_records == stop * len(never.retain)


def test_the_unsteady_recipe_has_its_best_epoch_before_the_rewind_epoch(
    digits: Records, digits_split: Split, request_20: ForgetRequest, cpu: Runtime
) -> None:
    """The premise of the test above: training for two epochs with `best` does not give the checkpoint."""
    never = without(digits_split, request_20)
    whole = original(digits, never, UNSTEADY, cpu)
    network = Architecture.from_json(whole.provenance.architecture).build(6)
    result = fit(
        network, digits.rows(never.retain), UNSTEADY, Context(digits, cpu, order_seed(6)), stop=2,
        validate=make_validator(digits, digits.rows(never.validation), cpu),
    )  # fmt: skip
    assert result.best_epoch == 1  # of 1 and 2
    assert hash_tensors(network.state_dict()) != hash_tensors(whole.state["rewind_checkpoint"])


def test_another_order_keeps_the_initial_weights(
    digits: Records, digits_split: Split, request_20: ForgetRequest, cpu: Runtime
) -> None:
    dense = original(digits, digits_split, STEADY, cpu)
    never = without(digits_split, request_20)
    outcome = get_method("Retrain", seeds="order").forget(dense, request_20, Context(digits, cpu, seed=9))
    network = Architecture.from_json(dense.provenance.architecture)
    by_hand = train(digits, never, network, recipe=STEADY, seed=9, initial_seed=6, runtime=cpu)
    assert outcome.trained.hash == by_hand.hash
    assert outcome.trained.provenance.initial_weights == dense.provenance.initial_weights
    assert outcome.trained.provenance.seeds == {"initial": 6, "order": order_seed(9), "training": 9}
    for seeds in ("original", "new"):
        other = get_method("Retrain", seeds=seeds).forget(dense, request_20, Context(digits, cpu, seed=9))
        assert other.trained.hash != by_hand.hash
