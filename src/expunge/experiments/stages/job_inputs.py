"""What the stages share: the records of a job, its runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.errors import DataError
from expunge.core.hashing import hash_array, hash_json, hash_tensors

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Architecture
    from expunge.training import Recipe, Runtime

    from .registry import Job

_KEPT: dict[str, Records] = {}


def records_hash(records: Records) -> str:
    """Hash of all that a stage may use: features, labels, ids, subjects, partition, columns, constants."""
    body: dict[str, Any] = {"records": records.hash, "name": records.name}
    body["columns"] = {name: hash_array(values) for name, values in records.columns.items()}
    if records.partition is not None:
        body["partition"] = hash_array(records.partition)
    if records.normalisation is not None:
        constants = records.normalisation
        body["normalisation"] = [list(constants.mean), list(constants.std), constants.origin]
    return hash_json(body)


def job_records(job: Job) -> Records:
    """The records of a job; the last ones stay in memory, as the next job mostly wants the same.

    Raises:
        DataError: they are not those of the data stage: a file was changed in the meantime.
    """
    data: Mapping[str, Any] = job.config["data"]
    name = hash_json({"data": data, "dir": job.data_dir})
    if name not in _KEPT:
        _KEPT.clear()
        _KEPT[name] = _load(data, job.data_dir)
    records = _KEPT[name]
    expected = job.outputs.get("data")
    if expected is not None and records_hash(records) != expected:
        _KEPT.clear()
        raise DataError(
            "the data are not those that the earlier stages used",
            where=data["source"],
            hint="files were changed while the plan ran; run it again",
        )
    return records


def _load(data: Mapping[str, Any], directory: str | None) -> Records:
    import importlib

    # By name, not by an import statement: the reader's code counts for the data stage alone, whose output is a hash
    # of what was read. So a change of a reader that reads the same records computes nothing anew.
    load: Any = importlib.import_module("expunge.data").load_records
    records: Records = load(data["source"], data_dir=directory, **data["options"])
    return records


def job_split(job: Job, records: Records) -> Split:
    """The split of a job; see `load_or_make_split`."""
    from expunge.data.splitting import load_or_make_split

    return load_or_make_split(records, job.config["split"])


def job_request(job: Job, records: Records, split: Split) -> ForgetRequest:
    """The request of a job: by its selection, or from the ranking of the stage `memorise`."""
    from expunge.core.files import read_json
    from expunge.data import forget_memorised, select_forget

    selection = job.config["forget"]
    if selection["by"] != "memorised":
        return select_forget(records, split, selection)
    ranking = read_json(job.inputs["memorised"] / "memorised.json", "expunge.memorised", 1)["ranking"]
    how = {key: value for key, value in selection.items() if key not in ("by", "count", "hold")}
    return forget_memorised(records, split, ranking, int(selection["count"]), hold=selection.get("hold") or (), **how)


def job_architecture(job: Job, records: Records, split: Split) -> Architecture:
    """The architecture of a job."""
    from expunge.models.architecture import architecture

    model = job.config["model"]
    return architecture(model["name"], records, split, normalise=model["normalise"], **model["options"])


def job_recipe(job: Job) -> Recipe:
    """The recipe of a job: a registered one, with fields overridden."""
    from expunge.training.recipes import get_recipe

    overrides = {key: value for key, value in job.config["training"].items() if key != "recipe"}
    return get_recipe(job.config["training"]["recipe"], **overrides)


def job_runtime(job: Job) -> Runtime:
    """Device and precision of a job."""
    from expunge.training.runtime import Runtime

    return Runtime(**job.config["runtime"])


def trained_hash(trained: Trained) -> str:
    """Hash of everything of a trained model that a later stage may use: weights, mask, split, state, provenance.

    The provenance's history is left out: it tells how long things took.
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
