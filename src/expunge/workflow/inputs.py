"""What a run reads before it computes: records, split, request, model. Each function raises what a stage would raise.

`check` turns the errors into findings; `forget`, `train` and `prune` go through all of it before anything is trained,
so that a misspelt record id does not cost a training first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import MaskError, ModelError, RequestError

if TYPE_CHECKING:
    from torch import nn

    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.experiments.config import RunConfig


def read_records(config: RunConfig) -> Records:
    """The records of the section `data`."""
    from expunge.data import load_records

    data = config.data
    return load_records(data.source, data_dir=data.dir, **data.options)


def read_split(config: RunConfig, records: Records) -> Split:
    """The split of the section `split`; see `split_of`."""
    from expunge.data.splitting import split_of

    return split_of(records, config.split.model_dump())


def read_request(config: RunConfig, records: Records, split: Split) -> ForgetRequest:
    """The request of the section `forget`; of kind `memorised`: one of the same size.

    Raises:
        RequestError: an id is unknown, is not in the retain set, or is also to be kept; the forget set or what would be
            retained is empty.
    """
    from expunge.data import forget_memorised, select_forget

    assert config.forget is not None
    if config.forget.kind == "memorised":  # known after an ensemble was trained; until then any records stand in
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
    from expunge.models import adopt_weights, architecture

    model = config.model
    blueprint = architecture(model.name, records, split, normalise=model.normalise, **model.options)
    if model.weights is None:
        return blueprint.build(config.seed)
    return adopt_weights(blueprint, model.weights, records, split, mask=model.mask)


def check_prunable(config: RunConfig, model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that the section `sparsity` is about, by name.

    Raises:
        MaskError: there are none, or the model is from elsewhere and lacks what the schedule rewinds to.
    """
    from expunge.sparsity import prunable

    section = config.sparsity
    assert section is not None
    if config.model.weights is not None and section.schedule == "omp":
        raise MaskError(
            "a model from elsewhere has no rewind checkpoint, so it cannot be pruned with rewinding",
            where="sparsity.schedule",
            hint="train it here, or bring its mask along (model.mask)",
        )
    return prunable(model, section.layers)


def network_of(model: nn.Module | Trained) -> nn.Module:
    """The network itself."""
    from expunge.core.trained import Trained

    return model.model if isinstance(model, Trained) else model


def check_inputs(config: RunConfig) -> None:
    """Read everything that the configuration names, and raise the first error; nothing is trained.

    Raises:
        ExpungeError: whatever would stop the run later.
    """
    from expunge.experiments import check_names

    check_names(config)
    records = read_records(config)
    split = read_split(config, records)
    if config.forget is not None:
        read_request(config, records, split)
    model = network_of(read_model(config, records, split))
    if config.sparsity is not None:
        check_prunable(config, model)
    if config.method is not None:
        from expunge.methods import get_method

        found = get_method(config.method.name, **config.method.options).objection(model, records)
        if found is not None:
            raise ModelError(found[0], where="method", hint=found[1] or None)
