"""What a report does not show: the standing limits of such measurements, then those of this report's own numbers."""

from __future__ import annotations

import dataclasses

from .content import Comparison, ModelResult, ReportContent, Scenario
from .formatting import get_score, key, listing, number, plural, score_names, signed

#: RA has to lie this many percentage points below the reference before damage is named.
DAMAGE_POINTS = 2.0


@dataclasses.dataclass(frozen=True)
class Limit:
    """One limit: a short statement and its explanation."""

    statement: str
    explanation: str


def limits(content: ReportContent) -> list[Limit]:
    """All limits of a report, the standing ones first."""
    found = _standing(content)
    for rule in (_references, _noise, _state, _guarantees, _damage, _attack, _small_sets, _selection, _missing):
        found += rule(content)
    found += [Limit(line, "") for line in content.limits]
    return found


def _standing(content: ReportContent) -> list[Limit]:
    plural_requests = len(content.scenarios) > 1
    return [
        Limit(
            "Weights cannot prove that records were forgotten.",
            "The same weights can be reached with and without a given record (arXiv 2110.11891), so looking at a model "
            "settles nothing. Only the run that produced it can be audited, and the hashes below identify that run; "
            "they do not replay it.",
        ),
        Limit(
            "The membership attack is a weak one.",
            "It draws one threshold on confidence for the whole population. An attack fitted to each record (LiRA and "
            "its kin) can recognise records that this one misses. An attack that fails is not evidence that nothing "
            "is remembered.",
        ),
        Limit(
            "One split of the data"
            + (", a few choices of what to forget." if plural_requests else ", one choice of what to forget."),
            "Other splits and other forget sets can give other gaps. Records that are rare, mislabelled or hard are "
            "remembered more than the average of a forget set says.",
        ),
        Limit(
            "Only these models were looked at.",
            "Copies, backups, earlier checkpoints, models distilled or fine-tuned from the original, cached "
            "predictions and the records themselves are outside this report.",
        ),
    ]


def _each(content: ReportContent) -> list[tuple[Scenario, Comparison]]:
    return [(scenario, comparison) for scenario in content.scenarios for comparison in scenario.comparisons]


def _place(scenario: Scenario, comparison: Comparison) -> str:
    return f"{scenario.title}, {comparison.label}"


def _references(content: ReportContent) -> list[Limit]:
    bare = [_place(s, c) for s, c in _each(content) if c.reference is None]
    if not bare:
        return []
    return [
        Limit(
            "There is no retrained model to compare with.",
            f"Without it no gap can be read, and a score alone does not say what forgetting would look like ("
            f"{listing(bare)}).",
        )
    ]


def _noise(content: ReportContent) -> list[Limit]:
    single = [_place(s, c) for s, c in _each(content) if c.reference is not None and not c.noise()]
    within = total = 0
    for _, comparison in _each(content):
        floor = comparison.noise()
        for model in comparison.unlearned:
            for name in floor:
                score = get_score(model.scores, name)
                if score is not None and score.signed_gap is not None:
                    total += 1
                    within += abs(score.signed_gap) <= floor[name]
    found = []
    if single:
        where = "" if len(single) == len(_each(content)) else f" ({listing(single)})"
        found.append(
            Limit(
                f"One seed has no spread{where}.",
                "The reference was trained once, so there is no noise floor: a gap to Retrain may be as large "
                "as the gap between two retrained models. Run several seeds before reading small gaps.",
            )
        )
    if total:
        found.append(
            Limit(
                f"{within} of {plural(total, 'gap')} lie within the noise floor.",
                "Two retrained models differ by as much on average. Such a gap shows neither a difference nor that "
                "there is none.",
            )
        )
    return found


_STATE_TEXT: dict[str, tuple[str, str]] = {
    "weights": (
        "Weights that no step changed still depend on the forgotten records.",
        "The method left them as training on all records had made them.",
    ),
    "mask": (
        "The mask still remembers.",
        "Which weights are alive was decided while the forgotten records were still there, and these models keep "
        "that choice; a mask made without those records may differ (un-pruning re-derives it).",
    ),
    "batch_norm": (
        "BatchNorm statistics still remember.",
        "Running means and variances are averages over all the original training records, the forgotten ones included.",
    ),
    "normalisation": (
        "The input constants still remember.",
        "Means and deviations of the inputs were computed from training records, the forgotten ones included.",
    ),
}


