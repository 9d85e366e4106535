"""Objects that several stages build from their inputs: records, split, request, architecture, recipe, runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ChangedDataError
from expunge.core.hashing import hash_array, hash_json, hash_tensors

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Architecture
    from expunge.training import Recipe, Runtime

    from .registry import StageInputs

_CACHED: dict[str, Records] = {}


def hash_records(records: Records) -> str:
    """Hash of everything that a stage may use: features, labels, ids, subjects, partition, columns, normalisation."""
    body: dict[str, Any] = {"records": records.hash, "name": records.name}
    body["columns"] = {name: hash_array(values) for name, values in records.columns.items()}
    if records.partition is not None:
        body["partition"] = hash_array(records.partition)
    if records.normalisation is not None:
        statistics = records.normalisation
        body["normalisation"] = [list(statistics.mean), list(statistics.std), statistics.origin]
    return hash_json(body)


def read_stage_records(inputs: StageInputs) -> Records:
    """Read the records of a stage. The last records stay in memory, because the next stage usually reads the same.

    Raises:
        ChangedDataError: they differ from those of the data stage, because a file changed in the meantime.
    """
    data: Mapping[str, Any] = inputs.config["data"]
    name = hash_json({"data": data, "dir": inputs.data_dir})
    if name not in _CACHED:
        _CACHED.clear()
        _CACHED[name] = _load(data, inputs.data_dir)
    expected = inputs.output_hashes.get("data")
    if expected is not None and hash_records(_CACHED[name]) != expected:
        _CACHED[name] = _load(data, inputs.data_dir)  # those in memory may be of an earlier run
        if hash_records(_CACHED[name]) != expected:
            _CACHED.clear()
            raise ChangedDataError(
                "the data differ from those of the earlier stages",
                where=data["source"],
                hint="files changed while the plan ran, or since they were read; run it again: they are read again",
            )
    return _CACHED[name]


def _load(data: Mapping[str, Any], directory: str | None) -> Records:
    import importlib

    # By name, not by an import statement: the reader's code is part of the key of the data stage alone, whose output is
    # a hash of the records. A changed reader that reads the same records therefore recomputes no other stage.
    load: Any = importlib.import_module("expunge.data").load_records
    records: Records = load(data["source"], data_dir=directory, **data["options"])
    return records


def make_stage_split(inputs: StageInputs, records: Records) -> Split:
    """The split of a stage; see `load_or_make_split`."""
    from expunge.data.splitting import load_or_make_split

    return load_or_make_split(records, inputs.config["split"])


def make_stage_request(inputs: StageInputs, records: Records, split: Split) -> ForgetRequest:
    """The request of a stage: by its selection, or from the ranking of the stage `memorise`."""
    from expunge.core.files import read_json
    from expunge.data import forget_memorised, select_forget

    selection = inputs.config["forget"]
    if selection["by"] != "memorised":
        return select_forget(records, split, selection)
    ranking = read_json(inputs.directories["memorised"] / "memorised.json", "expunge.memorised", 1)["ranking"]
    options = {key: value for key, value in selection.items() if key not in ("by", "count", "hold")}
    hold = selection.get("hold") or ()
    return forget_memorised(records, split, ranking, int(selection["count"]), hold=hold, **options)


def make_stage_architecture(inputs: StageInputs, records: Records, split: Split) -> Architecture:
    """The architecture of a stage."""
    from expunge.models.architecture import architecture

    model = inputs.config["model"]
    return architecture(model["name"], records, split, normalise=model["normalise"], **model["options"])


def make_stage_recipe(inputs: StageInputs) -> Recipe:
    """The recipe of a stage: a registered one, with the configured fields overridden."""
    from expunge.training.recipes import get_recipe

    overrides = {key: value for key, value in inputs.config["training"].items() if key != "recipe"}
    return get_recipe(inputs.config["training"]["recipe"], **overrides)


def make_stage_runtime(inputs: StageInputs) -> Runtime:
    """Device and precision of a stage."""
    from expunge.training.runtime import Runtime

    return Runtime(**inputs.config["runtime"])


def hash_trained(trained: Trained) -> str:
    """Hash of everything in a trained model that a later stage may use: weights, mask, split, state, provenance.

    The history of the provenance is left out, because it contains durations.
    """
    provenance = trained.provenance.to_json()
    provenance.pop("history")
    return hash_json(
        {
            "weights": trained.hash,
            "mask": None if trained.mask is None else trained.mask.hash(),
            "split": trained.split.hash,
            "state": {kind: hash_tensors(tensors) for kind, tensors in trained.state.items()},
            "provenance": provenance,
        }
    )
