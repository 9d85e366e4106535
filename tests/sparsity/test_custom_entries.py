"""Criteria, granularities, scopes and schedules that others write: facts, not names, decide what happens with them."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import ConfigError, MaskError, MethodError, TrustError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.registry import CRITERIA, GRANULARITIES, SCHEDULES, SCOPES
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.core.trust import gate, trusting
from expunge.data.records import Records
from expunge.experiments import check_names, load_config
from expunge.methods import get_method
from expunge.models import save_trained
from expunge.sparsity import (
    Pruning,
    get_criterion,
    get_granularity,
    prune,
    recorded_granularity,
    repeat_pruning,
    rule_of,
)
from expunge.sparsity.masks.dry_run import dry_run_rule
from expunge.sparsity.masks.recorded import competes_across_layers, permit_rule
from expunge.training import Context, Runtime
from expunge.workflow import check_run

SOURCE = Path(gate.__file__).parents[2]
MODULE = '''
from expunge.core.trained import clone_model
from expunge.sparsity import (
    Granularity, prunable_weights, register_criterion, register_granularity, register_schedule, register_scope
)
from expunge.sparsity.masks.allocation import Pool, allocate
from expunge.sparsity.schedules.run import copy_weights


@register_criterion("first-column", default_rounds=3, citation="an example")
def first_column(context):
    """|w|; the first column counts twice."""
    scores = {name: weight.detach().abs().clone() for name, weight in context.weights.items()}
    for score in scores.values():
        score[:, 0] *= 2
    return scores


@register_granularity("pairs", unit_name="pairs of weights")
class Pairs(Granularity):
    """Two consecutive weights along the input axis."""

    def select(self, ranking, sparsity, scope):
        self.check_criterion(ranking.criterion)
        weights, pools = ranking.context.weights, {}
        for name, weight in weights.items():
            pruned = None if ranking.within is None else ~ranking.within[name].reshape(-1, 2).all(1)
            pools[name] = Pool(ranking.scores[name].double().reshape(-1, 2).sum(1), 1.0, pruned)
        kept = allocate(scope, pools, sparsity)
        return {name: kept[name][:, None].repeat(1, 2).reshape(weight.shape) for name, weight in weights.items()}

    def count(self, kept, model, layers, input_shape):
        named = {name: kept[name].reshape(-1, 2).any(1) for name in prunable_weights(model, layers) if name in kept}
        return {name: (int((~pairs).sum()), pairs.numel()) for name, pairs in named.items()}

    def find_unstructured(self, kept):
        return [name for name, bits in kept.items() if (bits.reshape(-1, 2).any(1) != bits.reshape(-1, 2).all(1)).any()]


@register_scope("each", across_layers=False)
def each(pools, sparsity):
    """The same fraction of every layer."""
    return {name: allocate("layer", {name: pool}, sparsity)[name] for name, pool in pools.items()}


@register_schedule("rewind", starts_from="trained", scores="dense", rewinds=True, options={"extra": 1})
def rewind(run):
    """Rank, rewind, train."""
    (mask, scores), model = run.make_mask(run.trained.model), run.build_rewound_model()
    start, stop = run.find_epoch_range()
    run.train(model, mask=mask, start=start, stop=stop, order=run.context.seed, label="rewind")
    return run.finish(model, mask, scores, scored=copy_weights(run.trained.model))


@register_schedule("before", starts_from="initial", scores="initial")
def before(run):
    """Rank the initial weights, train."""
    model = run.build_initial_model()
    mask, scores = run.make_mask(model, batch_statistics=True)
    mask.apply_(model)
    run.train(model, mask=mask, order=run.order, label="before")
    return run.finish(model, mask, scores)


@register_schedule("twice", starts_from="trained", scores="sparse", trains=False)
def twice(run):
    """Prune half as much, then the rest."""
    first, _ = run.make_mask(run.trained.model, sparsity=run.sparsity / 2)
    mask, scores = run.make_mask(run.trained.model, within=first)
    model = clone_model(run.trained.model)
    mask.apply_(model)
    return run.finish(model, mask, scores)


@register_granularity("halves", unit_name="weights", counts_weights=True, fixed_sparsity=0.5, own_scope="row")
class Halves(Granularity):
    """The lower half of every row."""

    def select(self, ranking, sparsity, scope):
        halves = {}
        for name in ranking.context.weights:
            rows = ranking.scores[name]
            halves[name] = rows.argsort(dim=1, stable=True).argsort(dim=1) >= rows.shape[1] // 2
        return halves
'''
OWN: dict[str, Any] = {
    "layers": ("linear",), "criterion": "own_pruning:first_column", "granularity": "own_pruning:Pairs",
    "scope": "own_pruning:each", "sparsity": 0.5,
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module in the current directory; what it registers is forgotten afterwards."""
    (tmp_path / "own_pruning.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    agreed = dict(gate._AGREED)
    with contextlib.ExitStack() as stack:
        for registry in (CRITERIA, GRANULARITIES, SCOPES, SCHEDULES):
            stack.enter_context(registry.temporary())
        yield tmp_path
    sys.modules.pop("own_pruning", None)
    gate._AGREED.clear()
    gate._AGREED.update(agreed)


def pairs_are_whole(mask: Mask) -> bool:
    halves = [kept.reshape(-1, 2) for kept in mask.kept.values()]
    return all(torch.equal(pairs[:, 0], pairs[:, 1]) for pairs in halves)


def pruned(own: Path, mlp: Trained, digits: Records, cpu: Runtime, schedule: str, **more: Any) -> Trained:
    return prune(mlp, Pruning(**OWN, schedule=f"own_pruning:{schedule}", **more), Context(digits, cpu))


def test_references_are_recorded_and_repeated(own: Path, mlp: Trained, digits: Records, cpu: Runtime) -> None:
    sparse = pruned(own, mlp, digits, cpu, "rewind", epochs="full")
    assert sparse.mask is not None
    provenance = sparse.mask.provenance
    found = (provenance.criterion, provenance.granularity, provenance.scope, provenance.schedule)
    assert found == ("own_pruning:first_column", "own_pruning:Pairs", "own_pruning:each", "own_pruning:rewind")
    assert (provenance.details["epochs"], provenance.details["options"]) == ("full", {"extra": 1})
    assert pairs_are_whole(sparse.mask)
    assert [round(density, 2) for density in sparse.mask.layer_density().values()] == [0.5, 0.5]
    again = repeat_pruning(mlp, sparse.mask, Context(digits, cpu))
    assert (again.hash, again.mask) != (mlp.hash, None)
    assert again.hash == sparse.hash
    assert again.mask.provenance.to_json() == provenance.to_json()  # type: ignore[union-attr]
    by_name = prune(
        mlp, Pruning(0.5, ("linear",), "First-Column", "PAIRS", "Each", "rewind", epochs="full"), Context(digits, cpu)
    )
    assert by_name.mask is not None
    assert by_name.mask.hash() == sparse.mask.hash()
    assert by_name.mask.provenance.criterion == "first-column"


@pytest.mark.parametrize("rule", ["magnitude", "gradient", "influence", "random"])
@pytest.mark.parametrize("schedule", ["rewind", "before"])
def test_un_pruning_repeats_a_custom_rule(
    rule: str, schedule: str, own: Path, mlp: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest
) -> None:
    sparse = pruned(own, mlp, digits, cpu, schedule, keep_weights=schedule == "rewind")
    assert ("pruning_weights" in sparse.state) == (schedule == "rewind")
    method = get_method("Un-prune", rule=rule, method="FT", method_options={"epochs": 1})
    after = method.forget(sparse, request_20, Context(digits, cpu, seed=1)).trained
    assert after.mask is not None
    assert pairs_are_whole(after.mask)
    assert after.mask.kept_count == sparse.mask.kept_count  # type: ignore[union-attr]
    assert after.mask.provenance.criterion == "own_pruning:first_column"


def test_un_pruning_by_influence_needs_scores_of_dense_weights(
    own: Path, mlp: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest
) -> None:
    method, context = get_method("Un-prune", rule="influence"), Context(digits, cpu)
    with pytest.raises(MethodError, match=r"own_pruning:twice ranked weights that were already sparse"):
        method.forget(pruned(own, mlp, digits, cpu, "twice"), request_20, context)
    with pytest.raises(MethodError, match="weights from before pruning, which are not stored"):
        method.forget(pruned(own, mlp, digits, cpu, "rewind"), request_20, context)


@pytest.mark.parametrize(("schedule", "trainings"), [("rewind", 2), ("before", 1), ("twice", 1)])
def test_retraining_repeats_a_custom_schedule(
    schedule: str, trainings: int, own: Path, mlp: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest
) -> None:
    """Dense training comes first unless the schedule starts from the initial weights."""
    sparse = pruned(own, mlp, digits, cpu, schedule)
    outcome = get_method("Retrain", mask="re-prune").forget(sparse, request_20, Context(digits, cpu, seed=1))
    assert outcome.guarantee == "exact"
    assert outcome.trained.mask is not None
    assert pairs_are_whole(outcome.trained.mask)
    assert sum(entry["epoch"] == 2 for entry in outcome.history) == trainings  # both have a second epoch
    if schedule == "before":  # it had its mask from the first step on
        whole = get_method("Retrain", mask="rewind").forget(sparse, request_20, Context(digits, cpu)).trained
        assert whole.hash == get_method("Retrain").forget(sparse, request_20, Context(digits, cpu)).trained.hash


def test_rounds_of_a_custom_criterion(
    own: Path, mlp: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest
) -> None:
    """Its scores of the initial weights read no record, so un-pruning by influence gives the mask again."""
    how = {**OWN, "granularity": "weight", "schedule": "at-init", "sparsity": 0.7}
    sparse = prune(mlp, Pruning(**how), Context(digits, cpu))
    assert "at initialisation in 3 rounds" in sparse.provenance.history[-1]
    one = prune(mlp, Pruning(**how, options={"rounds": 1}), Context(digits, cpu))
    method = get_method("Un-prune", rule="influence", method="FT", method_options={"epochs": 0})
    for trained in (sparse, one):
        assert trained.mask is not None
        after = method.forget(trained, request_20, Context(digits, cpu)).trained
        assert after.mask is not None
        assert after.mask.hash() == trained.mask.hash()
    assert "in 1 round," in one.provenance.history[-1]


def test_single_weights_are_not_pruned_from_units(
    own: Path, mlp: Trained, digits: Records, cpu: Runtime, request_20: ForgetRequest
) -> None:
    sparse = pruned(own, mlp, digits, cpu, "twice")
    method = get_method("l1-sparse", step="proximal", gamma=0.1, epochs=1, learning_rate=0.05)
    after = method.forget(sparse, request_20, Context(digits, cpu)).trained
    assert after.mask is not None
    assert after.mask.hash() == sparse.mask.hash()  # type: ignore[union-attr]


def test_options_and_compositions_of_custom_entries(own: Path, mlp: Trained, digits: Records, cpu: Runtime) -> None:
    with pytest.raises(ConfigError, match="epochs = full has no effect with own_pruning:before"):
        Pruning(schedule="own_pruning:before", epochs="full")
    with pytest.raises(ConfigError, match=r"keep_weights has no effect[\s\S]*omp, one-shot, rewind, soft-filter"):
        Pruning(schedule="own_pruning:twice", keep_weights=True)
    with pytest.raises(ConfigError, match=r"no option 'extras'[\s\S]*did you mean 'extra'"):
        Pruning(schedule="own_pruning:rewind", options={"extras": 2})
    with pytest.raises(MaskError, match="scores channels, not single weights"):
        Pruning(criterion="FPGM", granularity="own_pruning:Pairs")
    halves = Pruning(layers=("linear",), granularity="own_pruning:Halves", scope="erk", schedule="one-shot")
    assert halves.sparsity == 0.5
    for wrong in ({"sparsity": 0.6}, {"schedule": "own_pruning:twice"}, {"schedule": "imp"}):
        with pytest.raises((MaskError, ConfigError), match=r"has sparsity 0.5 and no other|has one sparsity"):
            dataclasses.replace(halves, **{"sparsity": 0.5, **wrong})
    sparse = prune(mlp, halves, Context(digits, cpu))
    assert sparse.mask is not None
    assert sparse.mask.provenance.scope == "row"
    assert rule_of(sparse.mask).scope == "global"
    found = dry_run_rule(halves.rule, mlp.model, digits.input_shape)
    assert (found.kept, found.total) == (sparse.mask.kept_count, sparse.mask.total)


RUN = """
data: {source: digits}
split: {limit: 200}
model: {name: mlp, options: {widths: [8]}}
training: {recipe: one-cycle, epochs: 1, batch_size: 64}
sparsity: {layers: [linear], criterion: "own_pruning:first_column", granularity: "own_pruning:Pairs"}
forget: {by: random, count: 5}
"""


def findings(*overrides: str) -> list[str]:
    """What `check` finds about the sparsity, after the names of what is chosen."""
    check = check_run(load_config("run.yaml", overrides))
    found = [f"{f.level}: {f.message}" for f in check.findings if f.subject == "sparsity"]
    assert found[0].startswith("ok: criterion own_pruning:first_column, granularity own_pruning:")
    return found[1:]


def test_check_of_a_configuration_with_custom_entries(own: Path) -> None:
    Path("run.yaml").write_text(RUN)
    half = "sparsity.sparsity=0.5"
    assert findings(half) == ["ok: 148 of 296 pairs of weights are kept, in 2 layers"]
    assert findings("sparsity.granularity=own_pruning:Halves", half)[0].startswith("ok: 296 of 592 weights")
    kept = findings(half, "sparsity.schedule=own_pruning:before", "sparsity.keep_weights=true")
    assert kept[0].startswith("warning: keep_weights has no effect: the weights that own_pruning:before ranks")
    leakage = ("leakage={}", half)
    check_names(load_config("run.yaml", [*leakage, "sparsity.schedule=own_pruning:rewind"]))
    for schedule in ("before", "twice"):
        with pytest.raises(ConfigError, match="topology leakage needs masks of trained dense weights"):
            check_names(load_config("run.yaml", [*leakage, f"sparsity.schedule=own_pruning:{schedule}"]))
    with pytest.raises(ConfigError, match="topology leakage needs masks of trained dense weights"):
        load_config("run.yaml", [*leakage, "sparsity.schedule=imp"])
    with pytest.raises(TrustError, match="standard library"):
        check_names(load_config("run.yaml", ["sparsity.criterion=os:system"]))


def test_a_named_granularity_gives_the_configuration_its_sparsity(own: Path) -> None:
    Path("run.yaml").write_text(RUN)
    get_granularity("own_pruning:Halves")
    wanted = "sparsity.granularity=halves"
    assert load_config("run.yaml", [wanted]).sparsity.sparsity == 0.5  # type: ignore[union-attr]
    assert load_config("run.yaml", ["sparsity.granularity=1:4"]).sparsity.sparsity == 0.75  # type: ignore[union-attr]
    assert load_config("run.yaml", [wanted, "sparsity.sparsity=0.7"]).sparsity.sparsity == 0.7  # type: ignore[union-attr]


def test_names_in_a_mask_are_names_in_a_file(own: Path, mlp: Trained, digits: Records, cpu: Runtime) -> None:
    save_trained(pruned(own, mlp, digits, cpu, "rewind"), "model")
    code = "import sys, expunge\nfrom expunge.sparsity import {}\nfrom expunge.core.errors import TrustError\n"
    code += "trained = expunge.load_trained('model', trust={})\n"
    ask = "try: print({}(trained.mask))\nexcept TrustError as error: print('refused', error.what)\n"
    ask += "print('own_pruning' in sys.modules)"
    env = {"PYTHONPATH": f"{own}:{SOURCE.parent}", "PATH": "", "OMP_NUM_THREADS": "1"}

    def run(function: str, trust: str) -> list[str]:
        text = code.format(function, trust) + ask.format(function)
        done = subprocess.run([sys.executable, "-c", text], env=env, cwd=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    refused, imported = run("rule_of", "()")
    assert refused.startswith("refused names code that you have not agreed to run: own_pruning")
    assert imported == "False"
    rule, imported = run("rule_of", "['own_pruning']")
    assert "criterion='own_pruning:first_column'" in rule
    assert imported == "True"
    assert run("recorded_schedule", "()")[0].startswith("refused names code")


@pytest.mark.parametrize(("place", "asked"), [("granularity", recorded_granularity), ("scope", competes_across_layers)])
def test_a_question_about_a_mask_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, asked: Callable[[MaskProvenance], Any]
) -> None:
    (tmp_path / "rules_elsewhere.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    provenance = dataclasses.replace(MaskProvenance("magnitude"), **{place: "rules_elsewhere:Halves"})
    with pytest.raises(TrustError, match="not agreed to run"):
        asked(provenance)
    assert "rules_elsewhere" not in sys.modules


def test_a_mask_cannot_name_a_library() -> None:
    kept = {"weight": torch.ones(2, 2, dtype=torch.bool)}
    for place in ("criterion", "granularity", "scope"):
        provenance = MaskProvenance("magnitude", layers=("linear",), details={"sparsity": 0.5})
        mask = Mask(kept, dataclasses.replace(provenance, **{place: "subprocess:run"}))
        with pytest.raises(TrustError, match="standard library"):
            rule_of(mask)
    mask = Mask(kept, MaskProvenance("?", granularity="no such"))
    assert recorded_granularity(mask.provenance).structured
    with trusting(()), pytest.raises(TrustError):
        get_criterion("subprocess:run")


@pytest.mark.parametrize("field", ["criterion", "granularity", "scope"])
def test_every_name_that_a_mask_records_needs_the_owners_consent(field: str) -> None:
    names = {"criterion": "magnitude", "granularity": "weight", "scope": "global"}
    permit_rule(MaskProvenance(**names))
    with trusting(()), pytest.raises(TrustError):
        permit_rule(MaskProvenance(**{**names, field: "os:getcwd"}))
