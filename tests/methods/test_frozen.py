"""Frozen parameters: no method changes them, retraining keeps them, and a pretrained start is declared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from half_frozen import FROZEN, RECIPE, frozen_kept, network, register, values
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.registry import METHODS, MODELS
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.methods import Context, Method, Task, get_method, register_method
from expunge.models import Architecture, load_trained, save_trained
from expunge.sparsity import Pruning, prune
from expunge.training import Runtime, train


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with MODELS.temporary(), METHODS.temporary():
        register()
        yield


@pytest.fixture
def half(digits: Records, digits_split: Split, cpu: Runtime) -> Trained:
    return train(digits, digits_split, network(digits), recipe=RECIPE, seed=1, runtime=cpu)


@pytest.fixture
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FT", {"epochs": 1}), ("GA", {"epochs": 1}), ("RL", {"epochs": 1}), ("l1-sparse", {"epochs": 1}),
        ("l1-sparse", {"epochs": 1, "step": "proximal", "gamma": 0.5}),
        ("Un-prune", {"method": "l1-sparse", "method_options": {"epochs": 1, "step": "proximal", "gamma": 0.5}}),
        ("Retrain", {}), ("Retrain", {"seeds": "order"}), ("Retrain", {"seeds": "new"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)  # fmt: skip
def test_no_method_changes_a_frozen_parameter(
    name: str, options: dict[str, object], half: Trained, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method(name, **options).forget(half, request_20, context)
    assert frozen_kept(half, outcome.trained)
    assert not torch.equal(values(half)["head.weight"], values(outcome.trained)["head.weight"])
    assert outcome.extents["weights"].unchanged_names == ("backbone.weight", "backbone.bias")
    mask = outcome.trained.mask
    assert mask is None or not FROZEN & set(mask.kept)


def test_a_method_that_changes_one_is_refused(half: Trained, request_20: ForgetRequest, context: Context) -> None:
    @register_method("shake", guarantee="empirical", citation="tests")
    @dataclasses.dataclass(frozen=True)
    class Shake(Method):
        """Change all weights."""

        def unlearn(self, task: Task) -> None:
            with torch.no_grad():
                for parameter in task.model.parameters():
                    parameter.add_(0.1)

    with pytest.raises(MethodError, match=r"backbone\.\w+: the method changed a frozen parameter"):
        Shake().forget(half, request_20, context)


def test_running_statistics_that_are_frozen_parameters_may_move(
    half: Trained, request_20: ForgetRequest, context: Context
) -> None:
    class Level(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)
            self.level = nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                with torch.no_grad():
                    self.level.lerp_(x.mean().reshape(1), 0.1)
            return self.head(x.flatten(1) - self.level)

    outcome = get_method("FT", epochs=1).forget(dataclasses.replace(half, model=Level()), request_20, context)
    assert "buffers" in outcome.rewrote


# ---- masks


@pytest.fixture
def pruned(half: Trained, context: Context) -> Trained:
    """Both layers are pruned."""
    return prune(half, Pruning(sparsity=0.5, layers=("linear",)), context)


@pytest.mark.parametrize("options", [{"mask": "same"}, {"mask": "rewind"}, {"mask": "re-prune"}, {"seeds": "new"}])
def test_retraining_a_pruned_model_keeps_what_both_masks_keep(
    options: dict[str, str], pruned: Trained, request_20: ForgetRequest, context: Context
) -> None:
    outcome = get_method("Retrain", **options).forget(pruned, request_20, context)
    old, new = values(pruned), values(outcome.trained)
    assert pruned.mask is not None
    assert outcome.trained.mask is not None
    both = pruned.mask.kept["backbone.weight"] & outcome.trained.mask.kept["backbone.weight"]
    assert both.any()
    assert torch.equal(old["backbone.weight"][both], new["backbone.weight"][both])
    assert torch.equal(old["backbone.bias"], new["backbone.bias"])


def test_un_pruning_a_frozen_layer_is_refused(pruned: Trained, request_20: ForgetRequest, context: Context) -> None:
    method = get_method("Un-prune", method="FT", method_options={"epochs": 1})
    with pytest.raises(MethodError, match="the mask prunes a frozen parameter"):
        method.check_state(pruned)
    assert pruned.mask is not None
    planned = dataclasses.replace(pruned, mask=Mask({}, pruned.mask.provenance))  # as in `check`, before pruning
    with pytest.raises(MethodError, match="the mask prunes a frozen parameter"):
        method.check_state(planned)
    with pytest.raises(MethodError, match="the mask prunes a frozen parameter"):
        method.forget(pruned, request_20, context)
    plain = get_method("Un-prune", method="FT", method_options={"epochs": 1}, rule="unchanged")
    assert frozen_kept(pruned, plain.forget(pruned, request_20, context).trained)


# ---- how frozen parameters are known


def test_frozen_parameters_are_saved(half: Trained, dense: Trained, tmp_path: Path) -> None:
    dense_copy = dataclasses.replace(dense, model=Architecture.from_json(dense.provenance.architecture).build(0))
    first = next(name for name, _ in dense_copy.model.named_parameters())
    dense_copy.model.get_parameter(first).requires_grad_(False)
    for number, (trained, expected) in enumerate(((half, FROZEN), (dense_copy, {first}), (dense, set()))):
        save_trained(trained, tmp_path / str(number))
        model = load_trained(tmp_path / str(number)).model
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == expected


def test_a_layer_that_was_frozen_after_training_is_retrained(
    digits: Records, digits_split: Split, request_20: ForgetRequest, context: Context, cpu: Runtime
) -> None:
    original = train(digits, digits_split, network(digits, frozen=False), recipe=RECIPE, seed=1, runtime=cpu)
    plain = get_method("Retrain").forget(original, request_20, context)
    original.model.backbone.requires_grad_(False)
    outcome = get_method("Retrain").forget(original, request_20, context)
    assert (outcome.guarantee, outcome.trained.hash) == ("exact", plain.trained.hash)
    assert frozen_kept(original, get_method("FT", epochs=1).forget(original, request_20, context).trained)


def test_a_mask_of_a_frozen_layer_stays(half: Trained, request_20: ForgetRequest, context: Context) -> None:
    kept = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = Mask({"backbone.weight": kept}, MaskProvenance("imported"))
    sparse = dataclasses.replace(half, model=network_copy(half), mask=mask)
    mask.apply_(sparse.model)
    outcome = get_method("l1-sparse", epochs=1, step="proximal", gamma=0.5).forget(sparse, request_20, context)
    assert outcome.trained.mask is not None
    assert torch.equal(outcome.trained.mask.kept["backbone.weight"], kept)
    assert frozen_kept(sparse, outcome.trained)


def network_copy(trained: Trained) -> nn.Module:
    return clone_model(trained.model)
