"""Un-pruning and its references: identities, exact cases, the weights that each rule regrows, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from expunge.core.errors import MaskError, MethodError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import plain_state
from expunge.evaluation.error_bound import weight_distance
from expunge.evaluation.topology import iou
from expunge.methods import Context, get_method
from expunge.methods.registry import method_class
from expunge.methods.task import Task
from expunge.methods.unprune import get_rule, rule_names
from expunge.methods.unprune.method import Unprune
from expunge.methods.unprune.run import Unpruning
from expunge.models import Architecture, architecture
from expunge.sparsity import Pruning, prune
from expunge.training import Recipe, train

IDENTITY = {"method": "FT", "method_options": {"epochs": 0}}
TWO_EPOCHS = {"method": "FT", "method_options": {"epochs": 2, "batch_size": 48}}


def begin(trained, request, context, **options):
    """The state of a run of un-pruning before its first round."""
    method = Unprune(**options)
    return Unpruning(method, Task(trained, request, context, name="Un-prune", options={}, guarantee="empirical"))


@pytest.fixture(scope="module")
def network(digits, digits_split, cpu):
    """A perceptron trained for eight epochs."""
    blueprint = Architecture("mlp", {"widths": (16, 12)}, digits.input_shape, digits.classes)
    recipe = Recipe(name="test", epochs=8, batch_size=48, learning_rate=0.1, lr_schedule="cosine", rewind=0.25)
    return train(digits, digits_split, blueprint, recipe=recipe, seed=5, runtime=cpu)


@pytest.fixture(scope="module")
def context(digits, cpu):
    return Context(digits, cpu, seed=1)


@pytest.fixture(scope="module")
def pruned(network, digits, cpu):
    """Return a function that prunes the perceptron and caches the result."""
    made = {}

    def make(**how):
        key = tuple(sorted(how.items()))
        if key not in made:
            settings = {"sparsity": 0.7, "layers": ("linear",), **how}
            made[key] = prune(network, Pruning(**settings), Context(digits, cpu))
        return made[key]

    return make


PRUNINGS = [
    {},
    {"scope": "layer"},
    {"granularity": "filter", "sparsity": 0.5, "criterion": "filter-l2", "scope": "layer"},
    {"granularity": "2:4", "sparsity": None},
    {"criterion": "SNIP", "schedule": "at-init"},
]


@pytest.mark.parametrize("how", PRUNINGS, ids=lambda how: "-".join(map(str, how.values())) or "global")
def test_identity_method_growth_zero_original_weights_gives_the_original_mask(pruned, how, request_20, context):
    trained = pruned(**how)
    before = {k: v.clone() for k, v in plain_state(trained.model).items()}
    for rounds, reprune in ((1, "once"), (3, "each")):
        method = get_method("Un-prune", growth=0.0, rounds=rounds, reprune=reprune, **IDENTITY)
        outcome = method.forget(trained, request_20, context)
        assert outcome.trained.mask.hash() == trained.mask.hash()
        assert outcome.trained.hash == trained.hash
    assert all(torch.equal(v, before[k]) for k, v in plain_state(trained.model).items())


@pytest.mark.parametrize("how", PRUNINGS[:4], ids=lambda how: "-".join(map(str, how.values())) or "global")
@pytest.mark.parametrize("rule", [rule for rule in rule_names() if rule not in ("influence", "unchanged")])
def test_every_rule_preserves_the_sparsity_the_granularity_and_the_zeros(pruned, how, rule, request_20, context):
    trained = pruned(**how)
    options = {"rule": rule, "growth": 0.5, "rounds": 2, "reprune": "each", **TWO_EPOCHS}
    method = get_method("Un-prune", **method_class("Un-prune").drop_unused(options)[0])
    outcome = method.forget(trained, request_20, context)
    after = outcome.trained
    assert after.mask.kept_count == trained.mask.kept_count
    assert after.mask.count_violations(after.model) == {}
    assert after.mask.provenance.details["unpruned"]["rule"] == rule
    for field in ("criterion", "scope", "granularity", "layers", "schedule"):
        assert getattr(after.mask.provenance, field) == getattr(trained.mask.provenance, field)
    assert set(after.split.forget) == set(request_20.record_ids)
    assert ("mask" in outcome.rewrote) == (after.mask.hash() != trained.mask.hash())
    assert outcome.cost.trained_records >= 4 * len(after.split.retain)  # 2 rounds of 2 epochs
    assert "pruning_scores" not in after.state


@pytest.mark.parametrize("how", PRUNINGS[:4], ids=lambda how: "-".join(map(str, how.values())) or "global")
@pytest.mark.parametrize("curvature", ["gauss-newton", "method"])
def test_the_influence_rule_preserves_them_too(pruned, how, curvature, request_20, context):
    """For weights, filters and N:M patterns."""
    trained = pruned(**how, keep_weights=True)
    method = get_method("Un-prune", rule="influence", curvature=curvature, curvature_steps=3, **TWO_EPOCHS)
    outcome = method.forget(trained, request_20, context)
    after = outcome.trained
    assert after.mask.kept_count == trained.mask.kept_count
    assert after.mask.count_violations(after.model) == {}
    assert after.mask.provenance.details["unpruned"]["rule"] == "influence"
    assert after.mask.provenance.granularity == trained.mask.provenance.granularity
    assert ("mask" in outcome.rewrote) == (after.mask.hash() != trained.mask.hash())
    if curvature == "method" and not how:
        assert after.mask.hash() != trained.mask.hash()


def test_regrown_weights_are_the_largest_and_have_their_make_initial_values(pruned, request_20, context):
    """One round of the magnitude rule without unlearning, before the re-pruning, against brute force."""
    from expunge.methods.initial_weights import regrow
    from expunge.methods.unprune.growth import grow

    trained = pruned()
    state = begin(trained, request_20, context, growth=0.1, **IDENTITY)
    values = state.make_initial_values()
    start = dict(state.build_initial_network().named_parameters())
    assert all(torch.equal(values[name], start[name]) for name in values)
    grown = get_rule("magnitude").grow(state, values)
    pruned_weights = [
        (float(values[n].reshape(-1)[i].abs()), n, int(i))
        for n, kept in trained.mask.kept.items()
        for i in torch.nonzero(~kept.reshape(-1)).squeeze(1)
    ]
    expected = sorted(pruned_weights, reverse=True)[: int(np.ceil(0.1 * len(pruned_weights)))]
    found = {
        (n, int(i))
        for n, kept in grown.kept.items()
        for i in torch.nonzero((kept & ~trained.mask.kept[n]).reshape(-1)).squeeze(1)
    }
    assert found == {(n, i) for _, n, i in expected}
    model = regrow(trained.model, trained.mask, grown, values)
    for name, index in found:
        assert dict(model.named_parameters())[name].reshape(-1)[index] == values[name].reshape(-1)[index]
    all_regrown = grow(trained.mask, {n: v.abs() for n, v in values.items()}, 1.0, trained.model, (1, 8, 8))
    assert all_regrown.sparsity == 0


def test_growth_fractions():
    from expunge.core.mask import MaskProvenance
    from expunge.methods.unprune.growth import grown_fraction

    weights = Mask({"w": torch.arange(100).reshape(10, 10) < 20}, MaskProvenance("magnitude"))
    net = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 3))
    rows = {"0.weight": torch.ones(100, 4, dtype=torch.bool), "0.bias": torch.arange(100) < 20}
    rows["0.weight"][20:] = False
    channels = Mask(rows, MaskProvenance("filter-l2", layers=("linear",), granularity="filter"))
    for mask in (weights, channels):  # 20 of 100 are kept, weights or units
        assert grown_fraction(mask, 0.5, "pruned", net, (4,)) == 0.5
        assert grown_fraction(mask, 0.4, "all", net, (4,)) == pytest.approx(40 / 80)
        assert grown_fraction(mask, 0.4, "kept", net, (4,)) == pytest.approx(8 / 80)
        assert grown_fraction(mask, 1.0, "all", net, (4,)) == 1.0


@pytest.mark.parametrize("criterion", ["SNIP", "GraSP", "random"])
def test_masks_made_at_initialisation_are_un_pruned_exactly(pruned, criterion, request_20, context):
    """Their scores were computed at the initial weights: scoring again on D_r equals re-pruning, bit for bit."""
    trained = pruned(criterion=criterion, schedule="at-init")
    reference = get_method("Retrain", mask="re-prune").forget(trained, request_20, context)
    unlearned = get_method("Un-prune", rule="influence", **IDENTITY).forget(trained, request_20, context)
    assert unlearned.trained.mask.hash() == reference.trained.mask.hash()
    if criterion != "random":
        assert trained.mask.hash() != reference.trained.mask.hash()  # the mask depends on D_f


def test_measured_normalisation_statistics_do_not_leak_the_forgotten_records(
    digits, digits_split, request_20, context, cpu
):
    """All scores depend on the statistics; the exact mask needs those of D_r, as the retrained model has them."""
    network = architecture("mlp", digits, digits_split, normalise="training", widths=(16,))
    how = Recipe(epochs=2, batch_size=48, learning_rate=0.1)
    original = train(digits, digits_split, network, recipe=how, seed=5, runtime=cpu)
    settings = {"sparsity": 0.9, "layers": ("linear",), "criterion": "SNIP", "schedule": "at-init"}
    trained = prune(original, Pruning(**settings), Context(digits, cpu))
    rows = digits.rows(digits_split.retain)
    brightest = np.argsort(digits.features[rows].reshape(len(rows), -1).mean(1))[-140:]
    asked = ForgetRequest(digits_split.retain[brightest])
    reference = get_method("Retrain", mask="re-prune").forget(trained, asked, context)
    unlearned = get_method("Un-prune", rule="influence", **IDENTITY).forget(trained, asked, context)
    assert unlearned.trained.mask.hash() == reference.trained.mask.hash()
    assert unlearned.trained.mask.hash() != trained.mask.hash()
    assert "normalisation" in unlearned.carried  # the model still has its statistics, and reports it


def test_synflow_masks_do_not_change(pruned, request_20, context):
    trained = pruned(criterion="SynFlow", schedule="at-init")
    unlearned = get_method("Un-prune", rule="influence", **IDENTITY).forget(trained, request_20, context)
    assert unlearned.trained.mask.hash() == trained.mask.hash()


def test_influence_approximates_the_retrained_mask_of_a_logistic_regression(digits, digits_split, context, cpu):
    """Convex, and trained to the optimum: the corrected scores nearly give the mask of the retrained model, the
    original's scores do not."""
    blueprint = Architecture("mlp", {"widths": ()}, digits.input_shape, digits.classes)
    recipe = Recipe(
        name="long",
        epochs=300,
        batch_size=290,
        learning_rate=0.5,
        momentum=0.9,
        weight_decay=1e-2,
        lr_schedule="cosine",
    )
    original = train(digits, digits_split, blueprint, recipe=recipe, seed=5, runtime=cpu)
    sparse = prune(
        original,
        Pruning(sparsity=0.7, layers=("linear",), schedule="one-shot", keep_weights=True),
        Context(digits, cpu),
    )
    threes = digits.record_ids[digits.labels == 3]
    asked = ForgetRequest(np.intersect1d(threes, digits_split.retain))
    retrained = get_method("Retrain", mask="re-prune").forget(sparse, asked, context).trained
    overlap = {"original": iou(sparse.mask, retrained.mask)}
    for curvature in ("gauss-newton", "hessian", "none"):
        method = get_method("Un-prune", rule="influence", curvature=curvature, curvature_steps=60, **IDENTITY)
        overlap[curvature] = iou(method.forget(sparse, asked, context).trained.mask, retrained.mask)
    assert overlap["original"] < 0.85
    assert overlap["gauss-newton"] > overlap["original"] + 0.05
    assert overlap["hessian"] == pytest.approx(overlap["gauss-newton"], abs=0.03)  # the same matrix for linear logits


