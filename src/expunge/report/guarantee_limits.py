"""Limits that follow from what methods do and guarantee, and from the records of a request."""

from __future__ import annotations

from expunge.core.outcome import describe_bound
from expunge.data.requests import describe_outside, describe_skipped
from expunge.evaluation.score import describe_shared_subjects

from .content import ReportContent
from .formatting import (
    format_list,
    format_number,
    get_score,
)
from .limit_parts import Limit, list_comparisons, name_place, shorten


def find_moved_statistics(content: ReportContent) -> list[Limit]:
    """Running statistics that mostly records of D_f moved: they are changed, and not cleaner for it."""
    models = [
        f"{model.label} ({name_place(scenario, comparison)}: {name.replace('_', ' ')} {extent.describe_source()})"
        for scenario, comparison in list_comparisons(content)
        for model in comparison.models
        if model.state is not None
        for name, extent in model.state.extents.items()
        if extent.follows_forget
    ]
    if not models:
        return []
    return [
        Limit(
            "Running statistics moved towards those of D_f.",
            "Methods that train on D_f alone in training mode replace averages over the training records by averages "
            "over the forgotten ones. The statistics are rewritten, but they depend on D_f more than before, and the "
            "outputs can change more by them than by the weights. The option batch_norm=frozen leaves them as they "
            f"were, and batch_norm=re-estimate recomputes them from D_r. Models: {format_list(shorten(models))}.",
        )
    ]


def find_weak_guarantees(content: ReportContent) -> list[Limit]:
    def labels(guarantee: str) -> list[str]:
        models = (m for _, c in list_comparisons(content) for m in c.unlearned if m.guarantee == guarantee)
        return list(dict.fromkeys(m.label for m in models))

    found = []
    if empirical := labels("empirical"):
        verb, whose = ("has", "Its") if len(empirical) == 1 else ("have", "Their")
        described = "this model" if len(empirical) == 1 else "these models"
        found.append(
            Limit(
                f"{format_list(empirical)} {verb} no guarantee.",
                f"{whose} outcome is empirical: only the measurements on this page describe {described}.",
            )
        )
    if behavioural := labels("behavioural"):
        found.append(
            Limit(
                f"A certificate of {format_list(behavioural)} covers predictions, not information.",
                "It proves what the patched network predicts inside the regions of the patched records, and nothing "
                "outside them. No information is removed: the patched model contains the original weights, and "
                "removing the patches restores the original. The file contains the activation patterns of the "
                "forgotten records, so anyone with the model can test whether a record was among them. 0 % accuracy on "
                "the forgotten records is over-forgetting: a model that was not trained on them classifies many of "
                f"them correctly, and that difference can reveal them.{_describe_attack(content)}",
            )
        )
    if conditional := labels("conditional"):
        found.append(
            Limit(
                f"The assumptions behind {format_list(conditional)} were not checked.",
                f"The certificate holds only if the assumptions do.{_describe_bounds(content)}",
            )
        )
    return found


def _describe_bounds(content: ReportContent) -> str:
    """Describe the bounds, and what they assume."""
    bounds, assumed = [], []
    for scenario, comparison in list_comparisons(content):
        for model in comparison.unlearned:
            if model.bound:
                bounds.append(f"{model.label} ({name_place(scenario, comparison)}): {describe_bound(model.bound)}")
                assumed += [text for text in model.bound.get("assumptions", ()) if text not in assumed]
    stated = f" It also assumes: {'; '.join(assumed)}." if assumed else ""
    return f" {'. '.join(shorten(bounds))}.{stated}" if bounds else ""


def _describe_attack(content: ReportContent) -> str:
    """Describe the result of the membership attack on patched models and on the retrained model."""
    parts = []
    for scenario, comparison in list_comparisons(content):
        reference = get_score(comparison.reference.scores, "MIA-Efficacy") if comparison.reference else None
        for model in comparison.unlearned:
            score = get_score(model.scores, "MIA-Efficacy")
            if model.guarantee == "behavioural" and score is not None and score.value is not None:
                place = f"{model.label} ({name_place(scenario, comparison)})"
                reference_text = (
                    "" if reference is None or reference.value is None
                    else f", of the retrained model {format_number(reference.value, reference.unit)} %"
                )  # fmt: skip
                parts.append(f"{place} {format_number(score.value, score.unit)} %{reference_text}")
    return (
        f" Fraction of D_f that the membership attack predicts to be non-members: {format_list(shorten(parts))}."
        if parts
        else ""
    )


#: Scores of a patched model's regions, and what each of them says.
_REGION_TEXT: dict[str, str] = {
    "Region nearby": "{} % of random small changes of a forgotten record stay in its region",
    "Region flips": "{} % of one-feature changes do",
    "Point only": "{} % of the regions measured contain no tried change",
    "Gates retain": "{} % of the retained records open a gate",
    "Gates test": "{} % of the test records do",
}


