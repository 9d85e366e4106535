"""RL: random labels on the forget set, the true ones on the retain set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from expunge.core.errors import MethodError
from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.trained import Trained
from expunge.data.records import Records

from .base import Context, identity_outcome, register
from .finetuning import FineTuning, fine_tune


@register(
    "RL",
    guarantee="empirical",
    source="Golatkar et al. 2020; Graves et al. 2021; RL in the code of paper A [Jia2023] and of SalUn",
)
@dataclasses.dataclass(frozen=True)
class RandomLabel(FineTuning):
    """Random labels: cross-entropy on D_r with the true labels and on D_f with wrong ones, mask fixed.

    theta_u = argmin over a few epochs of sum_{D_r} CE(f_theta(x), y) + sum_{D_f} CE(f_theta(x), y'), from theta_o; y'
    is uniform among the K - 1 classes other than y. It is drawn once a record from the seed and the record id, so it is
    the same in every epoch and does not depend on which other records are forgotten. Both sets go through in one order,
    records of both in a batch.

    The papers' code draws y' among all K classes, so that a K-th of D_f keeps its true label; here none does. A wrong
    label is pushed up, not away: on records that a retrained model would get right, a long run forgets too much.
    """

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            MethodError: there is one class only, hence no wrong label.
        """
        if len(request.record_ids) == 0:
            return identity_outcome(self, trained, request, context, dataclasses.asdict(self))
        request.apply(trained.split)  # a wrong request is refused before any label is looked up
        records = relabel(context.records, request.record_ids, context.seed)
        return fine_tune(self, self, trained, request, context, on="both", records=records)


def relabel(records: Records, record_ids: Iterable[str], seed: int) -> Records:
    """The same records, with wrong labels for the named ones.

    y' = (y + 1 + h mod (K - 1)) mod K with h = hash(seed, record id): never y, uniform over the other classes.

    Raises:
        MethodError: there is one class only.
        DataError: an id is unknown.
    """
    if records.classes < 2:
        raise MethodError("RL needs at least two classes", where=records.name, hint="one class has no wrong label")
    rows = records.rows(record_ids)
    shift = mix(records.keys[rows], derive(seed, "method", "RL", "labels")) % np.uint64(records.classes - 1)
    labels = records.labels.copy()
    labels[rows] = (labels[rows] + 1 + shift.astype(np.int64)) % records.classes
    return dataclasses.replace(records, labels=labels)
