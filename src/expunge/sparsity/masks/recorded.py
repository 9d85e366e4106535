"""What a mask records about how it was made: names that come from a file, so code that they name needs the gate."""

from __future__ import annotations

from expunge.core.errors import ConfigError, MaskError
from expunge.core.mask import MaskProvenance
from expunge.core.registry import is_reference
from expunge.core.trust import permit

from .allocation import get_scope
from .granularity import Granularity, UnknownGranularity, get_granularity

#: How a user declares how a model was pruned.
DECLARE_HINT = (
    'in Python pruned=expunge.sparsity.PrunedBy(criterion="magnitude", scope="global", layers=("conv", "linear")), or '
    "a mapping of its fields; in a configuration the fields of model.pruned"
)


def permit_name(name: str) -> None:
    """Check that the owner agreed to the code that a name of a mask's provenance names. Nothing is imported.

    Raises:
        TrustError: the name is `package.module:name`, and the owner did not agree to it (`expunge.core.trust`).
        MaskError: there is no such module.
    """
    if is_reference(name):
        permit(name, error=MaskError)


def permit_rule(provenance: MaskProvenance) -> None:
    """Check the names of criterion, granularity and scope; see `permit_name`."""
    for name in (provenance.criterion, provenance.granularity, provenance.scope):
        permit_name(name)


def recorded_granularity(provenance: MaskProvenance) -> Granularity:
    """The granularity that a mask records; an `UnknownGranularity` if nothing of that name is defined.

    Raises:
        TrustError, MaskError: see `permit_name`.

    Example:
        >>> recorded_granularity(MaskProvenance("magnitude", granularity="2:4")).fixed_sparsity
        0.5
        >>> recorded_granularity(MaskProvenance("magnitude", granularity="no such")).structured
        True
    """
    permit_name(provenance.granularity)
    try:
        return get_granularity(provenance.granularity)
    except ConfigError:
        return UnknownGranularity(provenance.granularity)


def competes_across_layers(provenance: MaskProvenance) -> bool:
    """Whether layers competed when a mask was made, by the scope that it records; not under an unknown scope.

    Raises:
        TrustError, MaskError: see `permit_name`.
    """
    permit_name(provenance.scope)
    try:
        return get_scope(provenance.scope).across_layers
    except ConfigError:
        return False