def _state(content: ReportContent) -> list[Limit]:
    holders: dict[str, list[tuple[str, Scenario, Comparison]]] = {}
    for scenario, comparison in _each(content):
        for model in comparison.models:
            for kind in model.state.still_remembers if model.state else ():
                holders.setdefault(kind, []).append((model.label, scenario, comparison))
    found = []
    for kind, hits in holders.items():
        default = (f"State that still remembers: {kind.replace('_', ' ')}.", "It was made with the forgotten records.")
        statement, explanation = _STATE_TEXT.get(kind, default)
        found.append(Limit(statement, f"{explanation} Models: {_grouped(content, hits)}."))
    references = [m for _, c in _each(content) if (m := c.reference) and m.state and "mask" in m.state.still_remembers]
    if references:
        found.append(
            Limit(
                "The reference keeps the original's mask.",
                "Retrain then starts from a choice of weights that saw the forgotten records; a reference that is "
                "pruned again without them may lie elsewhere.",
            )
        )
    return found


def _grouped(content: ReportContent, hits: list[tuple[str, Scenario, Comparison]]) -> str:
    """Models that share their places together: `FT and GA (90 % sparse)`; no place where it holds everywhere."""
    everywhere = {_place(s, c) for s, c in _each(content)}
    places: dict[str, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    for label, scenario, comparison in hits:
        places.setdefault(label, []).append(_place(scenario, comparison))
        kinds.setdefault(label, []).append(comparison.label)
    groups: dict[str, list[str]] = {}
    for label, where in places.items():
        labels = list(dict.fromkeys(kinds[label]))
        of_kind = {_place(s, c) for s, c in _each(content) if c.label in labels}
        text = "" if set(where) == everywhere else listing(labels if set(where) == of_kind else _short(where))
        groups.setdefault(text, []).append(label)
    return "; ".join(listing(labels) + (f" ({where})" if where else "") for where, labels in groups.items())


def _short(names: list[str], most: int = 6) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]


def _guarantees(content: ReportContent) -> list[Limit]:
    def labels(guarantee: str) -> list[str]:
        models = (m for _, c in _each(content) for m in c.unlearned if m.guarantee == guarantee)
        return list(dict.fromkeys(m.label for m in models))

    found = []
    if empirical := labels("empirical"):
        verb = "promises" if len(empirical) == 1 else "promise"
        found.append(
            Limit(
                f"{listing(empirical)} {verb} nothing.",
                "Their guarantee is empirical: what is known about these models is what this page measured.",
            )
        )
    if behavioural := labels("behavioural"):
        found.append(
            Limit(
                f"A certificate of {listing(behavioural)} speaks of answers, not of information.",
                "It says what the patched network answers inside the regions of the patched records, and nothing "
                "outside them. No information is removed: the original weights are inside the patched model, and "
                "whoever drops the patches has the original. The activation patterns of the forgotten records are in "
                "the file, so whoever runs the model can test whether a record was among them. 0 % accuracy on the "
                "forgotten records is over-forgetting: a model that never saw them answers many of them right, and "
                "that difference can "
                f"itself give them away.{_beside(content)}",
            )
        )
    if conditional := labels("conditional"):
        found.append(
            Limit(
                f"The assumptions behind {listing(conditional)} were not checked.",
                "The certificate holds only where they do.",
            )
        )
    return found


def _beside(content: ReportContent) -> str:
    """The membership attack on patched models beside that on the retrained one."""
    parts = []
    for scenario, comparison in _each(content):
        reference = get_score(comparison.reference.scores, "MIA-Efficacy") if comparison.reference else None
        for model in comparison.unlearned:
            score = get_score(model.scores, "MIA-Efficacy")
            if model.guarantee == "behavioural" and score is not None and score.value is not None:
                place = f"{model.label} ({_place(scenario, comparison)})"
                beside = (
                    "" if reference is None or reference.value is None
                    else f", of the retrained model {number(reference.value, reference.unit)} %"
                )  # fmt: skip
                parts.append(f"{place} {number(score.value, score.unit)} %{beside}")
    return f" Share of D_f that the membership attack calls non-members: {listing(_short(parts))}." if parts else ""


