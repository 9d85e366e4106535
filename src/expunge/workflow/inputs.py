"""Read the inputs of a run: records, split, request, model. The functions raise the errors that stages would raise.

`check` turns the errors into findings. `forget`, `train` and `prune` read all inputs before anything is trained, so
that a misspelt record id is reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError, MaskError, ModelError
from expunge.core.trust import trusting
from expunge.experiments.config.registry_checks import check_sections, make_checked_method, make_checked_pruning
from expunge.experiments.objects import records as records_of
from expunge.experiments.objects.imported import adopt, read_imported
from expunge.experiments.objects.model import make_architecture
from expunge.experiments.objects.request import check_selection, make_request, read_stand_in
from expunge.experiments.objects.split import make_split
from expunge.experiments.objects.training import make_recipe

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Caution, Records
    from expunge.data.retain_set.stand_in import StandIn
    from expunge.experiments.config.plan import Plan
    from expunge.experiments.config.run_config import RunConfig
    from expunge.methods import Method
    from expunge.models import Architecture
    from expunge.sparsity import ImportedModel, Pruning
    from expunge.sparsity.masks.dry_run import DryRun


def read_records(config: RunConfig, *, planted: bool = True) -> Records:
    """Read the records of the section `data`, with what the section `forget` plants in them (unless not `planted`)."""
    section = config.data.model_dump(mode="json")
    if planted and config.forget is not None:
        check_selection(config.forget.model_dump())
        forget, split = (part.model_dump(mode="json") for part in (config.forget, config.split))
        section = records_of.add_planting(section, forget, split)
    return records_of.read_records(section, config.data.dir)


def read_split(config: RunConfig, records: Records) -> Split:
    """Make or read the split of the section `split`, and check the items of a stream in it.

    Raises:
        DataError: the split cannot be made, or an item of a stream cannot be read.
    """
    import numpy as np

    from expunge.core.split import PARTS
    from expunge.data.quality import check_items

    split = make_split(config.split.model_dump(mode="json"), records)
    used = np.concatenate([getattr(split, part) for part in PARTS])
    check_items(records, records.rows(used[np.isin(used, records.record_ids)] if split.retain_absent else used))
    return split


def read_planted(config: RunConfig) -> tuple[Records, Split]:
    """The records with what the section `forget` plants in them, and their split."""
    records = read_records(config)
    return records, read_split(config, records)


def read_request(config: RunConfig, records: Records, split: Split) -> ForgetRequest:
    """Make the request of the section `forget`; for the most memorised records, any request of the same size.

    Raises:
        RequestError: see `make_request`.
    """
    assert config.forget is not None
    section = config.forget.model_dump(mode="json")
    request = make_request(section, records, split)
    if split.retain_absent:
        records.rows(request.record_ids)  # the records to forget must be there
    return request


def read_declared_stand_in(config: RunConfig, records: Records, split: Split, request: ForgetRequest) -> StandIn | None:
    """Read the stand-in of the section `forget`, and check it; None if there is none.

    Raises:
        ExpungeError: see `read_stand_in`.
    """
    assert config.forget is not None
    return read_stand_in(config.forget.model_dump(mode="json"), config.data.dir, records, split, request)


def read_architecture(config: RunConfig, records: Records, split: Split) -> Architecture:
    """The architecture of the section `model`."""
    return make_architecture(config.model.model_dump(mode="json"), records, split)


def read_model(config: RunConfig, records: Records, split: Split) -> nn.Module | Trained:
    """The first value of `read_model_and_format`."""
    return read_model_and_format(config, records, split)[0]


def read_model_and_format(
    config: RunConfig, records: Records, split: Split
) -> tuple[nn.Module | Trained, ImportedModel | None]:
    """Build the untrained network of the section `model`, or import the trained model if `model.weights` names a file.

    Returns:
        The model, and what was found in the file: format, mask; None if the model is not imported.

    Raises:
        ModelError: the network cannot be built for these records, or the weights do not fit it or contain NaN.
        MaskError: the mask does not fit.
        FileError: a file is missing, damaged, or a pickle; or weights and split do not belong together.
        DataError: a network would be trained on records that the split records as forgotten.
    """
    from expunge.training.train import check_nothing_forgotten

    architecture = read_architecture(config, records, split)
    if config.model.weights is None:
        check_nothing_forgotten(split, config.split.file)
        return architecture.build(config.seed), None
    section = config.model.model_dump(mode="json")
    imported = read_imported(section, architecture)
    recipe: Mapping[str, Any] = {}
    with contextlib.suppress(ExpungeError):  # the section `training` is checked by itself
        recipe = make_recipe(config.training.model_dump(mode="json")).to_json()
    adopted = adopt(section, architecture, imported, records, split, recipe=recipe, split_file=config.split.file)
    return adopted, imported


def check_model(model: nn.Module | Trained, records: Records) -> None:
    """Raise ModelError for the first error among the findings of `describe_model`, which `check` reports.

    Raises:
        ModelError: the network cannot be copied, run, trained or saved, or its weights are not finite.
    """
    from expunge.core.trained import Trained
    from expunge.models import describe_model

    mask = model.mask if isinstance(model, Trained) else None
    for finding in describe_model(get_network(model), records, mask=mask).findings:
        if finding.level == "error":
            raise ModelError(finding.message, where=f"model ({finding.subject})", hint=finding.hint or None)


def check_last_batch(
    config: RunConfig, batch_size: int, model: nn.Module | Trained, records: Records, split: Split
) -> None:
    """Check that the network can be trained on batches of one record, if the recipe makes such batches only.

    Checked are training on D, if the model is trained, and Retrain on D_r. Other methods check when they start.

    Raises:
        ModelError: it cannot.
    """
    from expunge.data import Batches
    from expunge.training.batchnorm import join_single_records

    parts = [] if config.model.weights is not None else [split.train]
    if (
        config.forget is not None and config.method is not None and config.method.name.casefold() == "retrain"
        and not split.retain_absent
    ):  # fmt: skip
        parts.append(read_request(config, records, split).apply(split).retain)
    for ids in parts:
        join_single_records(get_network(model), Batches(records, records.rows(ids), batch_size=batch_size))


def check_method(
    config: RunConfig,
    method: Method,
    pruning: Pruning | None,
    model: nn.Module | Trained,
    records: Records,
    split: Split,
    request: ForgetRequest | None = None,
) -> None:
    """Check that the original model has what the method needs, as far as this is known before the method runs.

    Args:
        config: the configuration.
        method: its section `method`.
        pruning: its section `sparsity`, or None.
        model: the original model, before it is pruned.
        records: the records.
        split: their split.
        request: the request, or None if it is not known.

    Raises:
        RequestError: the method cannot forget this request.
        MethodError, MaskError: state that un-pruning needs is missing, the mask does not record how it was made, or
            the network starts from the imported weights, so that the reference could not be retrained.
        ModelError: the method does not support this network, or cannot train it on D_f alone (one record, and BatchNorm
            layers without running statistics).
        TrainingError: the method needs second derivatives that the network does not have.
    """
    from expunge.core.trained import Trained
    from expunge.data import Batches
    from expunge.methods.start import check_start
    from expunge.sparsity import get_schedule, recorded_schedule
    from expunge.training.batchnorm import join_single_records
    from expunge.training.curvature import check_second_derivatives

    if config.forget is None or config.forget.stand_in is None:
        method.check_retained(split)
    reason = method.unsupported_reason(get_network(model), records)
    if reason is not None:
        raise ModelError(reason[0], where="method", hint=reason[1] or None)
    mask = model.mask if isinstance(model, Trained) else None
    if not isinstance(model, Trained):
        recipe = None
        with contextlib.suppress(ExpungeError):  # the section `training` is checked by itself
            recipe = make_recipe(config.training.model_dump(mode="json"))
        if recipe is not None:
            method.check_recipe(recipe)
    if isinstance(model, Trained) and pruning is None:
        method.check_state(model)
    elif pruning is not None or not method.trains:  # its `fit` leaves the state that it needs
        method.check_state(expect_original(config, pruning, model, records, split))
    if isinstance(model, Trained):
        check_start(model)  # the reference is retrained, whatever the method
    if request is not None:
        method.check_request(get_network(model), mask, request, records)
    if method.trains_on == "forget" and config.forget is not None:
        rows = records.rows((request or read_request(config, records, split)).record_ids)
        join_single_records(get_network(model), Batches(records, rows, batch_size=max(2, len(rows) - 1)))
    schedule = None if mask is None else recorded_schedule(mask)
    if pruning is not None:
        schedule = get_schedule(pruning.schedule)
    dense = pruning is None and mask is None
    matrix_type = (method.for_dense_model() if dense else method).needed_curvature(schedule)
    if matrix_type is not None:
        check_second_derivatives(get_network(model), records.input_shape, records.classes, matrix_type=matrix_type)


def describe_cost(
    config: RunConfig,
    method: Method,
    pruning: Pruning | None,
    model: nn.Module | Trained,
    records: Records,
    split: Split,
) -> tuple[str, str] | None:
    """What the method recomputes because the original does not store it, and a hint; see `Method.describe_cost`."""
    from expunge.core.trained import Trained

    if isinstance(model, Trained) and pruning is None:
        return method.describe_cost(model)
    return method.describe_cost(expect_original(config, pruning, model, records, split))


def expect_original(
    config: RunConfig, pruning: Pruning | None, model: nn.Module | Trained, records: Records, split: Split
) -> Trained:
    """A stand-in for the original before it exists: provenance of its mask, recipe, seeds, names of its state.

    Args:
        config: the configuration.
        pruning: its section `sparsity`, or None.
        model: the network, or the imported model.
        records: the records.
        split: their split.
    """
    from expunge.core import early_checkpoints
    from expunge.core.mask import Mask, MaskProvenance
    from expunge.core.trained import Provenance, Trained
    from expunge.sparsity import get_granularity

    mask: Mask | None = None
    state: dict[str, Any] = {}
    if isinstance(model, Trained) and pruning is None:
        return dataclasses.replace(model, split=split)
    if pruning is not None:
        scope = get_granularity(pruning.granularity).record_scope(pruning.scope)
        details = {"sparsity": pruning.sparsity, "options": pruning.options, "epochs": pruning.epochs}
        mask = Mask(
            {},
            MaskProvenance(
                pruning.criterion, scope, pruning.granularity, pruning.layers, pruning.schedule, details=details
            ),
        )
        state = {"pruning_weights": {}} if pruning.keep_weights else {}
    if isinstance(model, Trained):
        return Trained(model.model, mask, split, model.provenance, {**model.state, **state})
    blueprint = read_architecture(config, records, split)
    recipe: Mapping[str, Any] = {}
    with contextlib.suppress(ExpungeError):  # the section `training` is checked by itself
        chosen = make_recipe(config.training.model_dump(mode="json"))
        recipe = chosen.to_json()
        state |= {early_checkpoints.STATE: {}} if chosen.kept_epochs else {}
    provenance = Provenance(blueprint.to_json(), recipe=recipe, seeds={"initial": config.seed})
    return Trained(model, mask, split, provenance, state)


def check_prunable(pruning: Pruning, model: nn.Module | Trained, records: Records) -> DryRun:
    """Count the weights, or coupled channels, that would be pruned.

    Raises:
        MaskError: there are none, the criterion has no score for some, a layer would lose every weight (as far as this
            is known beforehand), or an imported model is sparse already or lacks the state that the schedule needs.
    """
    from expunge.core.trained import Trained
    from expunge.sparsity import get_schedule, prunable_weights
    from expunge.sparsity.masks.dry_run import dry_run_rule
    from expunge.training.curvature import check_second_derivatives

    schedule = get_schedule(pruning.schedule)
    if isinstance(model, Trained) and model.mask is not None:
        raise MaskError(
            "the model is sparse already", where="sparsity", hint="remove the section; the model's own mask is used"
        )
    if isinstance(model, Trained) and (schedule.trains or schedule.starts_from_initial_weights):
        missing = "recorded recipe"
        if schedule.starts_from_initial_weights or schedule.rewinds:
            missing = "rewind checkpoint" if schedule.rewinds else "recorded initial weights"
        raise MaskError(
            f"an imported model has no {missing}, so it cannot be pruned by the schedule {schedule.name}",
            where="sparsity.schedule",
            hint="train it with expunge, import its mask too (model.mask), or use schedule=one-shot",
        )
    if pruning.criterion.casefold() == "grasp":
        names = list(prunable_weights(get_network(model), pruning.rule.layers))
        check_second_derivatives(get_network(model), records.input_shape, records.classes, names=names)
    return dry_run_rule(pruning.rule, get_network(model), records.input_shape)


def list_source_cautions(plan: Plan) -> list[Caution]:
    """What is known of the sources of a plan without reading data; wrong names are reported with their cells."""
    from expunge.data.registry import get_source

    found = []
    for name in dict.fromkeys(cell.config.data.source for cell in plan.cells):
        with contextlib.suppress(ExpungeError), trusting(plan.trust):
            found.append(get_source(name).caution)
    return [caution for caution in found if caution is not None]


def get_network(model: nn.Module | Trained) -> nn.Module:
    """The network of a model."""
    from expunge.core.trained import Trained

    return model.model if isinstance(model, Trained) else model


def check_inputs(config: RunConfig) -> None:
    """Read everything that a configuration names, and raise the first error; nothing is trained.

    `check_run` reports the same errors as findings.

    Args:
        config: see `load_config`.

    Raises:
        ExpungeError: the first error that would stop the run.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_config
    >>> from expunge.workflow import check_inputs
    >>> _ = Path("run.yaml").write_text('''
    ... data: {source: digits}
    ... model: {name: mlp}
    ... training: {recipe: one-cycle}
    ... forget: {by: ids, ids: [digits-9999]}
    ... ''')
    >>> check_inputs(load_config("run.yaml"))
    Traceback (most recent call last):
        ...
    expunge.core.errors.RequestError: digits-9999: ...
    """
    with trusting(config.trust):
        _check_inputs(config)


def _check_inputs(config: RunConfig) -> None:
    recipe = check_sections(config)
    records = read_records(config)
    split = read_split(config, records)
    request = None if config.forget is None else read_request(config, records, split)
    if request is not None:
        read_declared_stand_in(config, records, split, request)
    model = read_model(config, records, split)
    check_model(model, records)
    check_last_batch(config, recipe.batch_size, model, records, split)
    pruning = None if config.sparsity is None else make_checked_pruning(config, recipe)
    if pruning is not None:
        check_prunable(pruning, model, records)
    if config.method is not None:
        check_method(config, make_checked_method(config), pruning, model, records, split, request)
