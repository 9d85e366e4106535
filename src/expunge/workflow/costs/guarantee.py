"""The guarantee that a run will have, before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.core.trained import Trained
    from expunge.methods import Method


def announce_guarantee(method: Method, trained: Trained, *, stand_in: bool) -> str:
    """Find the guarantee of the outcome on a model, as the run itself does.

    Args:
        method: with its options.
        trained: the original, or a stand-in for it before it is trained.
        stand_in: a stand-in is read in place of D_r.

    Raises:
        MethodError: frozen parameters of the model are not those of its declared start.

    >>> import expunge
    >>> from expunge.workflow.costs.guarantee import announce_guarantee
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
    >>> retrain = expunge.get_method("Retrain")
    >>> announce_guarantee(retrain, trained, stand_in=False), announce_guarantee(retrain, trained, stand_in=True)
    ('exact', 'empirical')
    """
    from expunge.methods.stand_in import lower_guarantee

    guarantee = method.find_guarantee(trained)
    return lower_guarantee(guarantee) if stand_in else guarantee
