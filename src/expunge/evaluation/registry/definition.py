"""The definition of a score: its facts and the function that measures it. Does not import torch."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.registry import SCORES
from expunge.core.registry.custom_code import is_custom, naming
from expunge.core.show import repr_fields
from expunge.evaluation.facts import ScoreFacts, make_facts
from expunge.evaluation.score import Interval, Score

if TYPE_CHECKING:
    from .inputs import ScoreInputs


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measured value with what depends on the run.

    Attributes:
        value: in the unit of the score.
        definition: how it was computed, with options and counts of records; empty: the text of the score.
        interval: confidence interval for the sampling of records, or None.
    """

    value: float
    definition: str = ""
    interval: Interval | None = None

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Missing:
    """A score was not measured.

    Attributes:
        note: why not, as a sentence that names the score; empty: it does not apply, and nobody has to know.
        reason: why not, in a few words, which tables show in place of the value; empty: they leave the score out.
    """

    note: str = ""
    reason: str = ""

    __repr__ = repr_fields


#: Of scores that read test records, where a split has none (or none outside a forgotten class).
NO_TEST = "no test records"


def without_test(name: str) -> Missing:
    """The result of a score that needs test records, where there are none.

    Args:
        name: of the score.
    """
    return Missing(f"{name} was not measured: the split has no test records to score on", NO_TEST)


#: Of scores that read records of D_r, where a split declares them absent.
NO_RETAINED = "no records of D_r"


def without_retained(name: str) -> Missing:
    """The result of a score that needs records of D_r, where they are absent.

    Args:
        name: of the score.
    """
    return Missing(f"{name} was not measured: the records of D_r are absent", NO_RETAINED)


Measured = float | Measurement | Missing | None
Measure = TypeVar("Measure", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class ScoreDefinition:
    """A registered score.

    Attributes:
        name: its name in files and tables: the registered name, or the reference by which it was found.
        facts: unit, direction, needs and so on, under the registered name.
        measure: the function that computes it, or a mapping from names to values.
    """

    name: str
    facts: ScoreFacts
    measure: Callable[[ScoreInputs], Measured | Mapping[str, Measured]]

    __repr__ = repr_fields

    @property
    def is_built_in(self) -> bool:
        """Whether it is a score of this package."""
        return not is_custom(self.measure)

    def run(self, inputs: ScoreInputs) -> Score | Missing:
        """Measure the score.

        Raises:
            ConfigError: the function of a custom score failed, or returned something else than a finite number.
        """
        unmet = [need for need in self.facts.needs if not inputs.has(need)]
        if unmet:
            return Missing(f"{self.name} was not computed: it needs {inputs.describe(unmet[0])}")
        found = self._call(inputs)
        if isinstance(found, Mapping):
            found = found.get(self.facts.name)
        if isinstance(found, Missing):
            return found
        if found is None:
            return Missing("" if self.is_built_in else f"{self.name} was not computed: its function returned None")
        if not isinstance(found, Measurement):
            if isinstance(found, bool) or not isinstance(found, numbers.Real):
                raise ConfigError(
                    f"returned a value of type {type(found).__name__}, not a number",
                    where=f"score {self.name}",
                    hint="return a float, a Measurement, or a Missing with the reason",
                )
            found = Measurement(found if isinstance(found, int) else float(found))
        facts, text = self.facts, found.definition or self.facts.text
        return Score(self.name, found.value, facts.unit, facts.direction, text, facts.citation, interval=found.interval)

    def _call(self, inputs: ScoreInputs) -> Any:
        if self.is_built_in:
            return inputs.once(self.measure)
        try:
            with naming("score", self.name, self.measure):
                return inputs.once(self.measure)
        except ExpungeError as error:
            place = f"score {self.name}"
            if str(error.where).startswith(place):
                raise
            where = place if error.where is None else f"{place}: {error.where}"
            raise type(error)(error.what, where=where, hint=error.hint) from error


def register_score(name: str, **facts: Any) -> Callable[[Measure], Measure]:
    """Register a function as a score: it gets `ScoreInputs` and returns a float, a `Measurement`, or a `Missing`.

    A function that is registered under several names returns a mapping from these names to such values.

    Args:
        name: its name in files and tables.
        facts: literals, one for each attribute of `ScoreFacts` that differs from its default: `unit`, `direction`,
            `needs`, `citation`, `position`, ... They are read from the source, without importing it. The first
            paragraph of the docstring is the definition in words.

    Raises:
        ConfigError: the name is registered already; a fact is unknown, has an unknown value, or is not a literal.

    Examples:
        >>> from expunge.core.registry import SCORES
        >>> from expunge.evaluation import register_score
        >>> with SCORES.temporary():
        ...     @register_score("Mean confidence", unit="%")
        ...     def measure_mean_confidence(inputs):
        ...         '''Mean probability of the true label on D_f.'''
        ...         return 100 * float(inputs.parts.forget.confidence.mean())
        ...
        ...     SCORES.get("mean confidence").facts.text
        'Mean probability of the true label on D_f.'
    """

    def decorate(function: Measure) -> Measure:
        text = " ".join(inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].split())
        definition = ScoreDefinition(name, make_facts(name, facts, text), function)
        if definition.facts.table == "cost" and not definition.is_built_in:
            hint = "use 'main' or 'further'"
            raise ConfigError("the table 'cost' has the columns Passes and Time only", where=f"score {name}", hint=hint)
        SCORES.add(name, definition, function, facts)
        _check_literals(name, facts)
        return function

    return decorate


def _check_literals(name: str, facts: dict[str, Any]) -> None:
    """Raise ConfigError if the source does not show the facts that the decorator was given."""
    read = SCORES.describe(name).facts
    hidden = [key for key, value in facts.items() if read.get(key) != value]
    if hidden:
        SCORES.remove(name)
        raise ConfigError(
            f"the fact {hidden[0]!r} is not a literal", where=f"score {name}",
            hint="write the value itself in the decorator: tables read it without importing the module",
        )  # fmt: skip
