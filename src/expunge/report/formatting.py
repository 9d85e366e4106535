"""Formatting of the report's numbers, score names and phrases."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from expunge.core.registry import MODELS, SOURCES, find_title
from expunge.data.requests import describe_outside
from expunge.evaluation.facts import ScoreFacts, built_in_facts, score_facts

from .content import LEFT_OUT, ModelResult, ReportContent, RequestSummary, Scenario
from .values import ReportScore, as_finite

_BACKDOOR = ("patch", "target")
MINUS, DASH, NARROW = "\u2212", "\u2013", "\u202f"


def normalise_name(name: str) -> str:
    """Remove case and punctuation from a score's name, so that `MIA-Efficacy` and `mia_efficacy` share a column."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


@functools.cache
def _spellings() -> Mapping[str, ScoreFacts]:
    """The facts of the built-in scores, by every spelling of their names without case and punctuation."""
    facts = built_in_facts().values()
    return {normalise_name(name): one for one in facts for name in (*one.aliases, one.name)}


def find_facts(name: str) -> ScoreFacts:
    """The facts of a score in the content of a report, in whatever spelling; defaults for an unknown one."""
    return _spellings().get(normalise_name(name)) or score_facts(name)


def column_key(name: str) -> str:
    """What all spellings of a score's name share."""
    return normalise_name(find_facts(name).name)


def format_number(value: float | None, unit: str = "") -> str:
    """Format a number with decimals that depend on its unit; an en dash for None, NaN and infinity."""
    number = as_finite(value)
    if number is None:
        return DASH
    cost = 2 if abs(number) < 1 else 1 if abs(number) < 100 else 0
    digits = {"%": 2, "": 3, "nats": 4, "passes": cost, "s": cost}.get(unit, 2)
    text = f"{number:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def format_interval_end(value: float, unit: str) -> str:
    """Format an end of an interval; in %, with one decimal."""
    if unit != "%":
        return format_number(value, unit)
    return f"{value + 0.0:.1f}".replace("-", MINUS)


def format_signed(value: float | None, unit: str = "") -> str:
    """Format a difference with a plus or minus sign; zero has no sign."""
    text = format_number(value, unit)
    if value is None or text == DASH or float(text.replace(MINUS, "-")) == 0:
        return text
    return text if text.startswith(MINUS) else f"+{text}"


def format_count(value: int) -> str:
    """Format an integer with narrow spaces between thousands, from five digits on."""
    return f"{value:,}".replace(",", NARROW) if abs(value) >= 10_000 else str(value)


def pluralise(value: int, word: str, many: str | None = None) -> str:
    """Format a count with its noun: `1 record`, `2 records`."""
    return f"{format_count(value)} {word if value == 1 else many or word + 's'}"


