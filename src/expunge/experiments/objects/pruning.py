"""The section `sparsity`: how a model is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.sparsity import Pruning


def make_pruning(
    section: Mapping[str, Any], *, epochs: int | None = None, ranks_trained_weights: bool = False
) -> Pruning:
    """The object of the section `sparsity`; making it validates it.

    Args:
        section: the keys of `expunge.sparsity.Pruning`.
        epochs: of the recipe, which the options of the schedule must fit; None: it is checked later.
        ranks_trained_weights: whether the masks must be those of trained dense weights, for topology leakage.

    Raises:
        ConfigError, MaskError: see `expunge.sparsity.Pruning`.
    """
    from expunge.core.errors import ConfigError
    from expunge.sparsity import Pruning, get_schedule

    pruning = Pruning(**section)
    if epochs is not None:
        pruning.check_recipe(epochs)
    if ranks_trained_weights and not get_schedule(pruning.schedule).ranks_trained_weights:
        raise ConfigError(
            f"topology leakage needs masks of trained dense weights, which {pruning.schedule} does not rank",
            where="schedule",
            hint="use omp or one-shot",
        )
    return pruning
