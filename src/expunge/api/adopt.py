"""`adopt`: a model that was trained elsewhere, with the data that it was trained on."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from expunge.bridges import read_recording
from expunge.core.errors import ConfigError, ExpungeWarning, ModelError, check_type, name_arguments
from expunge.core.mask import Mask
from expunge.core.trained import Provenance, Trained
from expunge.data.objects.frame_index import OwnIndex
from expunge.data.quality.cautions import find_random_items
from expunge.data.records import Caution, Records
from expunge.evaluation.registry.reference_checks import sample_training_accuracy
from expunge.models import describe_model
from expunge.models.call import ModelCall
from expunge.sparsity import PrunedBy
from expunge.training import Runtime

from .adopted import AdoptedModel
from .declared import Factory, build_network, check_factory, declare_architecture, declare_mask, declare_recipe
from .network import Own, copy_model, describe_own, find_model_call, unwrap_model
from .recorded import add_recording, find_recorded_rows
from .rows import Rows, make_split

#: Training records on which the accuracy of an adopted model is measured.
_SAMPLE = 256
_GONE_HINT = "give the records to forget, and those of validation, test and non-members"
#: Arguments of `adopt` that a `Trained` has already.
_OF_TRAINED = ("train", "validation", "test", "non_members", "factory", "recipe", "recorded", "mask", "pruned", "call")


@name_arguments("adopt")
def adopt(
    model: nn.Module | Trained,
    data: Records | Any,
    *,
    train: Rows | None = None,
    validation: Rows | None = None,
    test: Rows | None = None,
    non_members: Rows | None = None,
    factory: Factory | None = None,
    recipe: Any = None,
    recorded: Any = None,
    mask: Any = None,
    pruned: PrunedBy | Mapping[str, Any] | None = None,
    normalise: Any = "none",
    call: ModelCall | None = None,
    runtime: Runtime | None = None,
    gone: Iterable[str] | int | bool | None = None,
) -> AdoptedModel:
    """Adopt a model that was trained elsewhere, so that it can forget rows of its data.

    Neither the model nor the data are modified: everything works on a float32 copy of the model, and results have the
    class, the device, the types and the train/eval flags of the model again.

    Rows are row numbers of `data` counted from 0, a mask of booleans, record ids, or the path of a file of ids. Rows
    that no part names are not used.

    Args:
        model: a `torch.nn.Module` as it is (also inside `torch.compile`, DDP or DataParallel); or a `Trained`, for
            example of `load_trained`, which has most of the other arguments already.
        data: `Records`, or a data set that `Records.from_dataset` reads.
        train: the rows that the model was trained on; None: all that the other parts do not name.
        validation: rows that selected hyper-parameters.
        test: rows that it was not trained on, for scores.
        non_members: rows that it was not trained on, for membership attacks. Without test rows or non-members, the
            scores that need them are not measured.
        factory: makes a new network of this kind, with new initial weights: a function or class, called without
            arguments or with `input_shape` and `classes`; its name, `package.module:make`; or an `Architecture`.
            Without it, methods that need new initial weights, such as Retrain, are refused.
        recipe: how it was trained, for retraining: a `Recipe`, the name of one, a dictionary of its fields, or
            `TrainingArguments` of transformers. Without it, Retrain takes the default recipe, and says so.
        recorded: the folder that a callback of `expunge.bridges` wrote during training: it has the recipe and more.
        mask: of a pruned model: a `Mask`, its file, bool tensors by name (True where a weight is kept), or the string
            `zeros` (a weight is pruned where it is 0). Masks of `torch.nn.utils.prune` are found.
        pruned: how it was pruned, if known: `expunge.sparsity.PrunedBy(criterion=..., scope=..., layers=...)`, or a
            mapping of these fields. Methods that prune again, such as Un-prune, need it.
        normalise: what is applied to the records before the model: `none`; `published` or `training` statistics of the
            records; or a pair of means and standard deviations, one number a channel.
        call: how the model is called and which output holds the logits; None: it is found out.
        runtime: device and precision; None: the device of the model.
        gone: the training records that the data no longer have: their ids, a file of ids, or their number; of a
            `Trained`, True: its split names them. Methods that read the retain set are then refused, unless
            `forget` gets a stand-in for it.

    Raises:
        ModelError: the model or the factory does not fit the data, or not each other.
        DataError: a row does not exist, or is in two parts.
        MaskError: the mask does not fit.
        ConfigError: the recipe is unknown or cannot be repeated, or `pruned` does not say how a model was pruned.

    Example:
        >>> import expunge
        >>> data = expunge.load_records("digits")
        >>> network = expunge.architecture("mlp", data, widths=(8,), normalise="none")
        >>> mine = expunge.train(data, expunge.make_split(data), network, recipe=expunge.get_recipe(epochs=2)).model
        >>> model = expunge.adopt(mine, data, train=range(1200), test=range(1200, 1500), factory=network)
        >>> result = model.forget([3, 14, 15], method="FT", epochs=1)
        >>> result.split.counts()["forget"], type(result.model) is type(mine)
        (3, True)
    """
    if runtime is not None:
        check_type(runtime, Runtime, "runtime", "expunge.Runtime('cpu'), for example")
    if isinstance(model, Trained):
        given = (train, validation, test, non_members, factory, recipe, recorded, mask, pruned, call)
        return _adopt_trained(model, data, dict(zip(_OF_TRAINED, given, strict=True)), runtime, gone)
    if recorded is not None:
        check_type(recorded, (str, os.PathLike), "recorded", "the folder that a callback of expunge.bridges wrote")
    if call is not None:
        check_type(call, ModelCall, "call", "expunge.models.call.ModelCall(...), or leave it out: it is found out")
    records = _as_records(data)
    inner = unwrap_model(model)
    own = describe_own(inner)
    recording = None if recorded is None else read_recording(recorded)
    if recording is not None and train is None:
        train = find_recorded_rows(recording, records)
    split = make_split(records, train, {"validation": validation, "test": test, "non_members": non_members}, gone)
    chosen, kind = _choose_runtime(runtime, own)
    copied, hooked = copy_model(inner)
    called = find_model_call(copied, records) if call is None else call
    built = declare_architecture(copied, records, split, factory, normalise, called)
    network = build_network(copied, built, called)
    found = declare_mask(built, network, mask, hooked, pruned)
    cautions = _describe(network, records, found)
    if factory is not None:
        check_factory(built, network, records, split, chosen)
    declared = declare_recipe(recipe, len(split.train))
    history = f"adopted: {type(inner).__name__}" + ("" if found is None else f", {100 * found.sparsity:.2f} % sparse")
    provenance = Provenance(
        architecture=built.to_json(),
        data={"name": records.name, "hash": records.hash},
        recipe={} if declared is None else declared.to_json(),
        history=(history,),
    )
    trained = Trained(network, found, split, provenance)
    trained = dataclasses.replace(trained, provenance=dataclasses.replace(provenance, weights_from=trained.hash))
    order = None
    if recording is not None:
        trained, order = add_recording(trained, recording, inner)
        if recording.problem:
            kind = [*kind, f"{recorded}: the recorded training cannot be repeated exactly: {recording.problem}"]
    adopted = AdoptedModel(records, trained, chosen, own, order)
    near_chance = sample_training_accuracy(trained, records, chosen, most=_SAMPLE)
    cautions = [*(f"{found.message}: {found.hint}" for found in _find_cautions(records)), *cautions]
    for text in [*kind, *_describe_types(own), *cautions, *(warning.message for warning in near_chance)]:
        warnings.warn(text, ExpungeWarning, stacklevel=3)  # past `name_arguments`
    return adopted


def _adopt_trained(
    trained: Trained, data: Any, given: dict[str, Any], runtime: Runtime | None, gone: Any
) -> AdoptedModel:
    """Adopt a model of expunge."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError("a Trained has it already", where=name, hint="leave it out")
    records = _as_records(data)
    if gone is not None:
        if gone is not True:
            raise ConfigError("a Trained knows its training records", where="gone", hint="gone=True")
        return AdoptedModel(records, _declare_gone(trained, records), runtime or Runtime(), Own(), None)
    recorded = trained.provenance.data.get("hash")
    if recorded is not None and recorded != records.hash:
        raise ModelError(
            f"the model was trained on other data than {records.name}",
            where="data",
            hint="give the records that it was trained on, in the same order and with the same ids; or, if records of "
            "its training are gone, say so: gone=True",
        )
    return AdoptedModel(records, trained, runtime or Runtime(), Own(), None)


