"""Canaries: training records with a wrong label, which a model gives only if it was trained on them."""

from __future__ import annotations

import numpy as np

from expunge.core.errors import RequestError
from expunge.core.seeds import derive, mix
from expunge.core.split import Planting, Split
from expunge.data.records import Records
from expunge.data.requests import IdsOrFile

from .draw import describe_draw, draw_bases, name_planted
from .plant import add_planted


def plant_canaries(
    records: Records,
    split: Split,
    *,
    fraction: float | None = None,
    count: int | None = None,
    seed: int = 0,
    hold: IdsOrFile = (),
) -> Records:
    """Give training records wrong labels, drawn uniformly from the other classes; they replace the clean ones.

    Args:
        records: the records, in memory or streamed.
        split: their split; its retain set is drawn from.
        fraction: fraction of the training records; give either `fraction` or `count`.
        count: number of records.
        seed: seed of the draw of records and labels.
        hold: ids that are not changed, or the path of a file of them.

    Returns:
        The records with the canaries, of the ids `ID~canary`, after them.

    Raises:
        RequestError: there is one class only, or there are too few records.

    Example:
        >>> import expunge
        >>> from expunge.data import plant_canaries
        >>> records = expunge.load_records("digits")
        >>> planted = plant_canaries(records, expunge.make_split(records, seed=0), count=50)
        >>> bases = records.rows(planted.planted.base_ids)
        >>> bool((planted.labels[-50:] == records.labels[bases]).any())  # never the true label
        False
    """
    if records.classes < 2:
        raise RequestError("there is no wrong label: the records have one class", where=records.name)
    bases = draw_bases(records, split, fraction=fraction, count=count, seed=seed, purpose="canaries", hold=hold)
    ids = name_planted(records, bases, "canary")
    rows = records.rows(bases)
    draws = mix(records.keys[rows], derive(seed, "canary labels")) % np.uint64(records.classes - 1)
    labels = (records.labels[rows] + 1 + draws.astype(np.int64)) % records.classes
    planting = Planting({"by": "canaries", **describe_draw(fraction, count, seed)}, ids, bases, ids, replaces=True)
    return add_planted(records, planting, labels=labels)