def find_region_limits(content: ReportContent) -> list[Limit]:
    """How far patches reach: what the run measured of its own regions, and what no run measures."""
    measured, unmeasured = [], []
    for scenario, comparison in list_comparisons(content):
        for model in comparison.unlearned:
            if model.guarantee != "behavioural":
                continue
            scores = {name: get_score(model.scores, name) for name in _REGION_TEXT}
            values = {name: format_number(s.value, s.unit) for name, s in scores.items() if s and s.value is not None}
            parts = [_REGION_TEXT[name].format(value) for name, value in values.items()]
            place = f"{model.label} ({name_place(scenario, comparison)})"
            measured += [f"{place}: {format_list(parts)}"] if parts else []
            if not {"Region nearby", "Region flips", "Point only"} & set(values):
                unmeasured.append(place)
    if not measured and not unmeasured:
        return []
    text = (
        "A patch acts on inputs that have exactly the activation pattern of a forgotten record (behind a soft gate "
        "also on inputs near them). A copy of the record with another pattern is answered as by the original; any "
        "other record with the same pattern is changed along with it. The pattern is that of one execution: near a "
        "face of the region another batch size, compiler or runtime can round to other bits, and the patch then does "
        "not act."
    )
    if measured:
        text += f" Measured in this run: {'; '.join(shorten(measured))}."
    if unmeasured:
        text += f" Not measured in this run: the regions of {format_list(shorten(unmeasured))}."
    return [Limit("A slightly changed copy of a forgotten record may still get its old label.", text)]


def find_declared_training(content: ReportContent) -> list[Limit]:
    """What somebody declared of the training of an imported model, which its retrained reference follows."""
    places: dict[tuple[str, ...], list[str]] = {}
    for scenario, comparison in list_comparisons(content):
        models = [model for model in comparison.models if model.imported] if comparison.reference is not None else []
        declared = {name for model in models for name in ("recipe", "split") if name not in model.recorded}
        if declared:
            places.setdefault(tuple(sorted(declared)), []).append(name_place(scenario, comparison))
    return [
        Limit(
            f"{format_list(declared).capitalize()} of the original {'were' if len(declared) > 1 else 'was'} declared, "
            "not recorded.",
            "Its weights were imported. If it was trained otherwise, Retrain is not what the original would be without "
            f"the forgotten records, and the gaps show that, too ({format_list(shorten(where))}).",
        )
        for declared, where in places.items()
    ]


def find_new_seeds(content: ReportContent) -> list[Limit]:
    """References that drew new initial weights and a new order of records: their gaps have the noise of the seed."""
    places = [
        name_place(s, c)
        for s, c in list_comparisons(content)
        if c.reference is not None and c.reference.options.get("seeds") == "new"
    ]
    if not places:
        return []
    return [
        Limit(
            "Retrain has other initial weights and another order of records than the original.",
            "Those of the original are not recorded, or were not asked for (option `seeds` of Retrain: `new`). It is "
            "still a model that retraining without the forgotten records could have given, but a gap to it contains "
            f"the difference of two seeds, which a noise floor estimates ({format_list(shorten(places))}).",
        )
    ]


def find_skipped(content: ReportContent) -> list[Limit]:
    lines = [
        f"{scenario.title}: {line}"
        for scenario in content.scenarios
        for line in describe_skipped(scenario.request.selection)
    ]
    if not lines:
        return []
    return [
        Limit(
            "Some of the named records were not forgotten.",
            f"They are not among the training records of this model, and the request said to skip such names: "
            f"{'; '.join(lines)}.",
        )
    ]


def find_outside(content: ReportContent) -> list[Limit]:
    lines = [
        f"{scenario.title}: {line}"
        for scenario in content.scenarios
        for line in describe_outside(scenario.request.selection)
    ]
    if not lines:
        return []
    return [
        Limit(
            "Not every record of the subjects was forgotten.",
            "Only records of the retain set can be forgotten. If the model was trained on the others, the declared "
            f"split is wrong, and it still knows them: {'; '.join(lines)}.",
        )
    ]


def find_subject_limits(content: ReportContent) -> list[Limit]:
    """Whether test records and non-members are of other subjects than D_f: what the scores counted."""
    shared, other, unknown = [], [], []
    for scenario in content.scenarios:
        by_subject, counts = scenario.request.selection.get("by") == "subjects", scenario.shared_subjects
        if counts is None:
            unknown += [scenario.title] if by_subject else []
        elif not any(counts.values()):
            other.append(scenario.title)
        elif by_subject:
            shared.append(f"{describe_shared_subjects(counts)} ({scenario.title})")
    found = []
    if other or unknown:
        found.append(
            Limit(
                "Non-members are other subjects." if other else "Non-members may be other subjects.",
                "The attack compares the forgotten subjects with subjects that the model was not trained on, so it "
                "measures differences between subjects as well as membership. Compare only the gap to Retrain.",
            )
        )
    if shared:
        found.append(
            Limit(
                "Some records of the forgotten subjects were not in training.",
                f"The model was not trained on {format_list(shared)}: there was nothing to forget of these, and the "
                "attack counts them as non-members.",
            )
        )
    return found