def test_references_of_retrain(pruned, network, digits, digits_split, request_20, context, cpu):
    trained = pruned()
    same = get_method("Retrain").forget(trained, request_20, context)
    rewound = get_method("Retrain", mask="rewind").forget(trained, request_20, context)
    repruned = get_method("Retrain", mask="re-prune").forget(trained, request_20, context)
    assert same.trained.mask.hash() == rewound.trained.mask.hash() == trained.mask.hash()
    assert (same.guarantee, rewound.guarantee, repruned.guarantee) == ("empirical", "empirical", "exact")
    assert "mask" in same.carried
    assert repruned.carried == ()
    # directly: training and pruning without D_f
    retain_only = dataclasses.replace(digits_split, retain=np.setdiff1d(digits_split.retain, request_20.record_ids))
    blueprint = Architecture.from_json(network.provenance.architecture)
    dense = train(digits, retain_only, blueprint, recipe=Recipe(**network.provenance.recipe), seed=5, runtime=cpu)
    direct = prune(dense, Pruning(sparsity=0.7, layers=("linear",)), Context(digits, cpu))
    assert repruned.trained.mask.hash() == direct.mask.hash()
    assert repruned.trained.hash == direct.hash
    assert repruned.trained.mask.hash() != trained.mask.hash()
    assert repruned.cost.trained_records == (8 + 6) * len(retain_only.retain)
    assert rewound.cost.trained_records == (2 + 6) * len(retain_only.retain)
    other = get_method("Retrain", mask="re-prune", seeds="new").forget(trained, request_20, context)
    assert other.trained.mask.hash() != repruned.trained.mask.hash()


