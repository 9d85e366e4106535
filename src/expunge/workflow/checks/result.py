"""The result of a check."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from expunge.core.show import Summary, plural, repr_text, shorten_names
from expunge.experiments.forecast.result import Forecast
from expunge.workflow.costs.probe import Probe
from expunge.workflow.costs.table import MethodCost, render_costs

if TYPE_CHECKING:
    from expunge.models.inspect import Finding


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        findings: in the order data, split, request, model, recipe, sparsity, method, scores, runtime; each with the
            level `ok`, `warning` or `error`.
        methods: which methods work and what each costs; empty if it was not asked for, or data or model are wrong.
        probe: the batches that were timed for it, or None.
        forecast: time and memory of the stages that are not in the store; None: not asked for, or not possible.
    """

    findings: tuple[Finding, ...]
    methods: tuple[MethodCost, ...] = ()
    probe: Probe | None = None
    forecast: Forecast | None = None

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
        body = {"usable": self.usable, "findings": [dataclasses.asdict(finding) for finding in self.findings]}
        if self.methods:
            probe = None if self.probe is None else dataclasses.asdict(self.probe)
            body |= {"methods": [dataclasses.asdict(row) for row in self.methods], "probe": probe}
        return body if self.forecast is None else {**body, "forecast": self.forecast.to_json()}

    def text(self) -> str:
        """One line per finding, with hints below it, and whether the configuration would run."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level:<8} {finding.subject}: {finding.message}")
            if finding.hint:
                lines.append(f"{'':<8}   hint: {finding.hint}")
        if self.methods:
            lines += ["", render_costs(self.methods, self.probe), ""]
        if self.forecast is not None:
            lines += ["", self.forecast.render(), ""]
        errors = sum(finding.level == "error" for finding in self.findings)
        lines.append("this would run" if self.usable else f"this would not run: {errors} error{'s' * (errors > 1)}")
        return "\n".join(lines)
