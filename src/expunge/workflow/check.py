"""Check a configuration before anything runs: which parts would work and which would not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from expunge.core.errors import ExpungeError
from expunge.core.show import Summary, plural, repr_text, shorten_names
from expunge.core.trust import trusting
from expunge.experiments.config.run_config import RunConfig

from .check_pruned import inspect_pruned_model
from .inputs import (
    check_last_batch,
    check_method,
    check_prunable,
    get_network,
    read_model,
    read_records,
    read_request,
    read_split,
)

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models.inspect import Finding

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        findings: in the order data, split, request, model, recipe, sparsity, method, runtime; each with the level `ok`,
            `warning` or `error`.
    """

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether the configuration would run: there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0, or 1 if there is an error."""
        return 0 if self.usable else 1

    def _summarise(self) -> Summary:
        def subjects(level: str) -> str:
            return shorten_names(finding.subject for finding in self.findings if finding.level == level)

        facts = {f"{level}s": lambda level=level: subjects(level) for level in ("error", "warning")}
        return Summary(self._describe, facts, lines=True)

    def _describe(self) -> str:
        return f"{'this would run' if self.usable else 'this would not run'}, {plural(len(self.findings), 'finding')}"

    __repr__ = repr_text

    def to_json(self) -> dict[str, Any]:
        return {"usable": self.usable, "findings": [dataclasses.asdict(finding) for finding in self.findings]}

    def text(self) -> str:
        """One line per finding, with hints below it, and whether the configuration would run."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<8} {finding.subject}: {finding.message}")
            if finding.hint:
                lines.append(f"{'':<8}   hint: {finding.hint}")
        errors = sum(finding.level == "error" for finding in self.findings)
        lines.append("this would run" if self.usable else f"this would not run: {errors} error{'s' * (errors > 1)}")
        return "\n".join(lines)


