"""A method's own mask beside the pruning mask: what may not move keeps its bits, under momentum, decay and hooks."""

from __future__ import annotations

import dataclasses
from typing import Any

import plain_training as plain
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.core.errors import MethodError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods import Context, FineTuning, get_method, method_names
from expunge.methods.composition.restriction import find_chosen, keep_largest
from expunge.methods.registry import method_class
from expunge.training import MaskKeeper, Runtime
from expunge.training.masked import Restriction, ValueKeeper

#: Methods that need a whole class, or change weights by more than their own steps.
APART = ("Boundary Expand", "UNSIR", "Replay", "EU-k", "CF-k")
GRADIENT = [n for n in method_names() if issubclass(method_class(n), FineTuning) and n not in APART]
SMALL = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.1}
MORE: dict[str, dict[str, Any]] = {
    "MSG": {"layers": ("conv", "linear")},
    "MSA": {"re_estimate": 0},
    "SCRUB": {"max_epochs": 1},
    "JiT": {"draws": 2},
    "PBU": {"momentum": 0.0},
    "L2UL": {"examples": 1, "attack_steps": 2},
}


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


def make(name: str, **options: Any) -> Any:
    fields = {field.name for field in dataclasses.fields(method_class(name))}
    return get_method(name, **{k: v for k, v in {**SMALL, **MORE.get(name, {}), **options}.items() if k in fields})


def bits(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trained.model.state_dict().items()}


