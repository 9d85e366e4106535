"""Transfer: features and probes against closed forms, fine-tuning against plain steps, influence of planted classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import expunge
from expunge.core.errors import ConfigError, DataError, ModelError
from expunge.core.mask import Mask, MaskProvenance
from expunge.data import Records
from expunge.training.transfer import (
    compute_features,
    fine_tune,
    linear_probe,
    measure_class_influence,
    take_classes,
)
from expunge.training.transfer.influence import compare_results, draw_halves
from expunge.training.transfer.target import replace_output_layer

CPU = expunge.Runtime("cpu")


@pytest.fixture(scope="module")
def digits() -> Records:
    return expunge.load_records("digits")


def test_classes_are_taken_with_all_that_belongs_to_their_records(digits: Records) -> None:
    some = take_classes(digits, ["7", "0", "3"])
    rows = [row for row in range(len(digits)) if digits.class_names[digits.labels[row]] in ("7", "0", "3")]
    assert some.record_ids.tolist() == digits.record_ids[rows].tolist()
    assert np.array_equal(some.features, digits.features[rows])
    assert [some.class_names[label] for label in some.labels] == [str(digits.labels[row]) for row in rows]
    for wrong in ([], ["7", "7"], ["eleven"]):
        with pytest.raises(DataError):
            take_classes(digits, wrong)


def test_features_are_the_input_of_the_output_layer(digits: Records) -> None:
    network = expunge.architecture("small-cnn", digits, widths=(4, 8), normalise="none")
    model = network.build(seed=1)
    rows = np.asarray([5, 3, 700])
    found = compute_features(model, digits, digits, rows, runtime=CPU)
    layers = dict(model.named_modules())
    path = [name for name, module in layers.items() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits = layers[path](torch.from_numpy(found))
    assert model.training
    assert torch.allclose(logits, expunge.predict_logits(model, digits, rows, runtime=CPU), atol=1e-5)


def gaussians(means: np.ndarray, count: int, seed: int, names: str, noise: np.ndarray | float = 0.5) -> Records:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(means)), count)
    features = means[labels] + noise * rng.standard_normal((len(labels), means.shape[1]))
    ids = [f"{names}{i:04d}" for i in range(len(labels))]
    return Records(names, ids, labels, [f"{names}-{k}" for k in range(len(means))], features.astype(np.float32))


def test_the_probe_is_a_logistic_regression_on_the_features(digits: Records) -> None:
    split = expunge.make_split(digits, seed=0, limit=150)
    model = expunge.architecture("mlp", digits, widths=(12,), normalise="none").build(seed=0)
    found = linear_probe(model, digits, digits, split, runtime=CPU, strength=0.5)
    with torch.no_grad():  # minimise the penalised loss by Newton-like steps of another library
        train, test = (np.sort(digits.rows(ids)) for ids in (split.train, split.test))
        features = [
            compute_features(model, digits, digits, rows, runtime=CPU).astype(np.float64) for rows in (train, test)
        ]
    mean, std = features[0].mean(axis=0), features[0].std(axis=0)
    std[std == 0] = 1
    x, z = (torch.from_numpy((part - mean) / std) for part in features)
    labels = torch.from_numpy(digits.labels[train])
    weight = torch.zeros(10, 12, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        value = 0.5 * value + 0.5 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    probabilities = torch.softmax(z @ weight.T + bias, dim=1).detach().numpy()
    expected = probabilities[np.arange(len(test)), digits.labels[test]].mean()
    assert found.probability == pytest.approx(expected, abs=2e-3)
    assert found.accuracy == pytest.approx(100 * (probabilities.argmax(1) == digits.labels[test]).mean(), abs=1.0)
    assert found.records == len(test)
    assert found.seconds > 0


def test_fine_tuning_equals_training_from_the_same_weights(digits: Records) -> None:
    source, target = take_classes(digits, list("01234")), take_classes(digits, list("567"))
    split = expunge.make_split(target, seed=0)
    model = expunge.architecture("mlp", source, widths=(16,), normalise="none").build(seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = expunge.Recipe(epochs=3, batch_size=32)
    found = fine_tune(model, source, target, split, recipe=recipe, seed=4, runtime=CPU)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    start, _ = replace_output_layer(model, source, target, seed=4)
    own = expunge.architecture("mlp", target, widths=(16,), normalise="none").build(seed=0)
    own.load_state_dict(start.state_dict())
    context = expunge.Context(target, CPU, expunge.training.loop.order_seed(4))
    expunge.training.fit(own, np.sort(target.rows(split.train)), recipe, context)
    rows = np.sort(target.rows(split.test))
    correct = expunge.predict_logits(own, target, rows, runtime=CPU).argmax(1).numpy() == target.labels[rows]
    assert found.accuracy == pytest.approx(100 * correct.mean())
    assert found.accuracy > 90


def test_masked_weights_stay_masked_and_the_new_layer_is_dense(digits: Records) -> None:
    target = take_classes(digits, list("567"))
    model = expunge.architecture("mlp", digits, widths=(16,), normalise="none").build(seed=3)
    names = [name for name, tensor in model.state_dict().items() if tensor.dim() == 2]
    kept = {name: torch.rand(model.state_dict()[name].shape) > 0.5 for name in names}
    mask = Mask(kept, MaskProvenance("magnitude", "global", "weight", ("linear",), "one-shot"))
    _, rest = replace_output_layer(model, digits, target, seed=0, mask=mask)
    assert list(rest.kept) == names[:-1]
    only_output = Mask({names[-1]: kept[names[-1]]}, mask.provenance)
    assert replace_output_layer(model, digits, target, seed=0, mask=only_output)[1] is None
    split = expunge.make_split(target, seed=0, limit=60)
    assert fine_tune(model, digits, target, split, recipe=expunge.Recipe(epochs=1), mask=mask, runtime=CPU).records


def test_what_cannot_be_transferred_is_refused(digits: Records) -> None:
    model = expunge.architecture("mlp", digits, widths=(4,), normalise="none").build(seed=0)
    table = gaussians(np.eye(3), 20, 0, "t")
    split = expunge.make_split(table, seed=0)
    with pytest.raises(ModelError, match="takes records of shape"):
        linear_probe(model, digits, table, split, runtime=CPU)
    two = expunge.architecture("mlp", digits, widths=(4,), normalise="none").build(seed=0)
    flattened = torch.nn.Sequential(two, torch.nn.Softmax(dim=1))
    with pytest.raises(ModelError, match="not the output of a linear layer"):
        compute_features(flattened, digits, digits, np.arange(3), runtime=CPU)
    one = take_classes(digits, ["3"])
    with pytest.raises(DataError, match="one class only"):
        linear_probe(model, digits, one, expunge.make_split(one, seed=0), runtime=CPU)
    empty = expunge.make_split(digits, seed=0, test=0.0)
    with pytest.raises(DataError, match="test part"):
        fine_tune(model, digits, digits, empty, recipe=expunge.Recipe(epochs=1), runtime=CPU)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_every_class_is_in_half_of_the_models(classes: int) -> None:
    inside = draw_halves(classes, 8, seed=2)
    assert inside.sum(axis=0).tolist() == [4] * classes
    assert np.array_equal(inside[0::2], ~inside[1::2])
    assert inside.any(axis=1).all()
    assert not np.array_equal(inside, draw_halves(classes, 8, seed=3))


def test_the_influence_is_a_difference_of_means() -> None:
    inside = np.asarray([[True, False], [False, True], [True, True], [False, False]])
    found = compare_results(("a", "b"), inside, np.asarray([0.1, 0.5, 0.3, 0.9]))
    assert found.influence == pytest.approx([0.2 - 0.7, 0.4 - 0.5])
    assert found.most_harmful_first() == ("a", "b")
    expected = [np.sqrt(np.var([0.1, 0.3], ddof=1) / 2 + np.var([0.5, 0.9], ddof=1) / 2),
                np.sqrt(np.var([0.5, 0.3], ddof=1) / 2 + np.var([0.1, 0.9], ddof=1) / 2)]  # fmt: skip
    assert found.standard_errors == pytest.approx(expected)


def test_planted_harmful_classes_are_the_most_harmful_ones() -> None:
    """Of 16 features, the target needs the first 8. Two source classes can only be separated by the others."""
    rng = np.random.default_rng(1)

    def means(count: int, scale: float, useful: bool) -> np.ndarray:
        signs, none = scale * rng.choice([-1.0, 1.0], (count, 8)), np.zeros((count, 8))
        return np.concatenate([signs, none] if useful else [none, signs], axis=1)

    source = gaussians(np.concatenate([means(5, 1, True), means(2, 4, False)]), 60, 1, "source")
    target = gaussians(means(6, 1, True), 60, 2, "target", noise=np.repeat([0.5, 4.0], 8))
    network = expunge.architecture("mlp", source, widths=(4,), normalise="none")
    found = measure_class_influence(
        source, expunge.make_split(source, test=0.05, validation=0, non_members=0),
        target, expunge.make_split(target, test=0.05, validation=0.4, non_members=0),
        network, recipe=expunge.Recipe(epochs=8, batch_size=64, learning_rate=0.1), models=40, seed=1, runtime=CPU,
    )  # fmt: skip
    assert set(found.most_harmful_first()[:2]) == {"source-5", "source-6"}
    assert (found.influence[5:] < -2 * found.standard_errors[5:]).all()


@pytest.mark.parametrize("models", [0, 3, -2])
def test_the_number_of_models_is_checked(digits: Records, models: int) -> None:
    split = expunge.make_split(digits, seed=0)
    network = expunge.architecture("mlp", digits, widths=(4,), normalise="none")
    with pytest.raises(ConfigError, match="even"):
        measure_class_influence(digits, split, digits, split, network, recipe=expunge.Recipe(epochs=1), models=models)
    one = take_classes(digits, ["3"])
    recipe = expunge.Recipe(epochs=1)
    with pytest.raises(DataError, match="at least 2 source classes"):
        measure_class_influence(one, expunge.make_split(one), digits, split, network, recipe=recipe, models=2)