def check_run(config: RunConfig) -> Check:
    """Check data, split, request, model, recipe, sparsity and method of a configuration without training anything.

    Custom code is imported and called only if the user agreed to it (`config.trust`); otherwise it is an error. Errors
    are findings and are not raised. A section that depends on a wrong one is left out; the others are still checked.

    Args:
        config: see `load_config`.

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
    return Check(tuple(inspector.findings))


class _Inspector:
    """Checks a configuration section by section, as far as the results of earlier sections allow."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.findings: list[Finding] = []

    def add(self, level: str, subject: str, message: str, hint: str = "") -> None:
        from expunge.models.inspect import Finding

        self.findings.append(Finding(level, subject, message, hint))

    def attempt(self, subject: str, function: Callable[[], T]) -> T | None:
        """Call the function and return its value; add an error to the findings and return None if it fails."""
        try:
            return function()
        except ExpungeError as error:
            where = "" if error.where is None else f"{error.where}: "
            self.add("error", subject, f"{where}{error.what}", error.hint or "")
            return None

    def run(self) -> None:
        records = self.attempt("data", self._check_records)
        split = None if records is None else self.attempt("split", lambda: self._check_split(records))
        model = None
        if records is not None and split is not None:
            self.attempt("forget", lambda: self._check_request(records, split))
            model = self.attempt("model", lambda: self._check_model(records, split))
        self.attempt("training", lambda: self._check_recipe(model, records, split))
        self.attempt("sparsity", lambda: self._check_sparsity(model, records))
        self.attempt("method", lambda: self._check_method(model, records, split))
        self.attempt("runtime", self._check_runtime)

    def _check_records(self) -> Records:
        records = read_records(self.config)
        stored = "streamed" if records.features is None else f"in memory, {records.features.nbytes / 2**20:.1f} MiB"
        subjects = "" if records.subject_ids is None else f", {len(set(records.subject_ids.tolist()))} subjects"
        text = f"{len(records)} records of shape {records.input_shape}, {records.classes} classes{subjects} ({stored})"
        self.add("ok", "data", text)
        return records

    def _check_split(self, records: Records) -> Split:
        split = read_split(self.config, records)
        counts = split.counts()
        self.add("ok", "split", ", ".join(f"{part} {count}" for part, count in counts.items() if count))
        for part, consequence in (
            ("test", "no score can be computed"),
            ("non_members", "the balanced AUC is left out"),
            ("validation", "the recipe cannot select the best epoch"),
        ):
            if not counts[part]:
                self.add("error" if part == "test" else "warning", "split", f"the {part} part is empty: {consequence}")
        section = self.config.split
        if records.subject_ids is not None and section.group is None and section.file is None:
            self.add(
                "warning",
                "split",
                "records of one subject are in several parts of the split",
                "split.group=subject puts all records of a subject into one part, for records that resemble each other",
            )
        return split

    def _check_request(self, records: Records, split: Split) -> None:
        if self.config.forget is None:
            self.add("warning", "forget", "there is no section `forget`: only training and pruning would work")
            return
        request = read_request(self.config, records, split)
        count, trained = len(request.record_ids), len(split.train)
        hold = f", {len(request.hold)} must not be forgotten" if len(request.hold) else ""
        self.add("ok", "forget", f"{count} records, {100 * count / trained:.2f} % of the training records{hold}")

    def _check_model(self, records: Records, split: Split) -> nn.Module | Trained:
        from expunge.core.trained import Trained
        from expunge.models import describe_model

        found = read_model(self.config, records, split)
        mask = found.mask if isinstance(found, Trained) else None
        if isinstance(found, Trained):
            text = f"weights of {self.config.model.weights} (that they were trained on this split cannot be verified)"
            self.add("ok", "model", text)
            self.findings.extend(inspect_pruned_model(found))
        self.findings.extend(describe_model(get_network(found), records, mask=mask).findings)
        return found

    def _check_recipe(self, model: nn.Module | Trained | None, records: Records | None, split: Split | None) -> None:
        from expunge.training.recipes import get_recipe

        section = self.config.training
        chosen = get_recipe(section.recipe, **section.extra_keys)
        self.add("ok", "training", f"{chosen.name}: {chosen.epochs} epochs, batches of {chosen.batch_size}")
        if model is not None and records is not None and split is not None:
            check_last_batch(self.config, model, records, split)

    def _check_sparsity(self, model: nn.Module | Trained | None, records: Records | None) -> None:
        from expunge.experiments.config.registry_checks import check_sparsity

        section = self.config.sparsity
        if section is None:
            return
        check_sparsity(self.config)
        if section.keep_weights and section.schedule == "at-init":
            message = "keep_weights has no effect: the weights that at-init ranks are recomputed from their seed"
            self.add("warning", "sparsity", message)
        if model is None or records is None:
            return
        found = check_prunable(self.config, model, records)
        self.add(
            "ok",
            "sparsity",
            f"{found.kept} of {found.total} {found.unit} are kept, in {found.layers} layer{'s' * (found.layers > 1)}",
        )
        if found.unit == "weights" and found.kept < 10 * found.layers:
            self.add("warning", "sparsity", "fewer than ten weights per layer would be kept on average")

    def _check_method(self, model: nn.Module | Trained | None, records: Records | None, split: Split | None) -> None:
        from expunge.experiments.config.registry_checks import check_pruning
        from expunge.methods import get_method
        from expunge.training.batchnorm import find_layers

        section = self.config.method
        if section is None:
            return
        method = get_method(section.name, **section.options)
        self.add("ok", "method", f"{method.name}, guarantee {method.guarantee}")
        check_pruning(self.config)
        if model is not None and records is not None and split is not None:
            check_method(self.config, model, records, split)
        batch_norm = getattr(method, "batch_norm", None)
        if model is not None and batch_norm == "train" and find_layers(get_network(model)):
            self.add(
                "warning",
                "method",
                "BatchNorm buffers are updated from the batches that the method trains on",
                "batch_norm=re-estimate recomputes them from the retain set; batch_norm=frozen does not change them",
            )

    def _check_runtime(self) -> None:
        from expunge.training import Runtime

        runtime = Runtime(**self.config.runtime.model_dump())
        self.add("ok", "runtime", f"{runtime.torch_device}, {runtime.precision}")
