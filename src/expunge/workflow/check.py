"""Check a configuration before anything runs: which parts would work and which would not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from expunge.core.errors import ExpungeError
from expunge.core.files import PathLike
from expunge.core.registry.custom_code import find_custom_code
from expunge.core.show import plural
from expunge.core.split import PLANTINGS
from expunge.core.trust import trusting
from expunge.experiments.config.registry_checks import make_checked_method, make_checked_pruning
from expunge.experiments.config.run_config import RunConfig
from expunge.experiments.objects.evaluation import check_scores
from expunge.experiments.objects.training import make_recipe, make_runtime

from .check_pruned import inspect_pruned_model, inspect_pruning, inspect_training
from .checks.attack import inspect_attack
from .checks.copies import inspect_copies
from .checks.left_out import inspect_drawn_split, inspect_left_out
from .checks.result import Check
from .checks.runtime import inspect_runtime
from .costs.guarantee import announce_guarantee
from .costs.run import RunParts, estimate_run
from .costs.stages import forecast_run, probe_plan
from .costs.table import MethodCost
from .inputs import (
    check_last_batch,
    check_method,
    check_prunable,
    describe_cost,
    expect_original,
    get_network,
    list_source_cautions,
    read_declared_stand_in,
    read_model_and_format,
    read_planted,
    read_records,
    read_request,
    read_split,
)

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.experiments.config.plan import Plan
    from expunge.experiments.forecast.result import Forecast
    from expunge.methods import Method
    from expunge.models.inspect import Finding
    from expunge.sparsity import Pruning
    from expunge.training import Recipe

    from .costs.probe import Probe

T = TypeVar("T")


def check_run(config: RunConfig, *, costs: bool = False, probe: bool = True, store: PathLike | None = None) -> Check:
    """Check data, split, request, model, recipe, sparsity and method of a configuration without training anything.

    Custom code is imported and called only if the user agreed to it (`config.trust`); otherwise it is an error. Errors
    are findings and are not raised. A section that depends on a wrong one is left out; the others are still checked.

    Args:
        config: see `load_config`.
        costs: also decide for every method whether it would work, and estimate its cost.
        probe: time a few batches for it (a few seconds at most); otherwise there are no seconds.
        store: also forecast time and memory of the stages of `forget` that are not in this directory of finished
            stages, from those that are and from the probe (docs/plans.md, "Forecast").

    >>> from pathlib import Path
    >>> from expunge.experiments import load_config
    >>> from expunge.workflow import check_run
    >>> text = "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, method: {name: FT}}"
    >>> _ = Path("run.yaml").write_text(text)
    >>> check_run(load_config("run.yaml")).usable
    True
    >>> check = check_run(load_config("run.yaml", ["training.recipe=onecycle"]))
    >>> [finding.subject for finding in check.findings if finding.level == "error"]
    ['training']
    """
    inspector = _Inspector(config)
    with trusting(config.trust):
        inspector.run()
        rows, timed = inspector.estimate_costs(probe=probe) if costs else ((), None)
        forecast = None if store is None else inspector.forecast(timed, store)
    return Check(tuple(inspector.findings), rows, timed, forecast)


def check_plan_cells(plan: Plan, *, store: PathLike | None = None, workers: int = 1, probe: bool = False) -> Check:
    """Check the cells of a plan against the registries; unless it is probed, no data is read. Nothing is run.

    Args:
        plan: see `load_plan`.
        store: also forecast time and memory of the stages that are not in this directory of finished stages
            (docs/plans.md, "Forecast").
        workers: number of processes for which it is forecast.
        probe: time a few batches for stages of which none alike has finished (`probe_plan`).

    Returns:
        How many stages the plan has, and a finding for each group of cells that differ only in their seeds: what would
        run, or the error; and a warning for options that the method does not use, which are dropped.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_plan
    >>> from expunge.workflow import check_plan_cells
    >>> _ = Path("plan.yaml").write_text('''
    ... name: small
    ... base:
    ...   {data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, forget: {by: class, index: 3}}
    ... grid: {method: [{name: Retrain}, {name: FT}], seed: [0, 1]}
    ... ''')
    >>> print(check_plan_cells(load_plan("plan.yaml")).text())
    ok       plan: 4 cells, 11 stages: 1 data, 2 train, 4 forget, 4 score
    ok       method Retrain: 2 cells: Retrain, guarantee exact
    ok       method FT: 2 cells: FT, guarantee empirical
    this would run
    """
    from expunge.experiments.config.registry_checks import check_cells
    from expunge.experiments.scheduler.graph import build_graph
    from expunge.experiments.scheduler.run import forecast_plan
    from expunge.models.inspect import Finding

    findings = []
    try:
        with trusting(plan.trust):
            nodes = build_graph(plan.cells).nodes.values()
        counts = ", ".join(f"{count} {stage}" for stage, count in Counter(node.stage for node in nodes).items())
        findings.append(
            Finding("ok", "plan", f"{plural(len(plan.cells), 'cell')}, {plural(len(nodes), 'stage')}: {counts}")
        )
    except ExpungeError as error:
        findings.append(Finding("error", "plan", f"{error.where}: {error.what}", error.hint or ""))
    findings += [Finding("warning", "data", found.message, found.hint) for found in list_source_cautions(plan)]
    for group in check_cells(plan):
        count = f"{group.cells} cell{'s' * (group.cells > 1)}"
        subject = group.name or "all cells"
        if group.error is not None:
            where = "" if group.error.where is None else f"{group.error.where}: "
            findings.append(Finding("error", subject, f"{count}: {where}{group.error.what}", group.error.hint or ""))
            continue
        findings.append(Finding("ok", subject, f"{count}: {group.method or 'topology leakage'}"))
        if group.note:
            findings.append(Finding("warning", subject, group.note))
    found = Check(tuple(findings))
    if store is None or not found.usable:
        return found
    probes = probe_plan(plan, store=store) if probe else None
    return dataclasses.replace(found, forecast=forecast_plan(plan, store=store, workers=workers, probes=probes))


class _Inspector:
    """Checks a configuration section by section, as far as the results of earlier sections allow."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.findings: list[Finding] = []
        self.parts: RunParts | None = None
        self.method: Method | None = None

    def add(self, level: str, subject: str, message: str, hint: str = "") -> None:
        from expunge.models.inspect import Finding

        self.findings.append(Finding(level, subject, message, hint))

    def attempt(self, subject: str, function: Callable[[], T]) -> T | None:
        """Call the function and return its value; if it, or custom code, fails, add an error and return None."""
        try:
            return function()
        except ExpungeError as error:
            where = "" if error.where is None else f"{error.where}: "
            self.add("error", subject, f"{where}{error.what}", error.hint or "")
            return None
        except Exception as error:
            place = find_custom_code(error)
            if place is None:
                raise
            self.add("error", subject, f"{place}: custom code raised {type(error).__name__}: {error}")
            return None

    def run(self) -> None:
        clean = self.attempt("data", self._check_records)
        parts = None if clean is None else self.attempt("split", lambda: (clean, self._check_split(clean)))
        if parts is not None and self.config.forget is not None and self.config.forget.by in PLANTINGS:
            parts = self.attempt("forget", lambda: read_planted(self.config))
        records, split = (clean, None) if parts is None else parts
        model = request = None
        if records is not None and split is not None:
            request = self.attempt("forget", lambda: self._check_request(records, split))
            model = self.attempt("model", lambda: self._check_model(records, split))
        recipe = self.attempt("training", self._check_recipe)
        if recipe is not None and model is not None and records is not None and split is not None:
            size = recipe.batch_size
            self.attempt("training", lambda: check_last_batch(self.config, size, model, records, split))
        pruning = self.attempt("sparsity", lambda: self._check_sparsity(recipe))
        if pruning is not None and model is not None and records is not None:
            self.attempt("sparsity", lambda: self._check_prunable(pruning, model, records))
        self.attempt("method", lambda: self._check_method(pruning, model, records, split, request))
        self.attempt("evaluation", self._check_evaluation)
        if records is not None and split is not None and request is not None:
            self.attempt(
                "evaluation", lambda: self.findings.extend(inspect_attack(self.config, records, split, request))
            )
        network = None if model is None else get_network(model)
        self.attempt(
            "runtime", lambda: self.findings.extend(inspect_runtime(self.config, recipe, self.method, network, records))
        )
        if records is not None and split is not None and model is not None and request is not None:
            sparsity_is_right = pruning is not None or self.config.sparsity is None
            self.parts = RunParts(records, split, request, model, pruning) if sparsity_is_right else None

    def estimate_costs(self, *, probe: bool) -> tuple[tuple[MethodCost, ...], Probe | None]:
        """The table of methods, if everything but the method is right."""
        if self.parts is None:
            return (), None
        parts = self.parts
        return self.attempt("methods", lambda: estimate_run(self.config, parts, probe=probe)) or ((), None)

    def forecast(self, probe: Probe | None, store: PathLike) -> Forecast | None:
        """Time and memory of the stages, if everything is right."""
        parts = self.parts
        if parts is None or any(finding.level == "error" for finding in self.findings):
            return None
        return self.attempt("forecast", lambda: forecast_run(self.config, parts, probe, store))

    def _check_records(self) -> Records:
        from expunge.data.quality import find_cautions

        records = read_records(self.config, planted=False)
        stored = "streamed" if records.features is None else f"in memory, {records.features.nbytes / 2**20:.1f} MiB"
        subjects = (
            "" if records.subject_ids is None else f", {plural(len(set(records.subject_ids.tolist())), 'subject')}"
        )
        count = plural(len(records), "record")
        text = f"{count} of shape {records.input_shape}, {records.classes} classes{subjects} ({stored})"
        self.add("ok", "data", text)
        for caution in find_cautions(records):
            self.add("warning", "data", caution.message, caution.hint)
        return records

    def _check_split(self, records: Records) -> Split:
        from expunge.data.quality import MOST_ITEMS

        split = read_split(self.config, records)
        counts = split.counts()
        self.add("ok", "split", ", ".join(f"{part} {count}" for part, count in counts.items() if count))
        if split.retain_absent:
            message = "the records of D_r are absent: methods that read them are refused, and no reference is retrained"
            self.add("warning", "split", message, "forget.stand_in={source: ...} declares records to read instead")
        self.findings += inspect_drawn_split(self.config, counts["retain"])
        total = sum(counts.values())
        if records.stream is not None and total > MOST_ITEMS:
            message = (
                f"{MOST_ITEMS:,} of {total:,} items were read and checked; the others are checked when they are read"
            )
            self.add("warning", "data", message)
        for part, consequence in (
            ("test", "TA and the attack of [Jia2023] are not measured"),
            ("non_members", "the balanced AUC is not measured"),
            ("validation", "the recipe cannot select the best epoch"),
        ):
            if not counts[part]:
                self.add("warning", "split", f"the {part} part is empty: {consequence}")
        section = self.config.split
        if records.subject_ids is not None and section.group is None and section.file is None:
            self.add(
                "warning",
                "split",
                "records of one subject are in several parts of the split",
                "split.group=subject puts all records of a subject into one part, for records that resemble each other",
            )
        return split

    def _check_request(self, records: Records, split: Split) -> ForgetRequest | None:
        from expunge.data.selection import RANKED

        if self.config.forget is None:
            self.add("warning", "forget", "there is no section `forget`: only training and pruning would work")
            return None
        request = read_request(self.config, records, split)
        count, trained = len(request.record_ids), len(split.train)
        hold = f", {len(request.hold)} must not be forgotten" if len(request.hold) else ""
        what = "" if request.correction is None else f"{request.correction.describe()} of "
        text = f"{what}{plural(count, 'record')}, {100 * count / trained:.2f} % of the training records{hold}"
        self.add("ok", "forget", text)
        stand_in = read_declared_stand_in(self.config, records, split, request)
        if stand_in is not None:
            from expunge.core.outcome import describe_stand_in

            message = f"a stand-in is read instead of D_r: {describe_stand_in(stand_in.to_json())}"
            self.add("warning", "forget", message, "no method has the guarantee exact then")
        self.findings += inspect_left_out(request.selection)
        if self.config.forget.by not in RANKED and self.config.forget.ranked is None:  # known only after training
            self.findings += inspect_copies(records, request, split)
        return request

    def _check_model(self, records: Records, split: Split) -> nn.Module | Trained:
        from expunge.core.trained import Trained
        from expunge.models import describe_model

        found, imported = read_model_and_format(self.config, records, split)
        mask = found.mask if isinstance(found, Trained) else None
        if isinstance(found, Trained):
            self.add("ok", "model", f"weights of {self.config.model.weights}")
            runtime = make_runtime(self.config.runtime.model_dump(mode="json"))
            self.findings.extend(inspect_training(found, records, runtime))
            assert imported is not None
            self.findings.extend(inspect_pruned_model(found, imported))
        self.findings.extend(describe_model(get_network(found), records, mask=mask).findings)
        return found

    def _check_recipe(self) -> Recipe:
        chosen = make_recipe(self.config.training.model_dump(mode="json"))
        self.add("ok", "training", f"{chosen.name}: {plural(chosen.epochs, 'epoch')}, batches of {chosen.batch_size}")
        return chosen

    def _check_sparsity(self, recipe: Recipe | None) -> Pruning | None:
        if self.config.sparsity is None:
            return None
        pruning = make_checked_pruning(self.config, recipe)
        self.findings.extend(inspect_pruning(pruning))
        return pruning

    def _check_prunable(self, pruning: Pruning, model: nn.Module | Trained, records: Records) -> None:
        found = check_prunable(pruning, model, records)
        layers = f"{found.layers} layer{'s' * (found.layers > 1)}"
        self.add("ok", "sparsity", f"{found.kept} of {found.total} {found.unit} are kept, in {layers}")
        if found.counts_weights and found.kept < 10 * found.layers:
            self.add("warning", "sparsity", "fewer than ten weights per layer would be kept on average")

    def _check_method(
        self,
        pruning: Pruning | None,
        model: nn.Module | Trained | None,
        records: Records | None,
        split: Split | None,
        request: ForgetRequest | None,
    ) -> None:
        from expunge.training.batchnorm import find_layers

        if self.config.method is None:
            return
        method = self.method = make_checked_method(self.config)
        sparsity_is_right = pruning is not None or self.config.sparsity is None
        if model is not None and records is not None and split is not None and sparsity_is_right:
            check_method(self.config, method, pruning, model, records, split, request)
            original = expect_original(self.config, pruning, model, records, split)
            absent = self.config.forget is not None and self.config.forget.stand_in is not None
            guarantee = announce_guarantee(method, original, stand_in=absent)
            self.add("ok", "method", f"{method.name}, guarantee {guarantee}")
            idle = method.find_idle_reason(original)
            if idle:
                self.add("warning", "method", f"{method.name} changes nothing: {idle}")
            cost = describe_cost(self.config, method, pruning, model, records, split)
            if cost is not None:
                self.add("ok", "method", *cost)
        if model is not None and method.batch_norm == "train" and find_layers(get_network(model)):
            self.add(
                "warning",
                "method",
                "BatchNorm buffers are updated from the batches that the method trains on",
                "batch_norm=re-estimate recomputes them from the retain set; batch_norm=frozen does not change them",
            )

    def _check_evaluation(self) -> None:
        names = self.config.evaluation.scores
        if names:
            found = check_scores(self.config.evaluation.model_dump(mode="json"))
            self.add("ok", "evaluation", f"the built-in scores, and {', '.join(score.name for score in found)}")
