"""The decay of the difference of two runs: hand calculation, identities, and the methods Replay and Retrain."""

from __future__ import annotations

import json

import pytest
import torch

import expunge
from expunge.core.errors import ConfigError, MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.trained import Provenance, Trained
from expunge.methods import Context, get_method
from expunge.methods.replay import compare_runs, measure_decay
from expunge.methods.replay.decay import list_rates
from expunge.training import Recipe, Runtime


def run(*epochs: dict[str, list[float]]) -> dict[int, dict[str, torch.Tensor]]:
    return {t: {name: torch.tensor(values) for name, values in one.items()} for t, one in enumerate(epochs)}


def test_by_hand() -> None:
    start = {"a.weight": [1.0, 1.0], "a.bias": [0.0], "b.weight": [2.0]}
    kept = run(start, {"a.weight": [1.0, 2.0], "a.bias": [0.0], "b.weight": [2.0]},
               {"a.weight": [4.0, 5.0], "a.bias": [0.0], "b.weight": [2.0]})  # fmt: skip
    gone = run(start, {"a.weight": [1.0, 5.0], "a.bias": [0.0], "b.weight": [6.0]},
               {"a.weight": [4.0, 5.0], "a.bias": [12.0], "b.weight": [7.0]})  # fmt: skip
    decay = compare_runs(kept, gone, at=[1], rates=[0.0, 0.1, 0.2])
    assert (decay.epochs, decay.rates, list(decay.layers)) == ((0, 1, 2), (0.0, 0.1, 0.2), ["a", "b", "all"])
    assert decay.rate_fractions == pytest.approx((0.0, 1 / 3, 1.0))
    one, other, both = (decay.layers[name] for name in ("a", "b", "all"))
    assert one.norm == (0.0, 3.0, 12.0)
    assert one.relative == pytest.approx((0.0, 0.6, 2.4)), "moved by (3, 4, 0)"
    assert one.cosine == (None, 0.0, 1.0), "(0, 3, 0) and (0, 0, 12)"
    assert one.factor == (None, 0.0, 1.0)
    assert other.norm == (0.0, 4.0, 5.0)
    assert other.relative == (None, None, None), "b did not move in the run on D"
    assert other.error == pytest.approx((1.0, 0.2, 0.0))
    assert other.factor == pytest.approx((None, 1.25, 1.0))
    assert both.norm == pytest.approx((0.0, 5.0, 13.0))
    assert both.cosine == pytest.approx((None, 20 / 65, 1.0))
    assert both.cosine_at[1] == pytest.approx((None, 1.0, 20 / 65))
    assert both.error == pytest.approx((1.0, (9 + 144 + 1) ** 0.5 / 13, 0.0))
    assert json.loads(json.dumps(decay.to_json()))["layers"]["all"]["cosine_at"]["1"][1] == 1.0


def test_identities_of_random_runs() -> None:
    draw = torch.Generator().manual_seed(0)

    def walk() -> dict[int, dict[str, torch.Tensor]]:
        shapes = {"x.weight": (3, 4), "y.weight": (5,), "y.bias": (2,)}
        here = {name: torch.ones(shape) for name, shape in shapes.items()}
        found = {0: here}
        for t in range(1, 6):
            here = {name: value + torch.randn(value.shape, generator=draw) for name, value in here.items()}
            found[t] = here
        return found

    one, other = walk(), walk()
    decay = compare_runs(one, other)
    whole, layers = decay.layers["all"], [decay.layers["x"], decay.layers["y"]]
    for t in range(1, 6):
        assert whole.norm[t] ** 2 == pytest.approx(sum(layer.norm[t] ** 2 for layer in layers))
        for trace in decay.layers.values():
            ratio, cosine, error, factor = (
                trace.norm[t] / trace.norm[5], trace.cosine[t], trace.error[t], trace.factor[t]
            )  # fmt: skip
            assert cosine is not None
            assert error is not None
            assert error**2 == pytest.approx(1 - 2 * ratio * cosine + ratio**2, abs=1e-9)
            assert factor == pytest.approx(cosine / ratio)
    swapped = compare_runs(other, one).layers["all"]
    assert (swapped.cosine, swapped.error) == (whole.cosine, whole.error)
    with pytest.raises(ConfigError, match="same epochs"):
        compare_runs(one, {t: other[t] for t in range(5)})
    with pytest.raises(ConfigError, match="epoch 9"):
        compare_runs(one, other, at=[9])


