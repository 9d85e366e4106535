"""The section "What this does not show": limits of every report, then limits that follow from this report's content."""

from __future__ import annotations

from expunge.data.quality import describe_copies

from .content import Comparison, ModelResult, ReportContent, Scenario
from .formatting import (
    column_key,
    find_facts,
    format_list,
    format_number,
    format_signed,
    get_score,
    order_score_names,
    pluralise,
)
from .guarantee_limits import (
    find_declared_training,
    find_moved_statistics,
    find_new_seeds,
    find_outside,
    find_region_limits,
    find_skipped,
    find_subject_limits,
    find_weak_guarantees,
)
from .limit_parts import Limit, list_comparisons, name_place, shorten

#: RA has to be this many percentage points below the reference for a warning about general damage.
DAMAGE_POINTS = 2.0


def list_limits(content: ReportContent) -> list[Limit]:
    """List the limits of a report: those of every report, those of its content, and those given by the caller."""
    found = _list_standing_limits(content)
    rules = (
        _find_missing_references,
        find_declared_training,
        find_new_seeds,
        _find_noise,
        _find_dependent_state,
        find_moved_statistics,
        _find_stored_state,
        find_weak_guarantees,
        find_region_limits,
        _find_damage,
        _find_attack_limits,
        _find_small_sets,
        find_skipped,
        find_outside,
        _find_copies,
        _find_selection_limits,
        find_subject_limits,
        _find_missing_scores,
    )
    for rule in rules:
        found += rule(content)
    found += [Limit(line, "") for line in content.limits]
    return found


def _list_standing_limits(content: ReportContent) -> list[Limit]:
    several_requests = len(content.scenarios) > 1
    return [
        Limit(
            "Weights cannot prove that records were forgotten.",
            "The same weights can result from training with and without a given record (arXiv 2110.11891), so "
            "inspecting a model is no proof. Only the run that produced it can be audited. The hashes below identify "
            "that run but do not reproduce it.",
        ),
        Limit(
            "The membership attack is weak.",
            "It uses one confidence threshold for all records. An attack that is fitted to each record (such as LiRA) "
            "can find members that this one misses. A failed attack does not show that the records have no influence.",
        ),
        Limit(
            "One split of the data" + (", a few forget sets." if several_requests else ", one forget set."),
            "Other splits and other forget sets can give other gaps. Rare, mislabelled or hard records are memorised "
            "more than the average over a forget set shows.",
        ),
        Limit(
            "Only these models were evaluated.",
            "This report does not cover copies, backups, earlier checkpoints, models distilled or fine-tuned from the "
            "original, cached predictions, or the records themselves.",
        ),
    ]


def _find_missing_references(content: ReportContent) -> list[Limit]:
    missing = [name_place(s, c) for s, c in list_comparisons(content) if c.reference is None]
    if not missing:
        return []
    return [
        Limit(
            "There is no retrained model to compare with.",
            f"Without a reference there are no gaps, and the score of a model without the forgotten records is unknown "
            f"({format_list(missing)}).",
        )
    ]


def _find_noise(content: ReportContent) -> list[Limit]:
    single = [
        name_place(s, c) for s, c in list_comparisons(content) if c.reference is not None and not c.noise_floors()
    ]
    within = total = 0
    for _, comparison in list_comparisons(content):
        floor = comparison.noise_floors()
        for model in comparison.unlearned:
            for name in floor:
                score = get_score(model.scores, name)
                if score is not None and score.signed_gap is not None:
                    total += 1
                    within += abs(score.signed_gap) <= floor[name]
    found = []
    if single:
        where = "" if len(single) == len(list_comparisons(content)) else f" ({format_list(single)})"
        found.append(
            Limit(
                f"There is only one seed, so no noise floor{where}.",
                "The reference was trained once. A gap to Retrain may be as large as the difference between two "
                "retrained models. Run several seeds before interpreting small gaps.",
            )
        )
    if total:
        found.append(
            Limit(
                f"{within} of {pluralise(total, 'gap')} lie within the noise floor.",
                "Two retrained models differ by as much on average. Such a gap shows neither that there is a "
                "difference nor that there is none. A larger gap is not yet evidence of a difference: the floor is a "
                "mean, and differences of pure noise often exceed it.",
            )
        )
    return found