def test_all_gradient_methods_are_tested() -> None:
    assert {"FT", "GA", "RL", "l1-sparse", "NegGrad+", "SalUn", "SCRUB", "Bad Teacher", "DELETE", "MSG"} <= set(
        GRADIENT
    )


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_layers_outside_keep_their_bits(
    name: str, model: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context
) -> None:
    """Weights and running statistics of all layers but the named ones; the named ones change."""
    trained = request.getfixturevalue(model)
    only = ("blocks.1", "classifier.bias")
    after = bits(make(name, only=only).forget(trained, request_20, context).trained)
    changed = {key for key, tensor in bits(trained).items() if not torch.equal(tensor, after[key])}
    inside = {key for key in after if key.startswith("blocks.1.") or key == "classifier.bias"}
    assert changed <= inside
    assert {"blocks.1.0.weight", "classifier.bias"} <= changed
    free = bits(make(name).forget(trained, request_20, context).trained)
    outside = {key for key in after if key not in inside and not torch.equal(free[key], bits(trained)[key])}
    assert {"blocks.0.0.weight", "classifier.weight"} <= outside, "without the option, they change"


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("source", ["gradient", "random"])
def test_a_saliency_mask_holds_the_other_weights(
    name: str, source: str, sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """At most the fraction of the kept weights changes, and pruned weights stay 0: two masks."""
    outcome = make(name, saliency=0.3, saliency_source=source).forget(sparse, request_20, context)
    before, after = bits(sparse), bits(outcome.trained)
    names = dict(sparse.model.named_parameters())
    assert sparse.mask is not None
    total = sum(p.numel() for p in names.values()) - sparse.mask.total + sparse.mask.kept_count
    changed = sum(int((before[key] != after[key]).sum()) for key in names)
    assert 0.15 * total < changed <= round(0.3 * total)
    assert outcome.trained.mask is not None
    assert outcome.trained.mask.count_violations(outcome.trained.model) == {}


def test_a_saliency_mask_within_some_layers(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    outcome = make("FT", saliency=0.5, only=("classifier",)).forget(dense, request_20, context)
    before, after = bits(dense), bits(outcome.trained)
    changed = {key: int((before[key] != after[key]).sum()) for key in before}
    assert {key for key, count in changed.items() if count} <= {"classifier.weight", "classifier.bias"}
    assert sum(changed.values()) == round(0.5 * 170)


def test_momentum_and_decay_alone_would_move_them(dense: Trained, digits: Records, request_20: ForgetRequest) -> None:
    """Negative control: setting gradients to 0 is not enough with weight decay."""
    layer = plain.copy_of(dense).classifier
    before = layer.weight.detach().clone()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    layer(torch.ones(2, layer.in_features)).sum().backward()
    layer.weight.grad.zero_()
    optimiser.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("make_optimiser", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_the_keeper_holds_values_with_any_optimiser(make_optimiser: Any) -> None:
    layer = nn.Linear(6, 4)
    generator = torch.Generator().manual_seed(0)
    movable = torch.rand(4, 6, generator=generator) > 0.5
    kept = torch.rand(4, 6, generator=generator) > 0.3
    mask = Mask({"weight": kept}, MaskProvenance("example"))
    masked, keeper = MaskKeeper(layer, mask), ValueKeeper(layer, Restriction({"weight": movable}))
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimiser = make_optimiser(layer.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(5):
        optimiser.zero_grad()
        layer(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        keeper.before_step()
        masked.before_step()
        optimiser.step()
        keeper.after_step()
        masked.after_step()
    changed = layer.weight != before
    assert torch.equal(changed, movable & kept)
    assert torch.equal(layer.weight[~kept], torch.zeros(int((~kept).sum())))
    assert (layer.bias != bias).all()


@pytest.mark.parametrize("name", ["FT", "CF-k"])
def test_a_restricted_layer_is_trained_as_if_the_others_were_constants(
    name: str, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context
) -> None:
    """Training of the classifier alone is multinomial logistic regression on fixed features."""
    gone = set(request_20.record_ids.tolist())
    retain = [i for i in dense.split.retain.tolist() if i not in gone]
    model = plain.copy_of(dense).eval()
    layer, seed = nn.Linear(16, 10), plain.method_seed(1, name)
    layer.load_state_dict(model.classifier.state_dict())
    optimiser = plain.sgd(layer, 0.05)
    for epoch in range(2):
        for x, y in plain.batches_of(digits, retain, 32, seed, epoch):
            with torch.no_grad():
                features = model.blocks(model.normalise(x)).mean(dim=(2, 3))
            plain.step(layer, optimiser, F.cross_entropy(layer(features), y), {})
    options = {"FT": {"only": ("classifier",)}, "CF-k": {}}[name]
    outcome = get_method(name, epochs=2, learning_rate=0.05, batch_size=32, **options).forget(
        dense, request_20, context
    )
    found = outcome.trained.model.classifier
    torch.testing.assert_close(found.weight, layer.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.bias, layer.bias, rtol=0, atol=1e-6)


def test_running_statistics_follow_where_a_parameter_of_their_layer_is_named(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """`only` may name a parameter instead of a layer: the statistics beside it follow, those of other layers do not."""
    outcome = get_method("FT", epochs=1, batch_size=32, only=("blocks.1.1.bias",)).forget(dense, request_20, context)
    before, after = bits(dense), bits(outcome.trained)
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    statistics = {f"blocks.1.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"blocks.1.1.bias", *statistics}


# ---- values and refusals


def test_ties_go_to_the_first() -> None:
    ones = torch.ones(2, 3)
    found = keep_largest({"a": ones, "b": ones}, {"a": ones.bool(), "b": ones.bool()}, 0.5)
    assert found["a"].all()
    assert not found["b"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ("clasifier",)}, "called 'clasifier'"),
        ({"only": ("blocks.0.2",)}, "has no parameters"),
    ],
)
def test_unknown_layers(
    options: dict[str, Any], message: str, dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    for name in ("FT", "SalUn", "CF-k"):
        with pytest.raises(MethodError, match=message):
            get_method(name, **options).forget(dense, request_20, context)
        with pytest.raises(MethodError, match=message):
            get_method(name, **options).check_state(dense)  # `expunge check` calls it before anything is computed


def test_the_nearest_layer_is_named(dense: Trained) -> None:
    with pytest.raises(MethodError, match="did you mean 'classifier'"):
        find_chosen(dense.model, ["clasifier"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("saliency", 0.0),
        ("saliency", 1.5),
        ("saliency", float("nan")),
        ("saliency_source", "gradients"),
        ("stop", "test"),
        ("only", ("",)),
        ("only", (3,)),
    ],
)
def test_values_out_of_range(option: str, value: Any) -> None:
    for name in ("FT", "GA", "RL", "l1-sparse", "SalUn", "SCRUB"):
        with pytest.raises(MethodError, match=option):
            get_method(name, **{option: value})


def test_nothing_that_may_move_is_refused(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    with pytest.raises(MethodError, match="no weight may move"):
        get_method("FT", saliency=1e-6).forget(sparse, request_20, context)
    frozen = dataclasses.replace(sparse, model=plain.copy_of(sparse))
    frozen.model.classifier.requires_grad_(False)
    with pytest.raises(MethodError, match="no weight may move"):
        get_method("FT", only=("classifier",)).forget(frozen, request_20, context)


def test_without_the_options_nothing_changes(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    """A mask that lets everything move gives the same bits as no mask."""
    for name in ("FT", "GA", "RL", "l1-sparse"):
        free = get_method(name, epochs=2, batch_size=32).forget(dense, request_20, context)
        named = get_method(name, epochs=2, batch_size=32, only=("blocks", "classifier")).forget(
            dense, request_20, context
        )
        assert named.trained.hash == free.trained.hash