def test_the_rewound_reference_is_near_the_original_for_one_record(pruned, context, digits_split):
    """Without one record, the rewound reference ends nearer to the original than training with the mask from the
    initial weights."""
    trained = pruned()
    one = ForgetRequest(digits_split.retain[:1])
    rewound = get_method("Retrain", mask="rewind").forget(trained, one, context).trained
    assert rewound.mask.hash() == trained.mask.hash()
    assert rewound.mask.count_violations(rewound.model) == {}
    from_initial = get_method("Retrain").forget(trained, one, context).trained
    near, far = (weight_distance(trained.model, other.model, trained.mask) for other in (rewound, from_initial))
    assert near < 0.8 * far


def test_cost_of_un_pruning_against_its_reference(pruned, request_20, context):
    trained = pruned()
    reference = get_method("Retrain", mask="re-prune").forget(trained, request_20, context)
    for rule in ("magnitude", "random", "dense", "gradient"):
        growth = {} if rule == "dense" else {"growth": 0.3}
        method = get_method("Un-prune", rule=rule, **growth, **TWO_EPOCHS)
        outcome = method.forget(trained, request_20, context)
        assert outcome.cost.passes <= 3.01
        assert outcome.cost.passes < reference.cost.passes / 4


def test_on_a_dense_model_only_the_inner_method_runs(network, request_20, context):
    alone = get_method("FT", epochs=1).forget(network, request_20, context)
    around = get_method("Un-prune", method_options={"epochs": 1}).forget(network, request_20, context)
    assert around.trained.hash == alone.trained.hash
    assert "dense" in around.trained.provenance.history[-1]