_STATE_TEXT: dict[str, tuple[str, str]] = {
    "weights": (
        "The weights are unchanged since training on D_f.",
        "They were trained on the forgotten records, and the method did not change them.",
    ),
    "mask": (
        "The mask is unchanged since training on D_f.",
        "The kept weights were selected with the forgotten records, and the method did not recompute the mask (it may "
        "have pruned further weights). A mask made without those records may differ (un-pruning recomputes it).",
    ),
    "batch_norm": (
        "The BatchNorm statistics are unchanged since training on D_f.",
        "Running means and variances are averages over all original training records, including the forgotten ones.",
    ),
    "buffers": (
        "Custom running statistics are unchanged since training on D_f.",
        "Forward passes in training changed these tensors, so they "
        "depend on all original training records, including the forgotten ones.",
    ),
    "normalisation": (
        "The normalisation statistics are unchanged since training on D_f.",
        "Mean and standard deviation of the inputs were computed from training records, including the forgotten ones.",
    ),
}


def _find_dependent_state(content: ReportContent) -> list[Limit]:
    models_by_state: dict[str, list[tuple[str, Scenario, Comparison]]] = {}
    for scenario, comparison in list_comparisons(content):
        for model in comparison.models:
            for name in model.state.carried if model.state else ():
                models_by_state.setdefault(name, []).append((model.label, scenario, comparison))
    found = []
    for name, models in models_by_state.items():
        default = (
            f"Other state is unchanged since training on D_f: {name.replace('_', ' ')}.",
            "It was made with the forgotten records.",
        )
        statement, explanation = _STATE_TEXT.get(name, default)
        found.append(Limit(statement, f"{explanation} Models: {_group_models(content, models)}."))
    references = [
        m for _, c in list_comparisons(content) if (m := c.reference) and m.state and "mask" in m.state.carried
    ]
    if references:
        found.append(
            Limit(
                "The reference has the original's mask.",
                "Retrain then starts from a mask that was made with the forgotten records. A reference that is "
                "re-pruned without them may have other scores.",
            )
        )
    return found


def _find_stored_state(content: ReportContent) -> list[Limit]:
    """State that models no longer have, or have recomputed, and that the originals' entries still hold."""
    states = [m.state for _, c in list_comparisons(content) for m in c.models if m.role != "original" and m.state]
    gone = {name for state in states for name in (*state.dropped, *state.rewrote)} - {"initial_weights"}
    held = {place: [name for name in names if name in gone] for place, names in content.stored.items()}
    places = [f"{place} ({format_list(n.replace('_', ' ') for n in names)})" for place, names in held.items() if names]
    if not places:
        return []
    return [
        Limit(
            "What the methods dropped is still stored with the originals.",
            "A method removes such state from the unlearned model, or recomputes it, but not from the original. These "
            f"entries of the store still hold what was made with the forgotten records: {'; '.join(places)}. They hold "
            "the original's weights too.",
        )
    ]


def _group_models(content: ReportContent, models: list[tuple[str, Scenario, Comparison]]) -> str:
    """Group models by where the limit applies: `FT and GA (90 % sparse)`; no place if it applies everywhere."""
    all_places = {name_place(s, c) for s, c in list_comparisons(content)}
    places: dict[str, list[str]] = {}
    comparison_labels: dict[str, list[str]] = {}
    for label, scenario, comparison in models:
        places.setdefault(label, []).append(name_place(scenario, comparison))
        comparison_labels.setdefault(label, []).append(comparison.label)
    groups: dict[str, list[str]] = {}
    for label, where in places.items():
        labels = list(dict.fromkeys(comparison_labels[label]))
        of_labels = {name_place(s, c) for s, c in list_comparisons(content) if c.label in labels}
        text = "" if set(where) == all_places else format_list(labels if set(where) == of_labels else shorten(where))
        groups.setdefault(text, []).append(label)
    return "; ".join(format_list(labels) + (f" ({where})" if where else "") for where, labels in groups.items())


def _find_damage(content: ReportContent) -> list[Limit]:
    damaged = []
    for scenario, comparison in list_comparisons(content):
        floor = max(
            (value for name, value in comparison.noise_floors().items() if column_key(name) == "ra"), default=0.0
        )
        for model in comparison.unlearned:
            score = get_score(model.scores, "RA")
            gap = None if score is None or score.unit != "%" else score.signed_gap
            if gap is not None and -gap > max(DAMAGE_POINTS, floor):
                damaged.append(f"{model.label} ({name_place(scenario, comparison)}: {format_signed(gap, '%')} points)")
    if not damaged:
        return []
    return [
        Limit(
            "Part of the measured forgetting may be general damage.",
            "Accuracy on the retain set fell as well. That alone raises UA and MIA-Efficacy, without any effect that "
            f"is specific to the forgotten records. Gap of RA to Retrain: {format_list(shorten(damaged))}.",
        )
    ]


