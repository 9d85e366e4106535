"""The keys `weights`, `mask` and `pruned` of the section `model`: a model that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.core.split import Split
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.models import Architecture
    from expunge.sparsity import PrunedBy


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


def import_weights(
    section: Mapping[str, Any],
    architecture: Architecture,
    records: Records,
    split: Split,
    *,
    recipe: Mapping[str, Any] | None = None,
) -> Trained:
    """Import the model of `model.weights` and `model.mask` in its detected format.

    Raises:
        ModelError: the weights do not fit the network or contain NaN.
        MaskError: the mask does not fit.
        FileError: a file is missing, damaged, or a pickle.
    """
    from expunge.sparsity import adopt_weights

    return adopt_weights(
        architecture,
        section["weights"],
        records,
        split,
        mask=section["mask"],
        pruned=make_declaration(section),
        recipe=recipe,
    )
