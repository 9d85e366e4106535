"""Un-pruning: a method around another method that also recomputes the mask without the forget set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.registry import UNPRUNING_RULES, is_reference
from expunge.core.registry.custom_code import naming
from expunge.core.request import ForgetRequest
from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods.base import Method
from expunge.methods.composition.stopping import find_stop
from expunge.methods.frozen import find_frozen
from expunge.methods.initial_weights import RECORD_HINT, build_initial_network
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import method_class, register_method
from expunge.methods.start import check_buildable
from expunge.methods.task import Task
from expunge.sparsity import Schedule, prunable_weights, rule_of
from expunge.sparsity.masks.consistency import record_sparsity
from expunge.training.curvature import CURVATURES
from expunge.training.recipes import Recipe

from .options import UnpruneOptions
from .rescoring import check_channels, count_replaced
from .rule import UnpruneRule, get_rule
from .rules.magnitude import Magnitude
from .run import Unpruning

#: Options that every rule uses.
_SHARED = {"method", "method_options", "rule"}


@register_method(
    "Un-prune",
    guarantee="empirical",
    citation="[Xiao2025], algorithm 1, reconstructed from its reviews",
    space={
        "rule": ["magnitude", "gradient"],
        "growth": (0.05, 0.5, "log"),
        "method_options": [None, {"epochs": 3}, {"epochs": 3, "learning_rate": 0.03}],
    },
)
@dataclasses.dataclass(frozen=True)
class Unprune(UnpruneOptions):
    """Recompute the mask around another method: regrow pruned weights, run the method, prune again; or estimate the
    pruning scores without D_f and keep the weights above a threshold.

    Let P be the pruned weights and s the sparsity. A round of the rules that regrow weights is: set w_j to its initial
    value w0_j for j in P; regrow the fraction `growth` of P that ranks highest; run `method`; then prune to sparsity s
    among the kept weights, with the original's criterion, scope and layers. Every rule runs `method` once per round, so
    the rules differ in cost only by the ranking, which is included in the cost. On a dense model, only `method` runs.

    A mask that was made elsewhere, by `torch.nn.utils.prune` for example, does not record criterion, scope and layers.
    Declare them: `expunge.adopt(..., pruned=expunge.sparsity.PrunedBy(criterion="magnitude", scope="global",
    layers=("conv", "linear")))`, or `model.pruned` in a configuration.
    """

    one_process: ClassVar[str] = ""

    def __post_init__(self) -> None:
        rule = self._get_rule()
        super().__post_init__()
        unused = self.drop_unused({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})[1]
        for field in dataclasses.fields(self):
            if field.name in unused and unused[field.name] != field.default:
                used = ", ".join(sorted(rule.uses)) or "none but method and method_options"
                raise MethodError(
                    f"the rule {self.rule} does not use {field.name}",
                    where=f"Un-prune.{field.name}",
                    hint=f"leave it out; the options of this rule: {used}",
                )
        rule.check_options(self)
        if rule.changes_mask and method_class(self.method).guarantee == "behavioural":
            raise MethodError(
                f"{self.method} does not train weights, so regrown weights would stay at their initial values",
                where="Un-prune.method",
                hint="un-prune with a method that trains, and patch the result",
            )

    def _get_rule(self) -> UnpruneRule:
        if self.rule == Magnitude.name:
            return Magnitude()
        if self.rule not in UNPRUNING_RULES and not is_reference(self.rule):
            hint = unknown_name_hint(self.rule, UNPRUNING_RULES.names())
            raise MethodError(f"unknown rule {self.rule!r}", where="Un-prune.rule", hint=hint)
        return get_rule(self.rule)

    @classmethod
    def drop_unused(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Method.drop_unused`: the options that the rule does not use are dropped."""
        name = options.get("rule", cls.rule)
        if not isinstance(name, str) or (name not in UNPRUNING_RULES and not is_reference(name)):
            return dict(options), {}  # `get_method` reports it
        known = {field.name for field in dataclasses.fields(cls)}
        unused = known - _SHARED - set(get_rule(name).uses)
        dropped = {key: value for key, value in options.items() if key in unused}
        return {key: value for key, value in options.items() if key not in unused}, dropped

    @property
    def batch_norm(self) -> str | None:
        """See `Method.batch_norm`."""
        inner = self.inner_method().batch_norm
        re_estimates = self._get_rule().regrows and self.re_estimate > 0 and not self.final_epochs
        return "re-estimate" if re_estimates and inner != "frozen" else inner

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: the mask prunes frozen parameters; or scores, initial weights or their seed are missing, or do
                not match their hash; or the inner method refuses the model.
            MaskError: the mask's provenance does not record how it was made.
        """
        rule = self._get_rule()
        self.inner_method().check_state(trained)
        if trained.mask is None or not rule.changes_mask:
            return
        layers = trained.mask.provenance.layers
        pruned = set(trained.mask.kept)
        if not pruned and layers:  # not pruned yet
            pruned = set(prunable_weights(trained.model, layers))
        frozen = sorted(find_frozen(trained) & pruned)
        if frozen:
            raise MethodError(
                "the mask prunes a frozen parameter (requires_grad is off), which un-pruning would change",
                where=frozen[0],
                hint="use rule=unchanged, or another method: they keep the mask and the frozen parameters",
            )
        shape = tuple(trained.provenance.architecture["input_shape"])
        rule_of(record_sparsity(trained.mask, trained.model, shape))
        check_channels(trained.mask, trained.model, trained.provenance.architecture)
        rule.check_state(self, trained)
        if self.initial == "original":
            hint = f"use initial={' or '.join(self._list_other_initials(trained))}; or {RECORD_HINT}"
            build_initial_network(trained, self.initial_hash, hint=hint)
        elif self.initial == "random" and rule.regrows:
            check_buildable(trained, self.name, "regrown weights would know D_f")

    def _list_other_initials(self, trained: Trained) -> list[str]:
        """The values of `initial` that need no initial weights, and that the rule takes for this model."""
        try:
            other = dataclasses.replace(self, initial="zero", initial_hash="")  # the rule checks its options
            self._get_rule().check_state(other, trained)
        except MethodError:
            return ["random"]
        return ["random", "zero"]

    @property
    def needs_validation(self) -> str | None:
        """See `Method.needs_validation`: that of the inner method."""
        return self.inner_method().needs_validation

    def check_recipe(self, recipe: Recipe) -> None:
        """See `Method.check_recipe`: the check of the inner method."""
        self.inner_method().check_recipe(recipe)

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: that of the inner method."""
        return self.inner_method().unsupported_reason(model, records)

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`: that of the inner method."""
        self.inner_method().check_request(model, mask, request, records)

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `Method.check_pruning`."""
        self._get_rule().check_pruning(schedule, keep_weights)
        self.inner_method().check_pruning(schedule, keep_weights)

    def describe_cost(self, trained: Trained) -> tuple[str, str] | None:
        """See `Method.describe_cost`."""
        return None if trained.mask is None else self._get_rule().describe_cost(self, trained)

    def find_idle_reason(self, trained: Trained) -> str:
        """See `Method.find_idle_reason`: that of the inner method, if the mask does not change."""
        if trained.mask is not None and self._get_rule().changes_mask:
            return ""
        reason = self.inner_method().find_idle_reason(trained)
        return f"{self.method}: {reason}" if reason else ""

    def for_dense_model(self) -> Method:
        """See `Method.for_dense_model`: only the inner method runs."""
        return self.inner_method()

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`."""
        needed = {self._get_rule().needed_curvature(self, schedule), self.inner_method().needed_curvature(schedule)}
        return next((name for name in CURVATURES if name in needed), None)  # the Hessian first: it needs more

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`: un-pruning reads them, and may the inner method."""
        return self._get_rule().changes_mask or self.inner_method().reads_retained

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        if trained.mask is None or not self._get_rule().changes_mask:
            return self.inner_method().estimate_reads(trained, sizes)
        return None

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`.

        Raises:
            MethodError: state that the rule needs is missing or does not match its hash.
            MaskError: the mask's provenance does not record how it was made.
        """
        rule, count = self._get_rule(), len(task.request.record_ids)
        if task.trained.mask is None or not rule.changes_mask:
            outcome = task.run(self.inner_method(), task.trained)
            task.history.extend(outcome.history)
            task.recomputed |= set(outcome.recomputed)
            reason = "the model is dense" if task.trained.mask is None else "the mask is not changed"
            task.line = f"Un-prune: {reason}, so only {self.method} ran{find_stop(outcome)}"
            history = task.trained.provenance.history
            provenance = dataclasses.replace(outcome.trained.provenance, history=history)
            return dataclasses.replace(outcome.trained, provenance=provenance)
        state = Unpruning(self, task)
        with naming("un-pruning rule", rule.name, type(rule), MethodError):
            rule.run(state)
        if self.final_epochs:
            state.fine_tune()
        done = f"{plural(count, 'record')} forgotten in {plural(self.rounds, 'round')}"
        task.line = f"Un-prune ({self.rule}) around {self.method}: {done}"
        task.line += state.note + "".join(state.stops)
        after = state.finish()
        assert after.mask is not None
        task.line += f"; {count_replaced(task.trained.mask, after.mask)}"
        return after
