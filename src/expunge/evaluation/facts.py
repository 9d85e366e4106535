"""The facts of every score, read from the source of its definition: no score is imported, and neither is torch.

A fact is an argument of `@register_score(...)`. Orders, headings, decimals, legends and the table of docs/scores.md are
made from the facts, wherever they are printed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError, unknown_name_hint
from expunge.core.registry import SCORES, is_reference
from expunge.core.show import repr_fields

#: The meaning of "better", by the direction of a score.
DIRECTIONS: dict[str, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "reference": "closer to the reference is better",
}

#: What a score can need, and where it comes from. A score whose needs are not met is left out.
NEEDS: dict[str, str] = {
    "predictions": "predictions of the model for every part of its split",
    "svc_ratios": "ratios in `evaluation.svc_ratios`",
    "cost": "the cost of the method",
    "reference": "the scores of the retrained reference",
    "retrained": "predictions of the retrained model (in a plan, or with a model as reference)",
    "model": "the model, the request and the records",
    "patches": "a model of the method `patch`",
    "masks": "the masks of the model, of the original and of a re-pruned reference (in a plan)",
    "models": "the original model, the retrained model and the outcome (in a plan)",
    "bound": "`evaluation.bound: true`",
    "backdoor": "records with a planted backdoor (`forget.by: backdoor`)",
    "canaries": "records with planted canaries (`forget.by: canaries`)",
    "look-alikes": "records with planted look-alikes (`forget.by: look-alikes`)",
    "shadow masks": "the masks of shadow models (section `leakage` of a plan)",
}

#: The tables of a report: the first one, the one of scores that only some models have, the columns Passes and Time.
TABLES = ("main", "further", "cost")

#: Position of a score that gives none: after the other scores, before the costs.
BEFORE_THE_COSTS = 490


@dataclasses.dataclass(frozen=True)
class ScoreFacts:
    """What is known of a score before it is computed.

    Attributes:
        name: its name in files and tables.
        unit: `%`, `points` (percentage points), `s`, `passes`, `bytes`, `MiB`, `bits`, `nats`, or empty for a
            plain number.
        direction: a key of `DIRECTIONS`.
        citation: of the definition: paper and section.
        needs: keys of `NEEDS`.
        position: place in lists and tables, ascending; scores with equal positions are sorted by name.
        heading: heading of its column in the tables of plans; empty: name and unit.
        column: place in the tables of plans that name no columns, from 1; 0: it is not in them.
        decimals: decimals in the tables of plans.
        gap: whether the tables of plans print the gap to the reference and the noise floor.
        compared: whether it is given the reference's value of the same score. Scores that compare with the reference
            themselves, such as an overlap of masks, are not.
        machine_dependent: whether it differs between two runs of one plan, as time and memory do.
        averages: the scores whose absolute gaps to the reference it is the mean of.
        on_request: whether it is measured only where it is named (`evaluation.scores`).
        rerun_floor: whether its noise floor is its mean over the reruns of the reference (`rerun` of a plan): for
            distances to the reference, of which the reference itself has none.
        difference: the two scores whose difference it is: tables and claims compute it from them.
        interval: whether the tables of plans print the 95 % t interval of the mean over the seeds.
        legend: a sentence below the tables of plans that have the score.
        table: one of `TABLES`.
        aliases: other spellings in the content of a report.
        text: its definition in words, from the docstring: the first paragraph.
    """

    name: str
    unit: str = ""
    direction: str = "reference"
    citation: str = ""
    needs: tuple[str, ...] = ("predictions",)
    position: int = BEFORE_THE_COSTS
    heading: str = ""
    column: int = 0
    decimals: int = 3
    gap: bool = False
    compared: bool = True
    machine_dependent: bool = False
    averages: tuple[str, ...] = ()
    on_request: bool = False
    rerun_floor: bool = False
    difference: tuple[str, ...] = ()
    interval: bool = False
    legend: str = ""
    table: str = "further"
    aliases: tuple[str, ...] = ()
    text: str = ""

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        where = f"score {self.name}"
        for what, value, known in (
            ("direction", self.direction, DIRECTIONS),
            ("table", self.table, TABLES),
            *(("need", need, NEEDS) for need in self.needs),
        ):
            if value not in known:
                raise ConfigError(f"unknown {what} {value!r}", where=where, hint=unknown_name_hint(value, known))

    @property
    def order(self) -> tuple[int, str]:
        """The key to sort scores by."""
        return self.position, self.name


#: The facts that a decorator can give, and the types of their values.
_TYPES: dict[str, type] = {
    field.name: type(field.default) for field in dataclasses.fields(ScoreFacts) if field.name not in ("name", "text")
}


def make_facts(name: str, given: Mapping[str, Any], text: str) -> ScoreFacts:
    """Make the facts of a score from the arguments of its decorator and its docstring.

    Raises:
        ConfigError: an argument, a direction, a need or a table is unknown.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _TYPES:
            raise ConfigError(
                f"a score has no fact {key!r}", where=f"score {name}", hint=unknown_name_hint(key, _TYPES)
            )
        values[key] = tuple(value) if isinstance(value, list) else value
        wanted = _TYPES[key]
        if type(values[key]) is not wanted or (wanted is tuple and not all(type(v) is str for v in values[key])):
            kind = "a tuple of strings" if wanted is tuple else wanted.__name__
            raise ConfigError(f"the fact {key!r} is {value!r}, not of type {kind}", where=f"score {name}")
    return ScoreFacts(name, text=text, **values)


