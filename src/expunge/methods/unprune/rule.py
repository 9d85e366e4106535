"""The interface of a rule of un-pruning, and the registry of rules."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from expunge.core.errors import MethodError
from expunge.core.registry import UNPRUNING_RULES
from expunge.core.trained import Trained
from expunge.methods.initial_weights import regrow
from expunge.sparsity import Schedule
from expunge.sparsity.criteria.registry import Scores

from .growth import grow, grown_fraction
from .options import UnpruneOptions

if TYPE_CHECKING:
    from expunge.core.mask import Mask

    from .run import Unpruning

T = TypeVar("T", bound="UnpruneRule")


class UnpruneRule(abc.ABC):
    """A rule recomputes the mask of a pruned model without the forget set, around the inner method.

    Attributes:
        name: the registered name.
        uses: options of `Un-prune` that have an effect with the rule, besides `method`, `method_options` and `rule`.
        changes_mask: False if the rule leaves the mask as it is, so that only the inner method runs.
        regrows: whether the inner method runs on a denser network, which is pruned again.

    `register_rule` sets `name` and `uses`.
    """

    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]]
    changes_mask: ClassVar[bool] = True
    regrows: ClassVar[bool] = False

    @abc.abstractmethod
    def run(self, state: Unpruning) -> None:
        """Unlearn, and leave the model with its new mask in `state.current`.

        Args:
            state: the original, the options, the current model, and the parts of a round.
        """

    def check_options(self, options: UnpruneOptions) -> None:  # noqa: B027
        """Raise MethodError if the options cannot be combined with the rule."""

    def check_state(self, options: UnpruneOptions, trained: Trained) -> None:  # noqa: B027
        """Raise MethodError if a pruned model does not have the state that the rule needs."""

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:  # noqa: B027
        """Raise MethodError if a model that is pruned so will not have the state that the rule needs."""

    def describe_cost(self, options: UnpruneOptions, trained: Trained) -> tuple[str, str] | None:
        """See `Method.describe_cost`."""
        return None

    def needed_curvature(self, options: UnpruneOptions, schedule: Schedule | None) -> str | None:
        """See `Method.needed_curvature`."""
        return None


class GrowthRule(UnpruneRule):
    """A rule that regrows pruned weights, runs the inner method, and prunes again: it only ranks the pruned weights."""

    regrows = True
    #: Aggregation of the scores of the weights of a channel to the score of the channel: `mean` or `sum`.
    reduce: ClassVar[str] = "mean"

    @abc.abstractmethod
    def score(self, state: Unpruning, values: Scores) -> Scores:
        """Score the weights; the pruned ones with the highest scores are regrown first.

        Args:
            state: the current model, the round, the records.
            values: the values that pruned weights are regrown with, by name.

        Returns:
            Scores by name, in the shapes of the weights.
        """

    def grow(self, state: Unpruning, values: Scores) -> Mask:
        """Return the mask of a round, with regrown weights."""
        mask, model, shape = state.mask, state.current.model, state.input_shape
        fraction = grown_fraction(mask, state.options.growth, state.options.growth_of, model, shape)
        if fraction <= 0:
            return mask
        return grow(mask, self.score(state, values), fraction, model, shape, reduce=self.reduce)

    def run(self, state: Unpruning) -> None:
        """See `UnpruneRule.run`."""
        options = state.options
        initial = values = state.make_initial_values()
        for number in range(options.rounds):
            if options.reinitialise == "pruned":
                values = initial
            state.round = number
            grown = self.grow(state, values)
            state.begin_round(regrow(state.current.model, state.mask, grown, values), grown)
            state.unlearn()
            if options.reprune == "each" or number == options.rounds - 1:
                values = state.re_prune(values)
        state.re_estimate_buffers()


def register_rule(name: str, *, uses: tuple[str, ...]) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that registers a rule of un-pruning.

    Args:
        name: value of the option `rule` of `Un-prune`.
        uses: see `UnpruneRule`.

    Raises:
        MethodError: the class does not derive from `UnpruneRule`, or `Un-prune` has no such option.
        ConfigError: other code has registered the name.

    >>> from expunge.core.registry import UNPRUNING_RULES
    >>> from expunge.methods import get_method
    >>> from expunge.methods.unprune import GrowthRule, register_rule
    >>> @register_rule("smallest", uses=("growth", "rounds", "initial"))
    ... class Smallest(GrowthRule):
    ...     def score(self, state, values):
    ...         return {name: -tensor.abs() for name, tensor in values.items()}
    >>> get_method("Un-prune", rule="smallest", growth=0.1).growth
    0.1
    >>> UNPRUNING_RULES.remove("smallest")  # so that the registry is as before
    """
    fields: Any = UnpruneOptions
    unknown = sorted(set(uses) - set(fields.__dataclass_fields__))
    if unknown:
        raise MethodError(f"Un-prune has no option {unknown[0]!r}", where=f"rule {name}")

    def add_class(cls: type[T]) -> type[T]:
        if not issubclass(cls, UnpruneRule):
            raise MethodError(f"{cls.__name__} does not derive from UnpruneRule", where=f"rule {name}")
        cls.name, cls.uses = name, tuple(uses)
        UNPRUNING_RULES.add(name, cls, cls, {"uses": tuple(uses)})
        return cls

    return add_class


def get_rule(name: str) -> UnpruneRule:
    """Return a rule of un-pruning.

    Args:
        name: a registered name, or `package.module:Class`.

    Raises:
        MethodError: the rule is unknown; the hint has the nearest name.
        TrustError: `package.module:Class` is code that you have not agreed to run; it was not imported.

    >>> from expunge.methods.unprune import get_rule
    >>> get_rule("gradient").regrows, get_rule("influence").regrows
    (True, False)
    """
    rule: UnpruneRule = UNPRUNING_RULES.get(name)()
    return rule


def rule_names() -> list[str]:
    """Return the names of the registered rules. Nothing is imported.

    >>> from expunge.methods.unprune import rule_names
    >>> {"dense", "influence", "unchanged"} <= set(rule_names())
    True
    """
    return UNPRUNING_RULES.names()
