"""What several stages make from their inputs, and the hash of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expunge.core.errors import ChangedDataError
from expunge.core.hashing import hash_json, hash_tensors
from expunge.experiments.objects.model import make_architecture
from expunge.experiments.objects.records import drop_records, hash_records, read_records
from expunge.experiments.objects.request import make_request
from expunge.experiments.objects.split import make_split
from expunge.experiments.objects.training import make_recipe, make_runtime

if TYPE_CHECKING:
    from expunge.core.request import ForgetRequest
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Architecture
    from expunge.training import Recipe, Runtime

    from .registry import StageInputs


def read_stage_records(inputs: StageInputs) -> Records:
    """Read the records of a stage; see `objects.records.read_records`.

    Raises:
        ChangedDataError: they differ from those of the data stage, because a file changed in the meantime.
    """
    data = inputs.config["data"]
    records = read_records(data, inputs.data_dir)
    expected = inputs.output_hashes.get("data")
    if expected is None or hash_records(records, data, inputs.data_dir) == expected:
        return records
    drop_records()  # those in memory may be of an earlier run
    records = read_records(data, inputs.data_dir)
    if hash_records(records, data, inputs.data_dir) != expected:
        drop_records()
        raise ChangedDataError(
            "the data differ from those of the earlier stages",
            where=data["source"],
            hint="files changed while the plan ran, or since they were read; run it again: they are read again",
        )
    return records


def make_stage_split(inputs: StageInputs, records: Records) -> Split:
    """The split of a stage."""
    return make_split(inputs.config["split"], records)


def make_stage_architecture(inputs: StageInputs, records: Records, split: Split) -> Architecture:
    """The architecture of a stage."""
    return make_architecture(inputs.config["model"], records, split)


def make_stage_recipe(inputs: StageInputs) -> Recipe:
    """The recipe of a stage."""
    return make_recipe(inputs.config["training"])


def read_ranked_records(inputs: StageInputs) -> tuple[Records, Split]:
    """The records with their corrections, and the split, of a stage that ranks the retained records by training.

    The split is saved beside the checkpoints: it says which records they saw.
    """
    from expunge.data import correct_records

    records = read_stage_records(inputs)
    split = make_stage_split(inputs, records)
    split.save(inputs.work_dir / "split.json")
    return correct_records(records, split.corrections), split


def make_stage_runtime(inputs: StageInputs) -> Runtime:
    """Device and precision of a stage."""
    return make_runtime(inputs.config["runtime"])


def make_stage_request(inputs: StageInputs, records: Records, split: Split) -> ForgetRequest:
    """The request of a stage: by its selection, or from the ranking of the stage `memorise` or `confidences`."""
    return make_request(inputs.config["forget"], records, split, read_ranking(inputs))


def read_ranking(inputs: StageInputs) -> list[str] | None:
    """The ranking of the training records that the stage has as an input, most memorised first; None if it has none."""
    from expunge.core.files import read_json

    if "memorised" not in inputs.directories:
        return None
    ranking: list[str] = read_json(
        inputs.directories["memorised"] / "memorised.json", "expunge.memorised", 1
    )["ranking"]  # fmt: skip
    return ranking


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