@functools.cache
def built_in_facts() -> Mapping[str, ScoreFacts]:
    """The facts of the scores of this package by name, in the order of the tables."""
    found = [
        make_facts(definition.name, definition.facts, definition.summary)
        for definition in map(SCORES.read_definition, SCORES.names())
        if definition is not None and definition.module.startswith("expunge.")
    ]
    return {facts.name: facts for facts in sorted(found, key=lambda facts: facts.order)}


def score_facts(name: str) -> ScoreFacts:
    """The facts of a score: nothing is imported. Of an unknown score (such as one in a file from elsewhere): defaults.

    Args:
        name: a built-in name, the name of a plug-in, or `package.module:name`.

    Examples:
        >>> from expunge.evaluation import score_facts
        >>> score_facts("UA").unit, score_facts("UA").direction, score_facts("a score of the future").unit
        ('%', 'reference', '')
    """
    built_in = built_in_facts().get(name)
    if built_in is not None:
        return built_in
    try:
        definition = SCORES.read_definition(name)
        if definition is not None:
            facts = make_facts(definition.name, definition.facts, definition.summary)
        else:
            registered = SCORES.find_registered(name)  # without source: in a notebook, or inside another function
            facts = ScoreFacts(name) if registered is None else registered.facts
    except ExpungeError:
        return ScoreFacts(name)
    heading = facts.heading or f"{facts.name} {facts.unit}".strip()
    return dataclasses.replace(facts, name=name, heading=heading) if is_reference(name) else facts


def score_title(name: str) -> str:
    """The name of a score in tables: the registered one, also if the score was named by its place.

    Examples:
        >>> from expunge.evaluation.facts import score_title
        >>> score_title("UA"), score_title("no_such_module:score")
        ('UA', 'no_such_module:score')
    """
    if not is_reference(name):
        return name
    facts = score_facts(name)
    return facts.heading.removesuffix(f" {facts.unit}") if facts.unit else facts.heading or name


def order_names(names: Iterable[str]) -> list[str]:
    """The names of scores in the order of the tables."""
    return sorted(names, key=lambda name: score_facts(name).order)


def list_ratios() -> tuple[str, ...]:
    """Ratios of members to non-members with which the legacy attack can also be fitted (`svc_ratios`)."""
    return tuple(facts.name.rpartition(" ")[2] for facts in built_in_facts().values() if "svc_ratios" in facts.needs)


def check_score_name(name: str, measured: Iterable[str], where: object) -> str:
    """Return the registered spelling of a score that a plan names.

    Args:
        name: built-in, or one of `measured`.
        measured: names in `evaluation.scores` of the cells.
        where: file, line and key, for the error.

    Raises:
        ConfigError: the score is unknown, or it is custom and no cell measures it.
    """
    measured = [SCORES.canonical(other) for other in measured]
    known = [*built_in_facts(), *measured]
    found = {other.casefold(): other for other in known}.get(name.casefold())
    facts = None if found is None else built_in_facts().get(found)
    if found is not None and (facts is None or not facts.on_request or facts.difference or found in measured):
        return found
    if found is not None or is_reference(name) or name in SCORES:
        raise ConfigError(
            f"no cell measures the score {name!r}", where=where, hint=f"evaluation: {{scores: [{found or name!r}]}}"
        )
    raise ConfigError(f"unknown score {name!r}", where=where, hint=unknown_name_hint(name, known))
