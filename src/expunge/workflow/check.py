"""What would and would not work for a configuration, said before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from expunge.core.errors import ExpungeError
from expunge.core.trust import trusting
from expunge.experiments.config.run_config import RunConfig

from .check_pruned import arrival_findings
from .inputs import check_method, check_prunable, network_of, read_model, read_records, read_request, read_split

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models.inspect import Finding

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        findings: in the order names, data, split, request, model, recipe, sparsity, method; each `ok`, `warning` or
            `error`.
    """

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something would not work."""
        return 0 if self.usable else 1

    def to_json(self) -> dict[str, Any]:
        return {"usable": self.usable, "findings": [dataclasses.asdict(finding) for finding in self.findings]}

    def text(self) -> str:
        """One line a finding, hints below, and the verdict."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<8} {finding.subject}: {finding.message}")
            if finding.hint:
                lines.append(f"{'':<8}   hint: {finding.hint}")
        errors = sum(finding.level == "error" for finding in self.findings)
        lines.append("this would run" if self.usable else f"this would not run: {errors} error{'s' * (errors > 1)}")
        return "\n".join(lines)


def check_run(config: RunConfig) -> Check:
    """Look at data, split, request, model, recipe, sparsity and method of a configuration without training anything.

    Code that it names is imported and called only where the owner agreed (`config.trust`); else that is an error here.
    Findings do not raise: whatever a run would stumble over is an `error` among them. A section that cannot be judged
    because an earlier one is wrong is left out; the others are still looked at.
    """
    inspector = _Inspector(config)
    with trusting(config.trust):
        inspector.run()
    return Check(tuple(inspector.findings))


class _Inspector:
    """Goes through a configuration section by section, each only as far as the earlier ones allow."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.findings: list[Finding] = []

    def say(self, level: str, subject: str, message: str, hint: str = "") -> None:
        from expunge.models.inspect import Finding

        self.findings.append(Finding(level, subject, message, hint))

    def attempt(self, subject: str, function: Callable[[], T]) -> T | None:
        """The function's value, or None and an error among the findings."""
        try:
            return function()
        except ExpungeError as error:
            where = "" if error.where is None else f"{error.where}: "
            self.say("error", subject, f"{where}{error.what}", error.hint or "")
            return None

    def run(self) -> None:
        records = self.attempt("data", self._records)
        split = None if records is None else self.attempt("split", lambda: self._split(records))
        model = None
        if records is not None and split is not None:
            self.attempt("forget", lambda: self._request(records, split))
            model = self.attempt("model", lambda: self._model(records, split))
        self.attempt("training", self._recipe)
        self.attempt("sparsity", lambda: self._sparsity(model, records))
        self.attempt("method", lambda: self._method(model, records, split))
        self.attempt("runtime", self._runtime)

    def _records(self) -> Records:
        records = read_records(self.config)
        held = "streamed" if records.features is None else f"in memory, {records.features.nbytes / 2**20:.1f} MiB"
        people = "" if records.subject_ids is None else f", {len(set(records.subject_ids.tolist()))} subjects"
        text = f"{len(records)} records of shape {records.input_shape}, {records.classes} classes{people} ({held})"
        self.say("ok", "data", text)
        return records

    def _split(self, records: Records) -> Split:
        split = read_split(self.config, records)
        counts = split.counts()
        self.say("ok", "split", ", ".join(f"{part} {count}" for part, count in counts.items() if count))
        for part, loss in (
            ("test", "no score can be computed"),
            ("non_members", "the balanced AUC is left out"),
            ("validation", "the recipe cannot select the best epoch"),
        ):
            if not counts[part]:
                self.say("error" if part == "test" else "warning", "split", f"the {part} part is empty: {loss}")
        section = self.config.split
        if records.subject_ids is not None and section.group is None and section.file is None:
            self.say(
                "warning",
                "split",
                "records of one person are in several parts of the split",
                "split.group=subject keeps persons together, where records of one person resemble each other",
            )
        return split

    def _request(self, records: Records, split: Split) -> None:
        if self.config.forget is None:
            self.say("warning", "forget", "there is no section `forget`: this trains (and prunes), nothing more")
            return
        request = read_request(self.config, records, split)
        count, trained = len(request.record_ids), len(split.train)
        kept = f", {len(request.hold)} are to be kept" if len(request.hold) else ""
        self.say("ok", "forget", f"{count} records, {100 * count / trained:.2f} % of the training records{kept}")

    def _model(self, records: Records, split: Split) -> nn.Module | Trained:
        from expunge.core.trained import Trained
        from expunge.models import describe_model

        found = read_model(self.config, records, split)
        masked = isinstance(found, Trained) and found.mask is not None
        if isinstance(found, Trained):
            self.say("ok", "model", f"weights of {self.config.model.weights} (which split they know is taken on trust)")
            self.findings.extend(arrival_findings(found))
        self.findings.extend(describe_model(network_of(found), records, masked=masked).findings)
        return found

    def _recipe(self) -> None:
        from expunge.training.recipes import get_recipe

        section = self.config.training
        chosen = get_recipe(section.recipe, **section.further)
        self.say("ok", "training", f"{chosen.name}: {chosen.epochs} epochs, batches of {chosen.batch_size}")

    def _sparsity(self, model: nn.Module | Trained | None, records: Records | None) -> None:
        from expunge.experiments.config.registry_checks import check_sparsity

        section = self.config.sparsity
        if section is None:
            return
        check_sparsity(self.config)
        if section.keep_weights and section.schedule == "at-init":
            message = "keep_weights keeps nothing more: the weights that at-init scores are made again from their seed"
            self.say("warning", "sparsity", message)
        if model is None or records is None:
            return
        found = check_prunable(self.config, model, records)
        self.say(
            "ok",
            "sparsity",
            f"{found.kept} of {found.total} {found.unit} stay, in {found.layers} layer{'s' * (found.layers > 1)}",
        )
        if found.unit == "weights" and found.kept < 10 * found.layers:
            self.say("warning", "sparsity", "fewer than ten weights a layer would stay on average")

    def _method(self, model: nn.Module | Trained | None, records: Records | None, split: Split | None) -> None:
        from expunge.experiments.config.registry_checks import check_pruning
        from expunge.methods import get_method
        from expunge.training.batchnorm import find_layers

        section = self.config.method
        if section is None:
            return
        method = get_method(section.name, **section.options)
        self.say("ok", "method", f"{method.name}, guarantee {method.guarantee}")
        check_pruning(self.config)
        if model is not None and records is not None and split is not None:
            check_method(self.config, model, records, split)
        treatment = getattr(method, "batch_norm", None)
        if model is not None and treatment == "train" and find_layers(network_of(model)):
            self.say(
                "warning",
                "method",
                "BatchNorm buffers follow the batches that the method trains on",
                "batch_norm=re-estimate computes them anew from the retain set; batch_norm=frozen leaves them",
            )

    def _runtime(self) -> None:
        from expunge.training import Runtime

        runtime = Runtime(**self.config.runtime.model_dump())
        self.say("ok", "runtime", f"{runtime.torch_device}, {runtime.precision}")
