"""Un-pruning by hand: what every round regrows, its values and its seed; and the damping of the influence rule."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from expunge.core.mask import Mask
from expunge.core.seeds import derive
from expunge.core.trained import Trained, clone_model
from expunge.methods import Context, get_method
from expunge.models import Architecture
from expunge.sparsity import Pruning, make_mask, prune, rule_of
from expunge.training import Recipe, Runtime, train

CPU = Runtime("cpu")
RECIPE = Recipe(name="test", epochs=6, batch_size=48, learning_rate=0.1, lr_schedule="cosine", rewind=0.25)
ONE_EPOCH = {"epochs": 1, "batch_size": 48}


@pytest.fixture(scope="module")
def sparse(digits, digits_split):
    network = Architecture("mlp", {"widths": (16,)}, digits.input_shape, digits.classes)
    dense = train(digits, digits_split, network, recipe=RECIPE, seed=5, runtime=CPU)
    return prune(dense, Pruning(0.6, layers=("linear",), keep_weights=True), Context(digits, CPU))


def weights(model: torch.nn.Module, mask: Mask) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name).detach().clone() for name in mask.kept}


def with_weights(trained: Trained, model: torch.nn.Module, values: dict[str, torch.Tensor], mask: Mask) -> Trained:
    model = clone_model(model)
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
    return dataclasses.replace(trained, model=model, mask=mask)


def regrow_all(sparse: Trained, request, digits, *, reinitialise: str, reprune: str, rounds: int) -> Trained:
    """The rule `dense` written out, with FT for one epoch inside."""
    original, rule = sparse.mask, rule_of(sparse.mask)
    initial = Architecture.from_json(sparse.provenance.architecture).build(5)
    start = weights(initial, original)  # the values of weights that are regrown
    everything = Mask({name: torch.ones_like(kept) for name, kept in original.kept.items()}, original.provenance)
    current = sparse
    for number in range(rounds):
        kept = current.mask.kept
        grown = {n: torch.where(kept[n], w, start[n]) for n, w in weights(current.model, original).items()}
        seed = 1 if number == 0 else derive(1, "un-prune", number)
        entering = with_weights(sparse, current.model, grown, everything)
        current = get_method("FT", **ONE_EPOCH).forget(entering, request, Context(digits, CPU, seed=seed)).trained
        if reprune == "each" or number == rounds - 1:
            trained_values = weights(current.model, original)
            mask, _ = make_mask(current.model, rule)
            if reinitialise == "grown":  # what was regrown starts from its last value, not from its initial one
                start = trained_values
            zeroed = {n: torch.where(mask.kept[n], w, torch.zeros(())) for n, w in trained_values.items()}
            current = with_weights(sparse, current.model, zeroed, mask)
    return current


@pytest.mark.parametrize(
    ("reinitialise", "reprune", "rounds"),
    [("pruned", "each", 2), ("grown", "each", 2), ("pruned", "each", 3), ("pruned", "once", 2), ("grown", "each", 3)],
)
def test_rounds_of_the_dense_rule(sparse, digits, request_20, reinitialise, reprune, rounds):
    options = {"reinitialise": reinitialise, "reprune": reprune, "rounds": rounds}
    method = get_method("Un-prune", rule="dense", method="FT", method_options=ONE_EPOCH, **options)
    found = method.forget(sparse, request_20, Context(digits, CPU, seed=1)).trained
    expected = regrow_all(sparse, request_20, digits, **options)
    assert found.mask.hash() == expected.mask.hash()
    assert found.hash == expected.hash


def test_random_regrowth_draws_other_weights_in_every_round(sparse, digits, request_20):
    """Without training, weights regrown in both rounds would be the same if both rounds had one seed.

    Two rounds that are re-pruned once: the second regrows among the weights that the first left pruned. With one
    seed, the highest draws of the first round are taken, and the next highest in the second: together the highest.
    """
    method = get_method(
        "Un-prune", rule="random", growth=0.3, rounds=2, reprune="once", method="FT", method_options={"epochs": 0}
    )
    found = method.forget(sparse, request_20, Context(digits, CPU, seed=1)).trained
    initial = weights(Architecture.from_json(sparse.provenance.architecture).build(5), sparse.mask)
    kept = {name: tensor.clone() for name, tensor in sparse.mask.kept.items()}
    for number in (0, 1):
        generator = torch.Generator().manual_seed(derive(1, "un-prune", "random", number))
        draws = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in kept.items()}
        flat = torch.cat([draws[name].masked_fill(kept[name], -1).reshape(-1) for name in kept])
        pruned = sum(int((~tensor).sum()) for tensor in kept.values())
        threshold = flat.sort(descending=True).values[-(-3 * pruned // 10) - 1]
        kept = {name: kept[name] | (draws[name] >= threshold) for name in kept}
    values = {name: torch.where(kept[name], w, 0) for name, w in weights(sparse.model, sparse.mask).items()}
    values = {
        name: torch.where(kept[name] & ~sparse.mask.kept[name], initial[name], value) for name, value in values.items()
    }
    grown = with_weights(sparse, sparse.model, values, Mask(kept, sparse.mask.provenance))
    expected, _ = make_mask(grown.model, rule_of(sparse.mask), within=grown.mask)
    assert found.mask.hash() == expected.hash()


@pytest.mark.parametrize("decay", [0.0, 5e-2])
def test_the_damping_is_the_inverse_training_time_plus_the_decay(digits, digits_split, request_20, decay):
    """One long step along v = N_f / N (g_f - g_r) of length 1 / (1 / T + decay), with T = sum of rates / (1 - 0.9)."""
    recipe = dataclasses.replace(RECIPE, weight_decay=decay, lr_schedule="constant")
    network = Architecture("mlp", {"widths": (16,)}, digits.input_shape, digits.classes)
    dense = train(digits, digits_split, network, recipe=recipe, seed=5, runtime=CPU)
    pruned = prune(dense, Pruning(0.6, layers=("linear",), keep_weights=True), Context(digits, CPU))
    method = get_method("Un-prune", rule="influence", curvature="none", method="FT", method_options={"epochs": 0})
    found = method.forget(pruned, request_20, Context(digits, CPU, seed=1)).trained.mask

    def gradients(ids) -> list[torch.Tensor]:
        rows = digits.rows(ids)
        x, y = torch.from_numpy(digits.features[rows]).double() / 255, torch.from_numpy(digits.labels[rows])
        model = clone_model(dense.model).double().eval()
        parameters = [model.get_parameter(name) for name in sorted(found.kept)]
        return list(torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), parameters))

    steps = -(-290 // 48) * recipe.epochs
    time = steps * 0.1 / (1 - 0.9)
    forget, retain = gradients(request_20.record_ids), gradients(request_20.apply(digits_split).retain)

    def kept_after(damping: float) -> torch.Tensor:
        names = sorted(found.kept)
        moved = [
            dense.model.get_parameter(name).detach().double() + 20 / 290 * (f - r) / damping
            for name, f, r in zip(names, forget, retain, strict=True)
        ]
        flat = torch.cat([tensor.abs().reshape(-1) for tensor in moved])
        return flat >= flat.sort(descending=True).values[found.kept_count - 1]

    kept = torch.cat([found.kept[name].reshape(-1) for name in sorted(found.kept)])
    assert (kept == kept_after(1 / time + decay)).float().mean() > 0.995
    for wrong in (1.0, 10 / time + decay, *([decay, 1 / time] if decay else [])):
        assert (kept == kept_after(wrong)).float().mean() < 0.995