def _declare_gone(trained: Trained, records: Records) -> Trained:
    """The model, with the records of its retain set declared to be gone; those of the other parts have to be there."""
    if not np.isin(trained.split.retain, records.record_ids).any():
        raise ModelError("the data have no record that the model was trained on", where="data", hint=_GONE_HINT)
    for part in ("validation", "test", "non_members"):
        ids = getattr(trained.split, part)
        missing = ids[~np.isin(ids, records.record_ids)]
        if len(missing):
            what = f"the data have no record {missing[0]!r}, which is in {part}"
            raise ModelError(what, where="data", hint=_GONE_HINT)
    return dataclasses.replace(trained, split=dataclasses.replace(trained.split, retain_absent=True))


def _find_cautions(records: Records) -> list[Caution]:
    """What may have the wrong records forgotten, or the wrong inputs measured."""
    return [*(caution for caution in records.cautions if isinstance(caution, OwnIndex)), *find_random_items(records)]


def _as_records(data: Any) -> Records:
    return data if isinstance(data, Records) else Records.from_dataset(data)


def _choose_runtime(runtime: Runtime | None, own: Own) -> tuple[Runtime, list[str]]:
    """The runtime of the model's device, and what has to be said about it."""
    if runtime is not None:
        return runtime, []
    if own.device.partition(":")[0] in ("cpu", "cuda"):
        return Runtime(own.device), []
    text = f"the model is on {own.device}, on which expunge does not train: the work is done on the CPU, and results "
    return Runtime("cpu"), [f"{text}are moved back"]


def _describe_types(own: Own) -> list[str]:
    if not own.dtypes:
        return []
    names = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in own.dtypes.values()}))
    return [
        f"the model has tensors of {names}: unlearning and scores use a float32 copy. result.model is converted back; "
        "result.trained.model stays float32"
    ]


def _describe(network: nn.Module, records: Records, mask: Mask | None) -> list[str]:
    """What a user should know of a model before it is used: the warnings of `describe_model`.

    Raises:
        ModelError: the first error among its findings.
    """
    found = describe_model(network, records, mask=mask).findings
    for finding in found:
        if finding.level == "error":
            raise ModelError(finding.message, where=f"model ({finding.subject})", hint=finding.hint or None)
    return [
        f"{finding.subject}: {finding.message}" + (f" ({finding.hint})" if finding.hint else "")
        for finding in found
        if finding.level == "warning"
    ]
