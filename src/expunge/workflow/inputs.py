"""Read the inputs of a run: records, split, request, model. The functions raise the errors that stages would raise.

`check` turns the errors into findings. `forget`, `train` and `prune` read all inputs before anything is trained, so
that a misspelt record id is reported at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.core.errors import MaskError, ModelError, RequestError
from expunge.core.trust import trusting

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.experiments.config.run_config import RunConfig
    from expunge.methods import Method
    from expunge.models import Architecture
    from expunge.sparsity import ImportedModel
    from expunge.sparsity.masks.dry_run import DryRun


def read_records(config: RunConfig) -> Records:
    """Read the records of the section `data`."""
    from expunge.data import load_records

    data = config.data
    return load_records(data.source, data_dir=data.dir, **data.options)


def read_split(config: RunConfig, records: Records) -> Split:
    """Make or read the split of the section `split`; see `load_or_make_split`."""
    from expunge.data.splitting import load_or_make_split

    return load_or_make_split(records, config.split.model_dump())


def read_request(config: RunConfig, records: Records, split: Split) -> ForgetRequest:
    """Make the request of the section `forget`; for the most memorised records, any request of the same size.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or must not be forgotten; the forget set or the retain
            set is empty.
    """
    from expunge.data import forget_memorised, select_forget

    assert config.forget is not None
    if config.forget.by == "memorised":  # the ranking is known only after training
        return forget_memorised(records, split, split.retain.tolist(), int(config.forget.extra_keys["count"]))
    request = select_forget(records, split, config.forget.model_dump(mode="json"))
    if len(request.record_ids) == 0:
        raise RequestError("the forget set is empty", hint="check the selection; there is nothing to forget")
    request.apply(split)
    return request


def read_model(config: RunConfig, records: Records, split: Split) -> nn.Module | Trained:
    """Build the untrained network of the section `model`, or import the trained model if `model.weights` names a file.

    Raises:
        ModelError: the network cannot be built for these records, or the weights do not fit it or contain NaN.
        MaskError: the mask does not fit.
        FileError: a file is missing, damaged, or a pickle.
    """
    from expunge.models import architecture
    from expunge.sparsity import adopt_imported

    model = config.model
    blueprint = architecture(model.name, records, split, normalise=model.normalise, **model.options)
    imported = read_imported_model(config, blueprint)
    if imported is None:
        return blueprint.build(config.seed)
    assert model.weights is not None
    return adopt_imported(blueprint, model.weights, imported, records, split)


def read_imported_model(config: RunConfig, blueprint: Architecture) -> ImportedModel | None:
    """Import `model.weights` and `model.mask` with their detected format; None if the model is not imported.

    Raises:
        ExpungeError: see `expunge.sparsity.import_model`.
    """
    from expunge.sparsity import PrunedBy, import_model

    model = config.model
    if model.weights is None:
        return None
    declared = None if model.pruned is None else PrunedBy(**model.pruned.model_dump())
    return import_model(blueprint, model.weights, mask=model.mask, pruned=declared)


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


def check_last_batch(config: RunConfig, model: nn.Module | Trained, records: Records, split: Split) -> None:
    """Check that the network can be trained on the last batch of the recipe, if that has a single record.

    Checked are training on D, if the model is trained, and Retrain on D_r. Other methods check when they start.

    Raises:
        TrainingError: it cannot.
    """
    from expunge.training.batchnorm import check_single_record
    from expunge.training.recipes import get_recipe

    section = config.training
    size = get_recipe(section.recipe, **section.extra_keys).batch_size
    counts = [] if config.model.weights is not None else [len(split.train)]
    if config.forget is not None and config.method is not None and config.method.name.casefold() == "retrain":
        counts.append(len(split.retain) - len(read_request(config, records, split).record_ids))
    if any(count % size == 1 for count in counts):
        check_single_record(get_network(model), records.input_shape, size)


def check_method(config: RunConfig, model: nn.Module | Trained, records: Records, split: Split) -> None:
    """Check that the original model has what the method needs, as far as this is known before the method runs.

    Raises:
        MethodError, MaskError: state that un-pruning needs is missing, or the mask does not record how it was made.
        ModelError: the method does not support this network.
        TrainingError: the influence rule needs second derivatives that the network does not have.
    """
    from expunge.core.trained import Trained
    from expunge.methods import get_method

    section = config.method
    if section is None:
        return
    method = get_method(section.name, **section.options)
    reason = method.unsupported_reason(get_network(model), records)
    if reason is not None:
        raise ModelError(reason[0], where="method", hint=reason[1] or None)
    matrix_type = _find_curvature(config, method, model)
    if matrix_type is not None:
        from expunge.training.curvature import check_second_derivatives

        check_second_derivatives(get_network(model), records.input_shape, records.classes, matrix_type=matrix_type)
    check_state = getattr(method, "check_state", None)
    if check_state is None:
        return
    if config.sparsity is not None:
        check_state(_expected_sparse_model(config, model, records, split))
    elif isinstance(model, Trained):
        check_state(model)


def _find_curvature(config: RunConfig, method: Method, model: nn.Module | Trained) -> str | None:
    """The curvature matrix that the influence rule would compute; None if it computes none."""
    from expunge.core.trained import Trained
    from expunge.training.curvature import CURVATURES

    mask = model.mask if isinstance(model, Trained) else None
    schedule = config.sparsity.schedule if config.sparsity is not None else mask.provenance.schedule if mask else None
    matrix_type = getattr(method, "curvature", None)
    if getattr(method, "rule", None) != "influence" or schedule in (None, "at-init") or matrix_type not in CURVATURES:
        return None
    return str(matrix_type)


def _expected_sparse_model(config: RunConfig, model: nn.Module | Trained, records: Records, split: Split) -> Trained:
    """A stand-in for the sparse original before it exists: provenance of its mask, seeds, names of its state."""
    from expunge.core.mask import Mask, MaskProvenance
    from expunge.core.trained import Provenance, Trained
    from expunge.models import architecture

    section = config.sparsity
    assert section is not None
    scope = "group" if ":" in section.granularity else section.scope
    details = {"sparsity": section.sparsity}
    mask = Mask(
        {},
        MaskProvenance(
            section.criterion, scope, section.granularity, section.layers, section.schedule, details=details
        ),
    )
    state: dict[str, Any] = {"pruning_weights": {}} if section.keep_weights else {}
    if isinstance(model, Trained):
        return Trained(model.model, mask, split, model.provenance, {**model.state, **state})
    blueprint = architecture(
        config.model.name, records, split, normalise=config.model.normalise, **config.model.options
    )
    return Trained(model, mask, split, Provenance(blueprint.to_json(), seeds={"initial": config.seed}), state)


def check_prunable(config: RunConfig, model: nn.Module | Trained, records: Records) -> DryRun:
    """Count the weights, or coupled channels, that the section `sparsity` would prune.

    Raises:
        MaskError: there are none, the criterion has no score for some, a layer would lose every weight (as far as this
            is known beforehand), or an imported model is sparse already or lacks the state that the schedule needs.
    """
    from expunge.core.trained import Trained
    from expunge.sparsity import Rule, prunable_weights
    from expunge.sparsity.masks.dry_run import dry_run_rule
    from expunge.training.curvature import check_second_derivatives

    section = config.sparsity
    assert section is not None
    if isinstance(model, Trained) and model.mask is not None:
        raise MaskError(
            "the model is sparse already", where="sparsity", hint="remove the section; the model's own mask is used"
        )
    if config.model.weights is not None and section.schedule != "one-shot":
        missing = "rewind checkpoint" if section.schedule in ("omp", "imp") else "recorded initial weights"
        raise MaskError(
            f"an imported model has no {missing}, so it cannot be pruned by the schedule {section.schedule}",
            where="sparsity.schedule",
            hint="train it with expunge, import its mask too (model.mask), or use schedule=one-shot",
        )
    rule = Rule(section.criterion, section.granularity, section.scope, section.layers, section.sparsity)
    if section.criterion.casefold() == "grasp":
        names = list(prunable_weights(get_network(model), rule.layers))
        check_second_derivatives(get_network(model), records.input_shape, records.classes, names=names)
    return dry_run_rule(rule, get_network(model), records.input_shape)


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
    from expunge.experiments import check_names

    check_names(config)
    records = read_records(config)
    split = read_split(config, records)
    if config.forget is not None:
        read_request(config, records, split)
    model = read_model(config, records, split)
    check_model(model, records)
    check_last_batch(config, model, records, split)
    if config.sparsity is not None:
        check_prunable(config, model, records)
    check_method(config, model, records, split)