def make(recipe: Recipe, name: str = "mlp") -> tuple[Trained, expunge.ForgetRequest, Context]:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0, limit=200)
    network = expunge.architecture(name, records, split, **({"widths": (12,)} if name == "mlp" else {}))
    trained = expunge.train(records, split, network, recipe=recipe, seed=3, runtime=Runtime("cpu"))
    request = expunge.ForgetRequest(split.retain[:40])
    return trained, request, Context(records, Runtime("cpu"))


def weights(trained: Trained) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in plain_parameters(trained.model).values()])


def test_the_error_is_that_of_replay_without_fine_tuning() -> None:
    """An independent path: the method Replay for each k, beside Retrain and doing nothing."""
    trained, request, context = make(expunge.get_recipe("one-cycle", epochs=4, batch_size=32))
    decay = measure_decay(trained, request, context, at=[2])
    assert decay.epochs == (0, 1, 2, 3, 4)
    retrained = weights(get_method("Retrain").forget(trained, request, context).trained)
    nothing = float((weights(trained) - retrained).norm())
    for k in (1, 3):
        replay = get_method("Replay", prefix_epochs=k, epochs=0, re_estimate=0).forget(trained, request, context)
        error = float((weights(replay.trained) - retrained).norm()) / nothing
        assert decay.layers["all"].error[k] == pytest.approx(error, abs=1e-6)
    assert decay.layers["all"].norm[4] == pytest.approx(nothing)
    assert decay.layers["all"].error[0] == 1.0
    assert decay.layers["all"].cosine_at[2][2] == pytest.approx(1.0)
    assert decay.rates[0] == 0.0


def test_the_weights_of_the_last_epoch_are_compared_also_if_the_best_are_selected() -> None:
    trained, request, context = make(
        Recipe(epochs=3, batch_size=32, learning_rate=0.05, lr_schedule="constant", select="best")
    )
    last = expunge.train(
        context.records, trained.split, expunge.architecture("mlp", context.records, trained.split, widths=(12,)),
        recipe=Recipe(epochs=3, batch_size=32, learning_rate=0.05, lr_schedule="constant"), seed=3,
        runtime=Runtime("cpu"),
    )  # fmt: skip
    initial = expunge.architecture("mlp", context.records, trained.split, widths=(12,)).build(3)
    moved = float((weights(last) - torch.cat([p.detach().double().flatten() for p in initial.parameters()])).norm())
    trace = measure_decay(trained, request, context).layers["all"]
    assert trace.relative[3] == pytest.approx(trace.norm[3] / moved)


def test_a_model_of_unknown_training_is_refused() -> None:
    trained, request, context = make(expunge.get_recipe("one-cycle", epochs=1))
    unknown = Trained(
        trained.model, None, trained.split,
        Provenance(trained.provenance.architecture, recipe={}, history=("imported",)),
    )  # fmt: skip
    with pytest.raises(MethodError, match="recipe of the original model is not recorded"):
        measure_decay(unknown, request, context)
    with pytest.raises(ConfigError, match="epoch 2"):
        measure_decay(trained, request, context, at=[2])


def test_rates_are_means_over_the_epoch() -> None:
    constant = Recipe(epochs=3, learning_rate=0.2, lr_schedule="constant")
    assert list_rates(constant) == pytest.approx((0.0, 0.2, 0.2, 0.2))
    steps = Recipe(epochs=4, learning_rate=1.0, lr_schedule="multistep", milestones=(0.5,))
    assert list_rates(steps) == pytest.approx((0.0, 1.0, 1.0, 0.1, 0.1))
    warm = Recipe(epochs=2, learning_rate=1.0, lr_schedule="cosine", warmup=0.5)
    assert list_rates(warm)[1] == pytest.approx(0.5), "a linear warm-up"