def _damage(content: ReportContent) -> list[Limit]:
    hurt = []
    for scenario, comparison in _each(content):
        floor = max((value for name, value in comparison.noise().items() if key(name) == "ra"), default=0.0)
        for model in comparison.unlearned:
            score = get_score(model.scores, "RA")
            gap = None if score is None or score.unit != "%" else score.signed_gap
            if gap is not None and -gap > max(DAMAGE_POINTS, floor):
                hurt.append(f"{model.label} ({_place(scenario, comparison)}: {signed(gap, '%')} points)")
    if not hurt:
        return []
    return [
        Limit(
            "Part of what looks like forgetting may be general damage.",
            "Accuracy on records that were to stay fell as well, and that alone raises UA and MIA-Efficacy, without "
            f"any forgetting of these records in particular. RA against Retrain: {listing(_short(hurt))}.",
        )
    ]


def _attack(content: ReportContent) -> list[Limit]:
    below, around, whole = [], 0, 0
    for scenario, comparison in _each(content):
        for model in comparison.unlearned:
            score = get_score(model.scores, "AUC")
            if score is None or score.interval is None:
                continue
            whole += 1
            reference = get_score(comparison.reference.scores, "AUC") if comparison.reference else None
            usual = 0.5 if reference is None or reference.value is None else min(0.5, reference.value)
            if score.interval[1] < usual:
                below.append(f"{model.label} ({_place(scenario, comparison)})")
            elif score.interval[0] <= 0.5 <= score.interval[1]:
                around += 1
    found = []
    if around:
        found.append(
            Limit(
                f"{around} of {plural(whole, 'interval')} of the AUC {'includes' if around == 1 else 'include'} 0.5.",
                "That says that this attack, on this many records, cannot tell forgotten from unseen records. It does "
                "not say that no attack can.",
            )
        )
    if below:
        found.append(
            Limit(
                "An AUC below 0.5 is not better forgetting.",
                "There the model is less sure of the forgotten records than of records it never saw, and less so than "
                f"Retrain; that sets them apart just as well: {listing(_short(below))}.",
            )
        )
    return found


def _small_sets(content: ReportContent) -> list[Limit]:
    small = [s for s in content.scenarios if 0 < s.request.records < 200]
    if not small:
        return []
    worth = listing(f"{number(100 / s.request.records, '%')} points ({s.title})" for s in small)
    return [
        Limit(
            "The forget set is small." if len(small) == 1 else "The forget sets are small.",
            f"A single record moves UA and MIA-Efficacy by {worth}.",
        )
    ]


def _selection(content: ReportContent) -> list[Limit]:
    found = []
    kinds = {s.request.selection.get("by"): s for s in content.scenarios}
    if "class" in kinds or any(s.request.forgotten_class is not None for s in content.scenarios):
        found.append(
            Limit(
                "Forgetting a class is easy to fake.",
                "A model that merely never answers with that class scores 100 % UA. The forgotten class is also left "
                "out of the test records behind TA.",
            )
        )
    if "subjects" in kinds:
        found.append(
            Limit(
                "Non-members are other persons.",
                "The attack compares the forgotten person with people the model never met, so its level mixes "
                "membership with differences between persons; only the gap to Retrain can be read.",
            )
        )
    return found


def _missing(content: ReportContent) -> list[Limit]:
    absent: dict[str, list[str]] = {}
    for scenario, comparison in _each(content):
        for name in score_names(scenario.models()):
            for model in comparison.models:
                if _lacks(model, name):
                    absent.setdefault(name, []).append(f"{model.label} ({_place(scenario, comparison)})")
    if not absent:
        return []
    lines = "; ".join(f"{name} of {listing(_short(models, 3))}" for name, models in absent.items())
    return [Limit("Some scores are missing.", f"The table says why in each cell: {lines}.")]


def _lacks(model: ModelResult, name: str) -> bool:
    score = get_score(model.scores, name)
    by_nature = model.role != "unlearned" and name.casefold().startswith("disparity")
    return not by_nature and (score is None or score.value is None)
