"""Numbers and phrases of the report: one place decides how a number, a gap or a selection reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .content import ModelResult, ReportContent, Request, Scenario, Score, finite

MINUS, DASH, NARROW = "\u2212", "\u2013", "\u202f"

#: Order of the score columns; names that are not here follow in the order in which the content has them.
COLUMNS = ("ua", "100ra", "ra", "ta", "miaefficacy", "miaprivacy", "auc", "tprat1fpr")
#: Scores that stand last, before the cost.
LAST = ("disparity", "disparityaverage", "disparityave")
#: Scores that the columns `Passes` and `Time` show.
PASSES, SECONDS = ("passes",), ("rte", "seconds")

DIRECTIONS: dict[str, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "reference": "nearer to Retrain is better",
}

GUARANTEES: dict[str, str] = {
    "exact": "equal to retraining by construction",
    "certified": "indistinguishable from retraining up to (epsilon, delta)",
    "conditional": "certified under stated assumptions that nobody checked",
    "behavioural": "proved output on a region of inputs",
    "empirical": "promises nothing; its effect was measured",
}


def key(name: str) -> str:
    """A score's name without case and punctuation: `MIA-Efficacy` and `mia_efficacy` are one column."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def number(value: float | None, unit: str = "") -> str:
    """A number with the digits that its unit deserves; an en dash where there is none."""
    number = finite(value)
    if number is None:
        return DASH
    cost = 2 if abs(number) < 1 else 1 if abs(number) < 100 else 0
    digits = {"%": 2, "": 3, "passes": cost, "s": cost}.get(unit, 2)
    text = f"{number:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def interval_end(value: float, unit: str) -> str:
    """An end of an interval: per cent with one digit fewer than the value between them."""
    if unit != "%":
        return number(value, unit)
    return f"{value + 0.0:.1f}".replace("-", MINUS)


def signed(value: float | None, unit: str = "") -> str:
    """A difference with its sign: a plus or a true minus; zero has none."""
    text = number(value, unit)
    if value is None or text == DASH or float(text.replace(MINUS, "-")) == 0:
        return text
    return text if text.startswith(MINUS) else f"+{text}"


def count(value: int) -> str:
    """An integer with narrow spaces between thousands, from five digits on."""
    return f"{value:,}".replace(",", NARROW) if abs(value) >= 10_000 else str(value)


def plural(value: int, word: str, many: str | None = None) -> str:
    """`1 record`, `2 records`."""
    return f"{count(value)} {word if value == 1 else many or word + 's'}"


def listing(items: Iterable[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def score_names(models: Iterable[ModelResult]) -> list[str]:
    """Every score that any model has, in the order of the table's columns (one spelling a score, the first)."""
    found: dict[str, str] = {}
    for model in models:
        for name in model.scores:
            if key(name) not in (*PASSES, *SECONDS):
                found.setdefault(key(name), name)
    known = [found[k] for k in COLUMNS if k in found]
    last = [found[k] for k in LAST if k in found]
    return [*known, *(n for k, n in found.items() if k not in (*COLUMNS, *LAST)), *last]


def further_names(names: Iterable[str]) -> list[str]:
    """The scores that only some methods have (of patches, of topologies): they get a table of their own."""
    return [name for name in names if key(name) not in (*COLUMNS, *LAST)]


def get_score(scores: Mapping[str, Score], name: str) -> Score | None:
    """The score of that name, whatever its spelling."""
    return next((score for other, score in scores.items() if key(other) == key(name)), None)


def spent(model: ModelResult, names: tuple[str, ...], otherwise: float | None) -> float | None:
    """What a model cost: the score of one of these names (a mean over seeds, maybe), else the method's own count."""
    scores = [score for name in names if (score := get_score(model.scores, name)) is not None]
    return next((score.value for score in scores if score.value is not None), otherwise)


def selection(request: Request, class_names: tuple[str, ...] = ()) -> str:
    """How the forget set was chosen, as a phrase."""
    chosen = request.selection
    kind = chosen.get("by", "ids")
    if kind == "random":
        seed = f", seed {chosen['seed']}" if "seed" in chosen else ""
        if finite(chosen.get("fraction")) is not None:
            return f"{100 * float(chosen['fraction']):g} % of the training records, drawn at random{seed}"
        return f"training records drawn at random{seed}"
    if kind == "class":
        name = chosen.get("name")
        index = chosen.get("index", request.forgotten_class)
        if name is None and isinstance(index, int) and 0 <= index < len(class_names):
            name = class_names[index]
        return f"every training record of class {name if name is not None else index}"
    if kind == "subjects":
        subjects = [str(subject) for subject in chosen.get("subjects", ())]
        shown = ", ".join(subjects[:5]) + (f" and {len(subjects) - 5} more" if len(subjects) > 5 else "")
        return f"every training record of {plural(len(subjects), 'subject')}: {shown}"
    if kind == "column":
        return f"training records whose column {chosen.get('column')} is true"
    if kind == "ids":
        return f"record ids listed in {chosen['file']}" if "file" in chosen else "record ids given one by one"
    return ", ".join(f"{k} {v}" for k, v in chosen.items())


def summary(content: ReportContent) -> str:
    """One sentence that says what was done, without a verdict."""
    if content.summary:
        return content.summary
    scenarios = content.scenarios
    methods = list(dict.fromkeys(m.label for s in scenarios for c in s.comparisons for m in c.unlearned))
    kinds = list(dict.fromkeys(c.label for s in scenarios for c in s.comparisons))
    model = content.architecture or "the model"
    model += f", trained on {content.data}," if content.data else ""
    asked = listing(_request_phrase(scenario) for scenario in scenarios)
    how = f" with {listing(methods)}" if methods else ""
    compared = any(c.reference for s in scenarios for c in s.comparisons)
    against = "; the results stand beside models retrained without those records" if compared else ""
    return f"{model[0].upper()}{model[1:]} was made to forget {asked}{how} ({listing(kinds)}){against}."


def _request_phrase(scenario: Scenario) -> str:
    return f"{plural(scenario.request.records, 'record')} ({selection(scenario.request, scenario.class_names)})"
