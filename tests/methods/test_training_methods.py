"""Methods that act during training: `fit` stores what `forget` needs; without one, `fit` is plain training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import method_contract as contract
import pytest
import torch

from expunge.core.errors import MethodError
from expunge.core.registry import METHODS
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, Method, Task, get_method, register_method
from expunge.models import Architecture, load_trained, save_trained
from expunge.training import Recipe, Runtime, train

RECIPE = Recipe(name="short", epochs=2, batch_size=48, learning_rate=0.1)


@pytest.fixture(scope="module")
def network(digits: Records) -> Architecture:
    return Architecture("mlp", {"widths": (8,)}, digits.input_shape, digits.classes)


@pytest.fixture
def class_means(digits: Records) -> Iterator[type[Method]]:
    """A classifier by class means: training stores sums and counts, from which forgetting subtracts exactly.

    The network is one linear layer, logit_k = <m_k, x> - |m_k|^2 / 2, which is the nearest class mean.
    """

    @register_method("class-means", guarantee="exact", citation="tests", trains=True)
    @dataclasses.dataclass(frozen=True)
    class ClassMeans(Method):
        """Class means."""

        def fit(
            self, records: Records, split: Split, architecture: Architecture, *, recipe: Any, context: Context
        ) -> Trained:
            untrained = super().fit(
                records, split, architecture, recipe=dataclasses.replace(recipe, epochs=1), context=context
            )
            sums = self.sum_up(records, records.rows(split.train))
            provenance = untrained.provenance.add_history("class means")
            return write(dataclasses.replace(untrained, state={"class_sums": sums}, provenance=provenance))

        def sum_up(self, records: Records, rows: Any) -> dict[str, torch.Tensor]:
            x = torch.from_numpy(records.features[rows].reshape(len(rows), -1)).double()  # integers: sums are exact
            chosen = torch.nn.functional.one_hot(torch.from_numpy(records.labels[rows]), records.classes).double()
            return {"sums": chosen.T @ x, "counts": chosen.sum(0)}

        def check_state(self, trained: Trained) -> None:
            if "class_sums" not in trained.state:
                raise MethodError("the model was not trained by class-means", where="state class_sums")

        def unlearn(self, task: Task) -> Trained:
            gone = self.sum_up(task.context.records, task.forget_rows)
            task.forward_records += len(task.forget_rows)
            old = task.trained.state["class_sums"]
            task.state["class_sums"] = {name: old[name] - gone[name] for name in old}
            task.recomputed.add("class_sums")
            return write(task.result())

    def write(trained: Trained) -> Trained:
        sums = trained.state["class_sums"]
        means = sums["sums"] / sums["counts"].clamp(min=1)[:, None] / 255
        linear: Any = trained.model.get_submodule("classifier")
        with torch.no_grad():
            linear.weight.copy_(means)
            linear.bias.copy_(-0.5 * means.square().sum(1))
        return trained

    yield ClassMeans
    METHODS.remove("class-means")


def test_the_default_is_plain_training(
    digits: Records, digits_split: Split, network: Architecture, cpu: Runtime
) -> None:
    context = Context(digits, cpu, seed=4)
    found = get_method("FT").fit(digits, digits_split, network, recipe=RECIPE, context=context)
    expected = train(digits, digits_split, network, recipe=RECIPE, seed=4, runtime=cpu)
    assert found.hash == expected.hash
    assert found.provenance.seeds == expected.provenance.seeds
    assert METHODS.describe("FT").facts.get("trains") is None


def test_what_training_stored_is_used_and_saved(
    class_means: type[Method],
    digits: Records,
    digits_split: Split,
    request_20: ForgetRequest,
    cpu: Runtime,
    tmp_path: Path,
) -> None:
    """Forgetting equals training without the records, bit for bit, also after saving and loading."""
    context, method = Context(digits, cpu, seed=4), get_method("class-means")
    linear = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    assert METHODS.describe("class-means").facts["trains"] is True
    original = method.fit(digits, digits_split, linear, recipe=RECIPE, context=context)
    save_trained(original, tmp_path / "original")
    loaded = load_trained(tmp_path / "original")
    outcome = contract.check(method, loaded, request_20, context, tmp_path, seeded=False)
    remaining = dataclasses.replace(digits_split, retain=outcome.trained.split.retain)
    retrained = method.fit(digits, remaining, linear, recipe=RECIPE, context=context)
    assert outcome.trained.hash == retrained.hash != original.hash
    assert outcome.guarantee == "exact"
    assert outcome.rewrote == ("weights", "class_sums")
    assert outcome.to_json()["state"]["meaning"]["class_sums"] == "state that a method defines"
    rows = digits.rows(digits_split.test)
    x = torch.from_numpy(digits.features[rows]).float() / 255
    assert float((outcome.trained.model.eval()(x).argmax(1).numpy() == digits.labels[rows]).mean()) > 0.7


def test_a_model_that_was_trained_otherwise_is_refused(
    class_means: type[Method], mlp: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime
) -> None:
    with pytest.raises(MethodError, match="was not trained by class-means"):
        get_method("class-means").forget(mlp, request_20, Context(digits, cpu))


def test_a_fit_needs_its_fact() -> None:
    @dataclasses.dataclass(frozen=True)
    class Silent(Method):
        def fit(self, *arguments: Any, **more: Any) -> Trained:
            raise NotImplementedError

        def unlearn(self, task: Task) -> None: ...

    with pytest.raises(MethodError, match="needs trains=True"):
        register_method("silent", guarantee="empirical", citation="tests")(Silent)
    assert "silent" not in METHODS