def test_empty_request_is_the_identity(pruned, context):
    trained = pruned()
    outcome = get_method("Un-prune").forget(trained, ForgetRequest(np.array([], dtype=str)), context)
    assert outcome.trained.hash == trained.hash
    assert outcome.cost.passes == 0


def test_invalid_options_and_missing_state_are_errors(pruned, request_20, context):
    trained = pruned()
    with pytest.raises(MethodError, match="did you mean 'magnitude'"):
        get_method("Un-prune", rule="magnitud")
    with pytest.raises(MethodError, match="its own inner method"):
        get_method("Un-prune", method="Un-prune")
    with pytest.raises(MethodError, match="no option 'epoch'"):
        get_method("Un-prune", method_options={"epoch": 3})
    with pytest.raises(MethodError, match="re-initialised to zero"):
        get_method("Un-prune", initial="zero")
    with pytest.raises(MethodError, match="out of range"):
        get_method("Un-prune", growth=1.5)
    with pytest.raises(MethodError, match="keep_weights=True"):
        get_method("Un-prune", rule="influence").forget(trained, request_20, context)
    with pytest.raises(MethodError, match="dense weights"):
        get_method("Un-prune", rule="influence").forget(pruned(schedule="imp"), request_20, context)
    with pytest.raises(MethodError, match="the schedule gradual ranked weights that were already sparse"):
        get_method("Un-prune", rule="influence").forget(pruned(schedule="gradual"), request_20, context)
    with pytest.raises(MethodError, match="hash"):
        get_method("Un-prune", initial_hash="0" * 64).forget(trained, request_20, context)
    lost = dataclasses.replace(trained, provenance=dataclasses.replace(trained.provenance, seeds={"order": 1}))
    with pytest.raises(MethodError, match="nor their seed"):
        get_method("Un-prune").forget(lost, request_20, context)
    unknown = Mask(trained.mask.kept, dataclasses.replace(trained.mask.provenance, criterion="unknown"))
    with pytest.raises(MaskError, match="does not record"):
        get_method("Un-prune").forget(dataclasses.replace(trained, mask=unknown), request_20, context)
    with pytest.raises(MethodError, match=r"Retrain\.mask"):
        get_method("Retrain", mask="keep")


