"""then: several methods, one after the other, for one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import nn

from expunge.core.errors import MethodError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.methods.base import Method
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import get_method, register_method
from expunge.methods.task import Task
from expunge.sparsity import Schedule
from expunge.training.curvature import CURVATURES
from expunge.training.recipes import Recipe


@register_method("then", guarantee="empirical", citation="composition of registered methods; docs/composition.md")
@dataclasses.dataclass(frozen=True)
class Then(Method):
    """Run several methods, one after the other, for the same request: each starts from the model that the one before it
    returned.

    The result is that of running them by hand with the same seed: B(A(theta_o)). Each step gets the original's state
    too, such as pruning scores, so that un-pruning can be a step; state that no step returns is dropped. The cost is
    the sum. The guarantee is `empirical`, whatever the steps: none of them promises anything of what another leaves.

    Attributes:
        steps: the methods: names, or mappings with `name` and `options`.
    """

    steps: tuple[Any, ...] = ("GA", "FT")
    one_process: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not self.steps:
            raise MethodError("there are no steps", where="then.steps", hint="steps: [GA, FT]")
        self.make_methods()

    def make_methods(self) -> list[Method]:
        """The methods of the steps, in order.

        Raises:
            MethodError: a step is neither a name nor a mapping with `name` and `options`; or its method or an option
                is unknown, or out of range.
        """
        found = []
        for number, step in enumerate(self.steps):
            where = f"then.steps[{number}]"
            section = {"name": step} if isinstance(step, str) else step
            if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
                raise MethodError(f"a step is a name, or a mapping with name and options, not {step!r}", where=where)
            options = section.get("options") or {}
            if not isinstance(options, Mapping) or set(section) - {"name", "options"}:
                raise MethodError(f"a step has a name and options, not {sorted(section)}", where=where)
            found.append(get_method(section["name"], **options))
        return found

    def list_methods(self) -> list[Method]:
        """The methods of the steps, and those of steps within them, in order."""
        found: list[Method] = []
        for method in self.make_methods():
            found += method.list_methods() if isinstance(method, Then) else [method]
        return found

    @property
    def batch_norm(self) -> str | None:
        """See `Method.batch_norm`: that of the last step that treats them."""
        modes = [mode for method in self.make_methods() if (mode := method.batch_norm) is not None]
        return modes[-1] if modes else None

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the reason of the first step that has one."""
        reasons = (method.unsupported_reason(model, records) for method in self.make_methods())
        return next((reason for reason in reasons if reason is not None), None)

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`: the checks of all steps, on the original."""
        for method in self.make_methods():
            method.check_state(trained)

    def check_recipe(self, recipe: Recipe) -> None:
        """See `Method.check_recipe`: the checks of all steps."""
        for method in self.make_methods():
            method.check_recipe(recipe)

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`: the checks of all steps."""
        for method in self.make_methods():
            method.check_request(model, mask, request, records)

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `Method.check_pruning`: the checks of all steps."""
        for method in self.make_methods():
            method.check_pruning(schedule, keep_weights)

    def describe_cost(self, trained: Trained) -> tuple[str, str] | None:
        """See `Method.describe_cost`: that of the first step that recomputes something."""
        found = (method.describe_cost(trained) for method in self.make_methods())
        return next((cost for cost in found if cost is not None), None)

    def find_idle_reason(self, trained: Trained) -> str:
        """See `Method.find_idle_reason`: those of all steps, if each has one."""
        found = [(method.name, method.find_idle_reason(trained)) for method in self.make_methods()]
        return "; ".join(f"{name}: {reason}" for name, reason in found) if all(reason for _, reason in found) else ""

    def for_dense_model(self) -> Method:
        """See `Method.for_dense_model`: that of every step."""
        return chain(*(method.for_dense_model() for method in self.make_methods()))

    def needed_curvature(self, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`: the Hessian if a step needs it, which needs more of a network."""
        needed = {method.needed_curvature(schedule) for method in self.make_methods()}
        return next((name for name in CURVATURES if name in needed), None)

    @property
    def needs_validation(self) -> str | None:
        """See `Method.needs_validation`: that of the first step that has one."""
        found = (method.needs_validation for method in self.make_methods())
        return next((option for option in found if option is not None), None)

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`: whether a step reads them."""
        return any(method.reads_retained for method in self.make_methods())

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        total = Reads()
        for method in self.make_methods():
            found = method.estimate_reads(trained, sizes)
            if found is None:
                return None
            total = total + found
        return total

    def unlearn(self, task: Task) -> Trained:
        """See `Method.unlearn`."""
        current, lines = task.trained, []
        recomputed: set[str] = set()
        kept: Mapping[str, Any] = {}
        for number, method in enumerate(self.make_methods()):
            outcome = task.run(method, current, task.context.for_part(f"step{number + 1}"))
            recomputed = (recomputed - set(outcome.rewrote)) | set(outcome.recomputed)
            task.history.extend({"step": number + 1, "method": method.name, **entry} for entry in outcome.history)
            lines.append(outcome.trained.provenance.history[-1])
            kept = outcome.trained.state
            state = {**task.trained.state, **kept}
            current = dataclasses.replace(outcome.trained, split=task.trained.split, state=state)
        task.recomputed |= recomputed
        task.line = f"then: {'; then '.join(lines)}"
        provenance = dataclasses.replace(current.provenance, history=task.trained.provenance.history)
        return dataclasses.replace(current, state=kept, provenance=provenance)


def chain(*methods: Method) -> Method:
    """Return the method that runs some methods, one after the other.

    Args:
        methods: the methods, in order.

    >>> from expunge.methods import chain, get_method
    >>> method = chain(get_method("GA", epochs=1), get_method("FT", epochs=2))
    >>> method.name, [step["name"] for step in method.steps], method.steps[1]["options"]["epochs"]
    ('then', ['GA', 'FT'], 2)
    """
    steps = tuple({"name": method.name, "options": dataclasses.asdict(cast(Any, method))} for method in methods)
    return Then(steps)