def _find_attack_limits(content: ReportContent) -> list[Limit]:
    below, around, total = [], 0, 0
    for scenario, comparison in list_comparisons(content):
        for model in comparison.unlearned:
            score = get_score(model.scores, "AUC")
            if score is None or score.interval is None:
                continue
            total += 1
            reference = get_score(comparison.reference.scores, "AUC") if comparison.reference else None
            expected_auc = 0.5 if reference is None or reference.value is None else min(0.5, reference.value)
            if score.interval[1] < expected_auc:
                below.append(f"{model.label} ({name_place(scenario, comparison)})")
            elif score.interval[0] <= 0.5 <= score.interval[1]:
                around += 1
    found = []
    if around:
        verb = "includes" if around == 1 else "include"
        found.append(
            Limit(
                f"{around} of {pluralise(total, 'interval')} of the AUC {verb} 0.5.",
                "With this number of records, this attack cannot separate forgotten records from non-members. Another "
                "attack may.",
            )
        )
    if below:
        found.append(
            Limit(
                "An AUC below 0.5 is not better forgetting.",
                "The model has lower confidence in the forgotten records than in non-members, and lower than Retrain "
                f"has. That makes them recognisable as well: {format_list(shorten(below))}.",
            )
        )
    return found


def _find_small_sets(content: ReportContent) -> list[Limit]:
    small = [s for s in content.scenarios if 0 < s.request.records < 200]
    if not small:
        return []
    effects = format_list(f"{format_number(100 / s.request.records, '%')} points ({s.title})" for s in small)
    return [
        Limit(
            "The forget set is small." if len(small) == 1 else "The forget sets are small.",
            f"A single record changes UA and MIA-Efficacy by {effects}.",
        )
    ]


def _find_copies(content: ReportContent) -> list[Limit]:
    lines = {
        f"{scenario.title}: {line}": None
        for scenario in content.scenarios
        for copies in scenario.copies
        for line in describe_copies(copies)
    }
    if not lines:
        return []
    return [
        Limit(
            "Copies of forgotten records remain.",
            "Records that are equal or nearly equal to forgotten ones have other ids and were not forgotten. Both the "
            "unlearned and the retrained model learned from those in the retain set, so what they know about these "
            "forgotten records is not gone; copies in the non-member pool make the attack compare records with "
            f"themselves. Counted: {'; '.join(lines)}. A near copy is nearer than a fifth of the usual distance of a "
            "retained record to the nearest other one.",
        )
    ]


def _find_selection_limits(content: ReportContent) -> list[Limit]:
    found = []
    selection_types = {s.request.selection.get("by") for s in content.scenarios}
    if "class" in selection_types or any(s.request.forgotten_class is not None for s in content.scenarios):
        found.append(
            Limit(
                "Forgetting a class is easy to imitate.",
                "A model that never predicts the class has a UA of 100 %. The forgotten class is also excluded from "
                "the test records of TA.",
            )
        )
    if "correct" in selection_types:
        found.append(
            Limit(
                "Corrected records stay in the training set.",
                "Both the unlearned and the retrained model learn their new values. UA and the attacks are measured on "
                "their old values; where only a label or a few features differ, the old values are close to what the "
                "model was trained on last, and an attack on them can succeed for a retrained model too. Compare only "
                "the gap to Retrain.",
            )
        )
    return found


def _find_missing_scores(content: ReportContent) -> list[Limit]:
    absent: dict[str, list[str]] = {}
    for scenario, comparison in list_comparisons(content):
        for name in order_score_names(scenario.models()):
            for model in comparison.models:
                if _lacks(model, name):
                    absent.setdefault(name, []).append(f"{model.label} ({name_place(scenario, comparison)})")
    if not absent:
        return []
    lines = "; ".join(f"{name} of {format_list(shorten(models, 3))}" for name, models in absent.items())
    return [Limit("Some scores are missing.", f"Each cell of the table gives the reason: {lines}.")]


def _lacks(model: ModelResult, name: str) -> bool:
    score = get_score(model.scores, name)
    expected = model.role != "unlearned" and bool(find_facts(name).averages)
    return not expected and (score is None or score.value is None)
