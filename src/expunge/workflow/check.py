"""What would and would not work for a configuration, said before anything runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError
from expunge.experiments.config import RunConfig

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.split import Split
    from expunge.data import Records
    from expunge.models.inspect import Finding


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        findings: in the order data, split, request, model, recipe, sparsity, method; each `ok`, `warning` or `error`.
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
        """One line a finding, hints below."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<8} {finding.subject}: {finding.message}")
            if finding.hint:
                lines.append(f"{'':<8}   hint: {finding.hint}")
        return "\n".join(lines)


def check_run(config: RunConfig) -> Check:
    """Look at data, split, request, model, recipe, sparsity and method of a configuration without training anything.

    Findings do not raise: whatever a run would stumble over is an `error` among them.
    """
    inspector = _Inspector(config)
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

    def attempt(self, subject: str, function: Any) -> Any:
        """The function's value, or None and an error among the findings."""
        try:
            return function()
        except ExpungeError as error:
            where = "" if error.where is None else f"{error.where}: "
            self.say("error", subject, f"{where}{error.what}", error.hint or "")
            return None

    def run(self) -> None:
        records = self.attempt("data", self._records)
        if records is None:
            return
        split = self.attempt("split", lambda: self._split(records))
        if split is None:
            return
        if self.config.forget is not None:
            self.attempt("forget", lambda: self._request(records, split))
        model = self.attempt("model", lambda: self._model(records, split))
        self.attempt("training", self._recipe)
        if self.config.sparsity is not None and model is not None:
            self.attempt("sparsity", lambda: self._sparsity(model))
        if self.config.method is not None:
            self.attempt("method", lambda: self._method(model))

    def _records(self) -> Records:
        from expunge.data import load_records

        data = self.config.data
        records = load_records(data.source, data_dir=data.dir, **data.options)
        held = "streamed" if records.features is None else f"in memory, {records.features.nbytes / 2**20:.1f} MiB"
        people = "" if records.subject_ids is None else f", {len(set(records.subject_ids.tolist()))} subjects"
        text = f"{len(records)} records of shape {records.input_shape}, {records.classes} classes{people} ({held})"
        self.say("ok", "data", text)
        return records

    def _split(self, records: Records) -> Split:
        from expunge.core.split import Split
        from expunge.data import make_split

        options = self.config.split.model_dump()
        path = options.pop("file")
        split = make_split(records, **options) if path is None else Split.load(path)
        counts = split.counts()
        self.say("ok", "split", ", ".join(f"{part} {count}" for part, count in counts.items() if count))
        for part, loss in (
            ("test", "no score can be computed"),
            ("unseen", "the balanced AUC is left out"),
            ("validation", "the recipe cannot select the best epoch"),
        ):
            if not counts[part]:
                self.say("error" if part == "test" else "warning", "split", f"the {part} part is empty: {loss}")
        if records.subject_ids is not None and self.config.split.group is None and path is None:
            self.say(
                "warning",
                "split",
                "records of one person are in several parts of the split",
                "split.group=subject keeps persons together, where records of one person resemble each other",
            )
        return split

    def _request(self, records: Records, split: Split) -> None:
        from expunge.data import select_forget

        assert self.config.forget is not None
        request = select_forget(records, split, self.config.forget.model_dump(mode="json"))
        if len(request.record_ids) == 0:
            self.say("error", "forget", "the forget set is empty", "check the selection; there is nothing to forget")
            return
        after = request.apply(split)
        share = 100 * len(request.record_ids) / (len(after.retain) + len(after.forget))
        self.say("ok", "forget", f"{len(request.record_ids)} records ({share:.2f} % of the training records)")

    def _model(self, records: Records, split: Split) -> nn.Module:
        from expunge.models import architecture, describe_model, load_weights

        model = self.config.model
        blueprint = architecture(model.name, records, split, normalise=model.normalise, **model.options)
        network = blueprint.build(self.config.seed)
        if model.weights is not None:
            network = load_weights(network, model.weights)
        if model.mask is not None:
            from expunge.core.mask import Mask

            mask = Mask.load(model.mask)
            mask.check_fits(network)
            self.say("ok", "mask", f"{100 * mask.sparsity:.2f} % of {mask.total} weights are masked")
        facts = describe_model(network, records)
        self.findings.extend(facts.findings)
        return network

    def _recipe(self) -> None:
        from expunge.training.recipes import recipe

        section = self.config.training
        chosen = recipe(section.recipe, **section.further)
        self.say("ok", "training", f"{chosen.name}: {chosen.epochs} epochs, batches of {chosen.batch_size}")

    def _sparsity(self, model: nn.Module) -> None:
        from expunge.sparsity import criterion_names, prunable, schedule_names

        section = self.config.sparsity
        assert section is not None
        for what, name, known in (
            ("schedule", section.schedule, schedule_names()),
            ("criterion", section.criterion, criterion_names()),
        ):
            if name not in known:
                self.say("error", "sparsity", f"unknown {what} {name!r}", f"known: {', '.join(known)}")
                return
        if self.config.model.weights is not None:
            self.say(
                "error",
                "sparsity",
                "a model from elsewhere has no rewind checkpoint, so it cannot be pruned with rewinding",
                "train it here, or bring its mask along (model.mask)",
            )
            return
        weights = prunable(model, section.layers)
        total = sum(weight.numel() for weight in weights.values())
        left = total - round(section.sparsity * total)
        self.say("ok", "sparsity", f"{left} of {total} weights stay, in {len(weights)} layers")
        if left < 10 * len(weights):
            self.say("warning", "sparsity", "fewer than ten weights a layer would stay on average")

    def _method(self, model: nn.Module | None) -> None:
        from expunge.methods import get_method
        from expunge.training.batchnorm import layers

        section = self.config.method
        assert section is not None
        method = get_method(section.name, **section.options)
        self.say("ok", "method", f"{method.name}, guarantee {method.guarantee}")
        treatment = getattr(method, "batch_norm", None)
        if model is not None and treatment == "train" and layers(model):
            self.say(
                "warning",
                "method",
                "BatchNorm buffers follow the batches that the method trains on",
                "batch_norm=re-estimate computes them anew from the retain set; batch_norm=frozen leaves them",
            )