def test_a_stored_copy_of_the_initial_weights_is_used(pruned, request_20, context):
    trained = pruned()
    blueprint = Architecture.from_json(trained.provenance.architecture)
    copy = {n: p.detach().clone() for n, p in blueprint.build(trained.provenance.seeds["initial"]).named_parameters()}
    seeds = {k: v for k, v in trained.provenance.seeds.items() if k != "initial"}
    provenance = dataclasses.replace(trained.provenance, seeds=seeds)
    stored = dataclasses.replace(trained, provenance=provenance, state={**trained.state, "initial_weights": copy})
    method = get_method("Un-prune", **TWO_EPOCHS)
    assert (
        method.forget(stored, request_20, context).trained.hash
        == method.forget(trained, request_20, context).trained.hash
    )
    wrong = {**copy, "hidden.0.weight": copy["hidden.0.weight"] + 1}
    with pytest.raises(MethodError, match="hash"):
        method.forget(dataclasses.replace(stored, state={"initial_weights": wrong}), request_20, context)


def test_the_inner_method_can_estimate_the_weights_without_the_forget_set(pruned, request_20, context):
    """curvature=method: the mask is that of pruning the unlearned dense model, and its cost is included."""
    from expunge.models import Architecture
    from expunge.sparsity import make_mask, rule_of

    trained = pruned(keep_weights=True)
    method = get_method("Un-prune", rule="influence", curvature="method", **TWO_EPOCHS)
    outcome = method.forget(trained, request_20, context)
    dense = Architecture.from_json(trained.provenance.architecture).build(0)
    dense.load_state_dict(trained.state["pruning_weights"])
    inner = get_method("FT", **TWO_EPOCHS["method_options"])
    unlearned = inner.forget(dataclasses.replace(trained, model=dense, mask=None, state={}), request_20, context)
    expected, _ = make_mask(unlearned.trained.model, rule_of(trained.mask))
    assert outcome.trained.mask.hash() == expected.hash()
    assert outcome.cost.trained_records == 2 * unlearned.cost.trained_records


def test_saved_and_loaded_models_can_be_un_pruned(pruned, request_20, context, tmp_path):
    """Saving preserves what un-pruning and its reference need: rule, seeds, hash, weights from before pruning."""
    from expunge.models import load_trained, save_trained

    trained = pruned(keep_weights=True)
    save_trained(trained, tmp_path / "sparse")
    loaded = load_trained(tmp_path / "sparse")
    for method in (get_method("Un-prune", rule="influence", **IDENTITY), get_method("Retrain", mask="re-prune")):
        before, after_loading = (method.forget(one, request_20, context).trained for one in (trained, loaded))
        assert before.mask.hash() == after_loading.mask.hash()
        assert before.hash == after_loading.hash
    after = get_method("Un-prune", **TWO_EPOCHS).forget(loaded, request_20, context).trained
    save_trained(after, tmp_path / "after")
    assert load_trained(tmp_path / "after").mask.provenance == after.mask.provenance
