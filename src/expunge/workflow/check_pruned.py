"""Findings of `check` about pruning, and about an imported model: its training, its file, its mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import MaskError, TrustError, with_article
from expunge.core.show import plural

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.mask import Mask
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Finding
    from expunge.sparsity import ImportedModel, Pruning, Rule
    from expunge.training import Runtime


def inspect_training(trained: Trained, records: Records, runtime: Runtime) -> list[Finding]:
    """About an imported model: its recipe and split are only declared; a warning if it answers as if untrained.

    Args:
        trained: the model.
        records: the records of its split.
        runtime: the device to run it on.
    """
    from expunge.evaluation.registry.reference_checks import find_import, sample_training_accuracy
    from expunge.models import Finding

    declared = "configure the recipe and the split with which it was trained; split.file reads a saved split"
    answers = "compare the order of the classes (class_names), the preparation of the records, and the weights file"
    found = []
    if find_import(trained):
        message = "the weights are imported: recipe and split are declared, not recorded"
        found.append(Finding("ok", "model", message, declared))
    warnings = sample_training_accuracy(trained, records, runtime)
    return found + [Finding("warning", "model", warning.message, answers) for warning in warnings]


def describe_choice(pruning: Pruning) -> str:
    """What is chosen by name in the section `sparsity`."""
    from expunge.sparsity import get_granularity

    scope = get_granularity(pruning.granularity).record_scope(pruning.scope)
    return (
        f"criterion {pruning.criterion}, granularity {pruning.granularity}, scope {scope}, "
        f"schedule {pruning.schedule}, layers {' and '.join(pruning.layers)}"
    )


def inspect_pruned_model(trained: Trained, imported: ImportedModel) -> list[Finding]:
    """Findings about the mask of an imported model: its format, and what un-pruning and export need.

    Zeros that are not declared as a mask are reported by `describe_model`.

    Args:
        trained: the model.
        imported: what was found in its file.
    """
    from expunge.models import Finding
    from expunge.sparsity import recorded_granularity, rule_of
    from expunge.sparsity.interop.formats import count_pruned_channels
    from expunge.sparsity.masks.granularity import obeys_pattern

    mask = trained.mask
    if mask is None:
        return [Finding("ok", "mask", f"none: {imported.describe()}")]
    found = [Finding("ok", "mask", imported.describe(), "pruned weights stay +0.0 in every method and every file")]
    found += _find_doubtful_zeros(mask)
    try:
        rule = rule_of(mask)
        found += _inspect_rule(mask, rule, trained.model)
    except (MaskError, TrustError) as error:
        hint = "declare it, for example model.pruned={criterion: magnitude, scope: global, layers: [conv, linear]}"
        message = f"{error.what}: Un-prune would stop with an error, other methods keep the mask"
        found.append(Finding("warning", "mask", message, hint))
    empty = [name for name, kept in mask.kept.items() if kept.dim() > 1 and not kept.any()]
    if empty:
        message = f"every weight of {empty[0]} is pruned ({len(empty)} such layers): its output is its bias"
        found.append(Finding("warning", "mask", message))
    if recorded_granularity(mask.provenance).whole_channels:
        try:
            count = count_pruned_channels(trained.model, mask, _shape(trained))
            found.append(Finding("ok", "mask", f"{count} coupled channels can be removed physically (sparsity.shrink)"))
        except MaskError as error:
            found.append(Finding("warning", "mask", f"no channel can be removed physically: {error.what}"))
    elif all(obeys_pattern(kept, 2, 4) for kept in mask.kept.values() if kept.dim() > 1):
        count = sum(kept.dim() > 1 for kept in mask.kept.values())
        message = (
            f"2:4 holds in {plural(count, 'tensor')}: they can be exported as semi-structured sparse tensors (CUDA)"
        )
        found.append(Finding("ok", "mask", message))
    return found


def inspect_pruning(pruning: Pruning) -> list[Finding]:
    """Describe how a model would be pruned, and report what has no effect."""
    from expunge.models.inspect import Finding
    from expunge.sparsity import get_schedule

    schedule = get_schedule(pruning.schedule)
    found = [Finding("ok", "sparsity", describe_choice(pruning))]
    if pruning.keep_weights and schedule.scores_initial_weights:
        message = f"keep_weights has no effect: the weights that {schedule.name} ranks are recomputed from their seed"
        found.append(Finding("warning", "sparsity", message))
    return found


def _find_doubtful_zeros(mask: Mask) -> list[Finding]:
    """Findings about zeros that were read as a mask although they may not be pruned, or the reverse."""
    from expunge.models import Finding

    found, details = [], mask.provenance.details
    if rounded := details.get("rounded_zeros"):
        message = (
            f"the weights are {rounded.get('dtype')}, in which weights below {rounded['below']:.1g} are 0 too: they "
            f"count as pruned (about {rounded['expected']:.0f} of {rounded['zeros']} zeros)"
        )
        found.append(Finding("warning", "mask", message, "give the weights in float32, or a mask file"))
    if zero := details.get("zero_parameters"):
        names = ", ".join(zero[:3]) + (f" and {len(zero) - 3} more" if len(zero) > 3 else "")
        message = f"{names}: 0 everywhere, which is read as initial values; the mask does not name them"
        found.append(Finding("warning", "mask", message, "training changes them; a mask file can name them"))
    return found


def _inspect_rule(mask: Mask, rule: Rule, model: nn.Module) -> list[Finding]:
    """Findings about the rule that un-pruning would apply to the tensors that the mask names."""
    from expunge.models import Finding
    from expunge.sparsity import prunable_weights

    ranked = prunable_weights(model, rule.layers)
    named = [name for name in ranked if name in mask.kept]
    origin = f"made by {rule.criterion} in {' and '.join(rule.layers)} layers, scope {mask.provenance.scope}"
    if len(named) == len(ranked):
        message = f"{origin}: un-pruning would apply the same rule"
        return [Finding("ok", "mask", message), *_find_unranked(mask, named, rule)]
    missing = [name for name in ranked if name not in named]
    coverage = f"it names {len(named)} of the {len(ranked)} weight tensors there ({missing[0]} is not named)"
    tensors = f"{len(named)} named tensor{'s' * (len(named) > 1)}"
    message = f"{origin}; {coverage}: un-pruning would re-prune the {tensors}, and the others stay dense"
    return [Finding("ok", "mask", message), *_find_unranked(mask, named, rule)]


def _find_unranked(mask: Mask, named: list[str], rule: Rule) -> list[Finding]:
    """Warn of tensors in the mask that its rule does not rank (with coupled channels, biases and scales are normal)."""
    from expunge.models import Finding
    from expunge.sparsity import get_granularity

    others = (
        [] if get_granularity(rule.granularity).whole_channels else [name for name in mask.kept if name not in named]
    )
    if not others:
        return []
    layer = f"{with_article(' or '.join(rule.layers))} layer"
    message = f"{others[0]} is masked too but is not a weight of {layer} ({len(others)} such)"
    hint = "the rule does not rank it; if other layers were pruned as well, declare them in model.pruned"
    return [Finding("warning", "mask", message, hint)]


def _shape(trained: Trained) -> tuple[int, ...]:
    """Shape of one record that the model takes."""
    return tuple(trained.provenance.architecture["input_shape"])
