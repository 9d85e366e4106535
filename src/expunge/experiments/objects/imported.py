"""The keys `weights`, `mask` and `pruned` of the section `model`: a model that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Architecture
    from expunge.sparsity import ImportedModel, PrunedBy


def check_declaration(section: Mapping[str, Any]) -> None:
    """Raise an ExpungeError unless the names in `model.pruned` are known."""
    declared = make_declaration(section)
    if declared is not None:
        declared.validate()


def make_declaration(section: Mapping[str, Any]) -> PrunedBy | None:
    """How an imported model was pruned, as `model.pruned` declares it."""
    declared = section.get("pruned")
    if declared is None:
        return None
    from expunge.sparsity import PrunedBy

    return PrunedBy(declared["criterion"], declared["scope"], tuple(declared["layers"]))


def read_imported(section: Mapping[str, Any], architecture: Architecture) -> ImportedModel:
    """Read `model.weights` and `model.mask` in their detected format.

    Raises:
        ModelError: the weights do not fit the network.
        MaskError: the mask does not fit.
        FileError: a file is missing, damaged, or a pickle.
    """
    from expunge.sparsity import import_model

    return import_model(architecture, section["weights"], mask=section["mask"], pruned=make_declaration(section))


def adopt(
    section: Mapping[str, Any],
    architecture: Architecture,
    imported: ImportedModel,
    records: Records,
    split: Split,
    *,
    recipe: Mapping[str, Any] | None = None,
    split_file: str | None = None,
) -> Trained:
    """Make a trained model from what `read_imported` found.

    Raises:
        ModelError: the weights contain NaN, or are nonzero where the mask prunes them.
        FileError: weights and split do not belong together (`expunge.models.recorded_pair`).
    """
    from expunge.sparsity import adopt_imported

    return adopt_imported(
        architecture, section["weights"], imported, records, split, recipe=recipe, split_file=split_file
    )
