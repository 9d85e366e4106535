"""What a run reads before it computes: records, split, request, model. Each function raises what a stage would raise.

`check` turns the errors into findings; `forget`, `train` and `prune` go through all of it before anything is trained,
so that a misspelt record id does not cost a training first.
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
    from expunge.models import Architecture
    from expunge.sparsity import ImportedModel
    from expunge.sparsity.masks.dry_run import DryRun


def read_records(config: RunConfig) -> Records:
    """The records of the section `data`."""
    from expunge.data import load_records

    data = config.data
    return load_records(data.source, data_dir=data.dir, **data.options)


def read_split(config: RunConfig, records: Records) -> Split:
    """The split of the section `split`; see `load_or_make_split`."""
    from expunge.data.splitting import load_or_make_split

    return load_or_make_split(records, config.split.model_dump())


def read_request(config: RunConfig, records: Records, split: Split) -> ForgetRequest:
    """The request of the section `forget`; by `memorised`: one of the same size.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or is also to be kept; the forget set or what would be
            retained is empty.
    """
    from expunge.data import forget_memorised, select_forget

    assert config.forget is not None
    if config.forget.by == "memorised":  # known after an ensemble was trained; until then any records stand in
        return forget_memorised(records, split, split.retain.tolist(), int(config.forget.further["count"]))
    request = select_forget(records, split, config.forget.model_dump(mode="json"))
    if len(request.record_ids) == 0:
        raise RequestError("the forget set is empty", hint="check the selection; there is nothing to forget")
    request.apply(split)
    return request


def read_model(config: RunConfig, records: Records, split: Split) -> nn.Module | Trained:
    """The untrained network of the section `model`; where `model.weights` names a file, the trained model in it.

    Raises:
        ModelError: the network cannot be built for these records, or the weights do not fit it or hold NaN.
        MaskError: the mask does not fit.
        FileError: a file is missing, damaged, or a pickle.
    """
    from expunge.models import architecture
    from expunge.sparsity import adopt_imported

    model = config.model
    blueprint = architecture(model.name, records, split, normalise=model.normalise, **model.options)
    imported = read_arrival(config, blueprint)
    if imported is None:
        return blueprint.build(config.seed)
    assert model.weights is not None
    return adopt_imported(blueprint, model.weights, imported, records, split)


def read_arrival(config: RunConfig, blueprint: Architecture) -> ImportedModel | None:
    """What `model.weights` and `model.mask` hold, recognised; None where the model is trained here.

    Raises:
        ExpungeError: see `expunge.sparsity.import_model`.
    """
    from expunge.sparsity import PrunedBy, import_model

    model = config.model
    if model.weights is None:
        return None
    told = None if model.pruned is None else PrunedBy(**model.pruned.model_dump())
    return import_model(blueprint, model.weights, mask=model.mask, pruned=told)


def check_method(config: RunConfig, model: nn.Module | Trained, records: Records, split: Split) -> None:
    """Whether the method finds what it needs in the original model, as far as that is known before it runs.

    Raises:
        MethodError, MaskError: state that un-pruning needs is not there, or the mask does not say how it was made.
        ModelError: the method cannot be used on this network.
    """
    from expunge.core.trained import Trained
    from expunge.methods import get_method

    section = config.method
    if section is None:
        return
    method = get_method(section.name, **section.options)
    reason = method.unsupported_reason(network_of(model), records)
    if reason is not None:
        raise ModelError(reason[0], where="method", hint=reason[1] or None)
    needs = getattr(method, "check_state", None)
    if needs is None:
        return
    if config.sparsity is not None:
        needs(_to_come(config, model, records, split))
    elif isinstance(model, Trained):
        needs(model)


def _to_come(config: RunConfig, model: nn.Module | Trained, records: Records, split: Split) -> Trained:
    """What is known of the sparse original before it is made: how its mask will be made, seeds, which state it has."""
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
    """What the section `sparsity` would prune: how many weights, or coupled channels, of how many.

    Raises:
        MaskError: there are none, the criterion has no score for some, a layer would lose every weight (as far as that
            is known beforehand), or the model is from elsewhere and is sparse already, or lacks what the schedule
            starts from.
    """
    from expunge.core.trained import Trained
    from expunge.sparsity import Rule
    from expunge.sparsity.masks.dry_run import dry_run_rule

    section = config.sparsity
    assert section is not None
    if isinstance(model, Trained) and model.mask is not None:
        raise MaskError(
            "the model is sparse already", where="sparsity", hint="leave the section out; its own mask is used"
        )
    if config.model.weights is not None and section.schedule != "one-shot":
        lacks = "rewind checkpoint" if section.schedule in ("omp", "imp") else "initial weights on record"
        raise MaskError(
            f"a model from elsewhere has no {lacks}, so it cannot be pruned by the schedule {section.schedule}",
            where="sparsity.schedule",
            hint="train it here, bring its mask along (model.mask), or use schedule=one-shot",
        )
    rule = Rule(section.criterion, section.granularity, section.scope, section.layers, section.sparsity)
    return dry_run_rule(rule, network_of(model), records.input_shape)


def network_of(model: nn.Module | Trained) -> nn.Module:
    """The network itself."""
    from expunge.core.trained import Trained

    return model.model if isinstance(model, Trained) else model


def check_inputs(config: RunConfig) -> None:
    """Read everything that the configuration names, and raise the first error; nothing is trained.

    Raises:
        ExpungeError: whatever would stop the run later.
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
    if config.sparsity is not None:
        check_prunable(config, model, records)
    check_method(config, model, records, split)