def format_list(items: Iterable[str], last: str = "and") -> str:
    """Join items: `a`, `a and b`, `a, b and c`."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def order_score_names(models: Iterable[ModelResult]) -> list[str]:
    """The names of all scores of the models, in the order of the columns; of several spellings the first."""
    found: dict[str, str] = {}
    for model in models:
        for name in model.scores:
            if find_facts(name).table != "cost":
                found.setdefault(column_key(name), name)
    facts = {name: find_facts(name) for name in found.values()}
    main = sorted((name for name in facts if facts[name].table == "main"), key=lambda name: facts[name].order)
    last = [name for name in main if facts[name].averages]
    first = [name for name in main if name not in last]
    return [*first, *(name for name in facts if facts[name].table != "main"), *last]


def select_further_names(names: Iterable[str]) -> list[str]:
    """Select the scores that only some methods have (patches, topology); they have a separate table."""
    return [name for name in names if find_facts(name).table != "main"]


def get_score(scores: Mapping[str, ReportScore], name: str) -> ReportScore | None:
    """The score of that name, in whatever spelling; None if there is none."""
    return next((score for other, score in scores.items() if column_key(other) == column_key(name)), None)


def get_cost(model: ModelResult, name: str, otherwise: float | None) -> float | None:
    """The cost of a model: the score of that name, else `otherwise`."""
    score = get_score(model.scores, name)
    return otherwise if score is None or score.value is None else score.value


def describe_selection(request: RequestSummary, class_names: tuple[str, ...] = ()) -> str:
    """Describe how the forget set was selected."""
    chosen = request.selection
    selection_type = chosen.get("by", "ids")
    if selection_type == "random":
        seed = f", seed {chosen['seed']}" if "seed" in chosen else ""
        if as_finite(chosen.get("fraction")) is not None:
            return f"{100 * float(chosen['fraction']):g} % of the training records, drawn at random{seed}"
        return f"training records drawn at random{seed}"
    if selection_type == "class":
        name = chosen.get("name")
        index = chosen.get("index", request.forgotten_class)
        if name is None and isinstance(index, int) and 0 <= index < len(class_names):
            name = class_names[index]
        return f"every training record of class {name if name is not None else index}"
    if selection_type == "subjects":
        subjects = chosen.get("subjects", ())
        more = "".join(f" ({line})" for line in describe_outside(chosen))
        if isinstance(subjects, int):
            return f"every training record of {pluralise(subjects, 'subject')}{more}"
        subjects = list(subjects)
        shown = ", ".join(map(str, subjects[:5])) + (f" and {len(subjects) - 5} more" if len(subjects) > 5 else "")
        return f"every training record of {pluralise(len(subjects), 'subject')}: {shown}{more}"
    if selection_type == "column":
        value = chosen.get("value")
        named = "true" if value is None else "the requested value" if value == LEFT_OUT else repr(value)
        return f"training records whose column {chosen.get('column')} is {named}"
    if selection_type == "ids":
        return f"record ids listed in {chosen['file']}" if "file" in chosen else "record ids given explicitly"
    if selection_type == "correct":
        how = f"listed in {chosen['file']}" if "file" in chosen else "given explicitly"
        if "columns" in chosen:
            return f"record ids {how}; blanked columns: {format_list(map(str, chosen['columns']))}"
        return f"new labels of record ids {how}"
    if selection_type == "memorised":
        return "the most memorised training records, ranked by an ensemble"
    if selection_type == "memorisation-stratum":
        drawn = " (drawn from it)" if "count" in chosen or "fraction" in chosen else ""
        return f"the third of the training records with {chosen.get('stratum')} memorisation{drawn}"
    if selection_type == "backdoor":
        patch, target = (dict(found) if isinstance(found, Mapping) else {} for found in map(chosen.get, _BACKDOOR))
        return f"poisoned with a patch of {patch.get('size')} pixels a side, labelled {target.get('name')}"
    if selection_type == "canaries":
        return "planted with wrong labels"
    if selection_type == "look-alikes":
        return f"random records; near copies of each that stay: {chosen.get('copies')}"
    return ", ".join(f"{k} {v}" for k, v in chosen.items())


def describe_content(content: ReportContent) -> str:
    """Describe what was done in one sentence, without a verdict."""
    if content.summary:
        return content.summary
    scenarios = content.scenarios
    methods = list(dict.fromkeys(m.label for s in scenarios for c in s.comparisons for m in c.unlearned))
    labels = list(dict.fromkeys(c.label for s in scenarios for c in s.comparisons))
    model = describe_model(content) or "the model"
    requests = format_list(_describe_request(scenario) for scenario in scenarios)
    how = f" with {format_list(methods)}" if methods else ""
    comparisons = [c for s in scenarios for c in s.comparisons]
    references = [max([c.references, 1, *(s.seeds for s in c.reference.scores.values())])
                  for c in comparisons if c.reference is not None]  # fmt: skip
    results = "results are" if sum(len(c.unlearned) for c in comparisons) > 1 else "result is"
    retrained = "models" if sum(references) > 1 else "a model"
    against = f"; the {results} compared with {retrained} retrained without those records" if references else ""
    return f"{model[0].upper()}{model[1:]}: unlearned {requests}{how} ({format_list(labels)}){against}."


def describe_model(content: ReportContent) -> str:
    """Name model and data by their titles (`Small CNN, Fashion-MNIST`); empty if the content names neither."""
    model = find_title(MODELS, content.architecture) if content.architecture else ""
    data = find_title(SOURCES, content.data) if content.data else ""
    return ", ".join(part for part in (model, data) if part)


def describe_title(request: RequestSummary, class_names: tuple[str, ...] = ()) -> str:
    """Describe a request in a few words, as the title of its scenario: `5 % random records`, `Class cat`."""
    chosen = request.selection
    kind = chosen.get("by", "ids")
    if kind == "random" and (fraction := as_finite(chosen.get("fraction"))) is not None:
        return f"{100 * fraction:g} % random records"
    if kind == "class":
        return f"Class {describe_selection(request, class_names).removeprefix('every training record of class ')}"
    words = {"random": "random", "memorised": "memorised", "ids": "listed", "correct": "corrected"}
    words |= {"backdoor": "poisoned", "canaries": "mislabelled", "look-alikes": "random"}
    if kind in words:
        return f"{format_count(request.records)} {words[kind]} record{'' if request.records == 1 else 's'}"
    subjects = chosen.get("subjects")
    if kind == "subjects" and isinstance(subjects, (int, list, tuple)):
        return pluralise(subjects if isinstance(subjects, int) else len(subjects), "subject")
    if kind == "column":
        return f"Records by column {chosen.get('column')}"
    return f"Records by {kind}"


def _describe_request(scenario: Scenario) -> str:
    chosen = describe_selection(scenario.request, scenario.class_names)
    return f"{pluralise(scenario.request.records, 'record')} ({chosen})"
