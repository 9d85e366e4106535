"""Rules of un-pruning: the options that each uses, rules of others, and what the outcome says around other methods."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError, MethodError, TrustError
from expunge.core.registry import REGISTRIES, UNPRUNING_RULES
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.core.trust import trusting
from expunge.data.records import Records
from expunge.experiments import load_plan
from expunge.methods import Context, Method, get_method, method_class
from expunge.methods.unprune import GrowthRule, get_rule, register_rule, rule_names
from expunge.sparsity import Pruning, prune
from expunge.sparsity.schedules.registry import get_schedule
from expunge.training import Runtime

PLANS = sorted((Path(__file__).parents[3] / "plans").glob("*.yaml"))
#: A value other than the default for every option that some rule does not use.
OTHER: dict[str, Any] = {
    "growth": 0.3, "growth_of": "all", "rounds": 2, "reprune": "each", "reinitialise": "grown", "initial": "random",
    "initial_hash": "0" * 64, "final_epochs": 1, "final_learning_rate": 0.5, "re_estimate": 0, "score_records": 7,
    "curvature": "none", "curvature_steps": 3, "prefix_epochs": 3, "prefix": "recomputed", "scale": 0.5,
    "replay_weights": "mixed",
}  # fmt: skip
#: The options that have an effect with a rule, besides the method and its options.
COMMON = {"rounds", "initial", "initial_hash", "final_epochs", "final_learning_rate", "score_records"}
GROWING = COMMON | {"growth", "growth_of", "reprune", "reinitialise", "re_estimate"}
USED = {
    "magnitude": GROWING,
    "gradient": GROWING,
    "random": GROWING,
    "dense": GROWING - {"growth", "growth_of"},
    "influence": COMMON | {"curvature", "curvature_steps"},
    "replay": {"prefix_epochs", "prefix", "scale", "replay_weights", "re_estimate", "score_records"},
    "unchanged": set(),
}
RULES = [name for name in rule_names() if name in USED]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with UNPRUNING_RULES.temporary():
        yield
    sys.modules.pop("rule_of_another", None)


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("option", OTHER)
def test_options_without_effect_are_refused(rule: str, option: str) -> None:
    options = {"rule": rule, option: OTHER[option]}
    split = method_class("Un-prune").drop_unused({**options, "method": "GA"})
    if option in USED[rule]:
        assert getattr(get_method("Un-prune", **options), option) == OTHER[option]
        assert split == ({**options, "method": "GA"}, {})
    else:
        with pytest.raises(MethodError, match=rf"Un-prune\.{option}: the rule {rule} does not use {option}"):
            get_method("Un-prune", **options)
        assert split == ({"rule": rule, "method": "GA"}, {option: OTHER[option]})
        assert get_method("Un-prune", **split[0]).rule == rule


def test_the_facts_are_those_of_the_source() -> None:
    """Read without importing; and an option that a rule does not use has no effect on its outcome (below)."""
    assert set(RULES) == set(USED)
    for name in rule_names():
        uses = set(UNPRUNING_RULES.describe(name).facts["uses"])
        assert uses == USED.get(name, uses) == set(get_rule(name).uses)
        assert len(UNPRUNING_RULES.describe(name).summary) > 20
    assert REGISTRIES["unprune_rules"] is UNPRUNING_RULES


@pytest.mark.parametrize("rule", ["dense", "influence"])
def test_unused_options_have_no_effect(
    rule: str, dense: Trained, digits: Records, request_20: ForgetRequest, context: Context, cpu: Runtime
) -> None:
    """The check is switched off: the result is the same with another value."""
    pruning = Pruning(sparsity=0.5, layers=("conv", "linear"), schedule="one-shot", keep_weights=True)
    trained = prune(dense, pruning, Context(digits, cpu))
    method = get_method("Un-prune", rule=rule, method_options={"epochs": 1})
    expected = method.forget(trained, request_20, context).trained
    for option in sorted(set(OTHER) - USED[rule]):
        changed = get_method("Un-prune", rule=rule, method_options={"epochs": 1})
        object.__setattr__(changed, option, OTHER[option])
        found = changed.forget(trained, request_20, context).trained
        assert (found.hash, found.mask and found.mask.hash()) == (expected.hash, expected.mask and expected.mask.hash())


def test_a_written_outcome_can_be_read_again() -> None:
    """All options, those without effect at their defaults, are accepted."""
    for rule in rule_names():
        method: Any = get_method("Un-prune", rule=rule)
        assert get_method("Un-prune", **dataclasses.asdict(method)) == method


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_cells_of_plans_use_what_is_left(path: Path) -> None:
    """Every committed plan loads; what a cell drops is only what its rule does not use."""
    for cell in load_plan(path).cells:
        section = cell.config.method
        if section is None:  # a cell that only measures what masks leak
            continue
        used, dropped = method_class(section.name).drop_unused(section.options)
        assert isinstance(get_method(section.name, **used), Method)
        if section.name == "Un-prune":
            assert set(dropped) == set(section.options) - USED[used.get("rule", "magnitude")] - {
                "rule", "method", "method_options"
            }  # fmt: skip
        else:
            assert dropped == {}


def test_unknown_rules() -> None:
    with pytest.raises(MethodError, match="did you mean 'gradient'"):
        get_method("Un-prune", rule="gradients")
    assert method_class("Un-prune").drop_unused({"rule": "gradients", "growth": 1}) == (
        {"rule": "gradients", "growth": 1},
        {},
    )
    with pytest.raises(ConfigError, match="registered already"):

        @register_rule("Random", uses=())
        class Other(GrowthRule):
            def score(self, state: Any, values: Any) -> Any: ...

    with pytest.raises(MethodError, match="no option 'grow'"):
        register_rule("other", uses=("grow",))
    with pytest.raises(MethodError, match="does not derive from UnpruneRule"):
        register_rule("other", uses=())(dict)


# ---- rules of others


RULE = '''
"""A rule of another package."""

from expunge.methods.unprune import GrowthRule, register_rule


@register_rule("smallest", uses=("growth", "rounds", "score_records"))
class Smallest(GrowthRule):
    """Regrow the smallest initial values."""

    def score(self, state, values):
        """See `GrowthRule.score`."""
        return {name: -tensor.abs() for name, tensor in values.items()}
'''


def test_a_rule_of_another_package(
    sparse: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rule_of_another.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    with trusting(()), pytest.raises((TrustError, MethodError)):
        get_method("Un-prune", rule="rule_of_another:Smallest")
    assert "rule_of_another" not in sys.modules
    options = {"method": "FT", "method_options": {"epochs": 1}, "growth": 0.1}
    with trusting(("rule_of_another",)):
        method = get_method("Un-prune", rule="rule_of_another:Smallest", **options)
        with pytest.raises(MethodError, match="does not use re_estimate"):
            get_method("Un-prune", rule="rule_of_another:Smallest", re_estimate=0)
        outcome = method.forget(sparse, request_20, context)
    assert outcome.trained.mask is not None
    assert sparse.mask is not None
    assert outcome.trained.mask.kept_count == sparse.mask.kept_count
    assert outcome.trained.mask.provenance.details["unpruned"]["rule"] == "rule_of_another:Smallest"
    magnitude = get_method("Un-prune", **options).forget(sparse, request_20, context)
    assert magnitude.trained.hash != outcome.trained.hash
    by_name = get_method("Un-prune", rule="smallest", **options).forget(sparse, request_20, context)
    assert by_name.trained.hash == outcome.trained.hash


# ---- the provenance of the result


@pytest.mark.parametrize("rule", ["magnitude", "unchanged"])
def test_the_provenance_is_that_of_the_inner_method(
    rule: str, digits: Records, digits_split: Any, request_20: ForgetRequest, context: Context, cpu: Runtime
) -> None:
    """Around Retrain, the recorded normalisation is that of the network, measured on D_r; one line of history."""
    from expunge.models import architecture
    from expunge.training import Recipe, train

    network = architecture("mlp", digits, digits_split, normalise="training", widths=(16,))
    recipe = Recipe(epochs=2, batch_size=48, learning_rate=0.1)
    original = train(digits, digits_split, network, recipe=recipe, seed=5, runtime=cpu)
    pruning = Pruning(sparsity=0.5, layers=("linear",), schedule="one-shot")
    trained = prune(original, pruning, Context(digits, cpu))
    outcome = get_method("Un-prune", rule=rule, method="Retrain").forget(trained, request_20, context)
    recorded = outcome.trained.provenance.architecture["normalisation"]
    buffers = outcome.trained.model.state_dict()
    assert recorded["mean"] == pytest.approx(buffers["normalise.mean"].flatten().tolist())
    assert recorded["mean"] != trained.provenance.architecture["normalisation"]["mean"]
    assert "normalisation" in outcome.rewrote
    assert len(outcome.trained.provenance.history) == len(trained.provenance.history) + 1


@pytest.mark.parametrize(("reinitialise", "same"), [("pruned", True), ("grown", False)])
def test_the_values_of_the_second_round(
    reinitialise: str, same: bool, sparse: Trained, request_20: ForgetRequest, context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`pruned`: the initial values again; `grown`: the last values of the weights that were regrown."""
    from expunge.methods.unprune import rule

    seen: list[Any] = []
    regrow = rule.regrow

    def watched(model: Any, before: Any, after: Any, values: Any) -> Any:
        seen.append(values)
        return regrow(model, before, after, values)

    monkeypatch.setattr(rule, "regrow", watched)
    options = {"rule": "dense", "rounds": 2, "reprune": "each", "method_options": {"epochs": 1, "batch_size": 64}}
    get_method("Un-prune", reinitialise=reinitialise, **options).forget(sparse, request_20, context)
    first, second = seen
    assert all(bool((first[name] == second[name]).all()) for name in first) is same


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian", "none", "method"])
@pytest.mark.parametrize("rule", ["influence", "magnitude"])
def test_second_derivatives_are_needed_where_the_weights_are_corrected(rule: str, curvature: str) -> None:
    """Not where a mask made at initialisation is scored again. Without a schedule the mask is from elsewhere."""
    method = get_method("Un-prune", rule=rule, **({"curvature": curvature} if rule == "influence" else {}))
    needed = curvature if rule == "influence" and curvature in ("gauss-newton", "hessian") else None
    assert method.needed_curvature(get_schedule("at-init")) is None
    assert method.needed_curvature(get_schedule("one-shot")) == needed
    assert method.needed_curvature(None) == needed
