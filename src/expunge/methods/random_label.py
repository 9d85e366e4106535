"""RL: fine-tuning with random labels on the forget set and the true ones on the retain set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from expunge.core.errors import MethodError
from expunge.core.seeds import derive, mix
from expunge.data.corrections.values import replace_labels
from expunge.data.records import Records

from .finetuning import FineTuning
from .reads import Reads, Sizes
from .registry import register_method
from .task import Task


@register_method(
    "RL",
    guarantee="empirical",
    citation="Golatkar et al. 2020; Graves et al. 2021; RL in the code of [Jia2023] and of SalUn",
    space={"epochs": [1, 2, 3, 5, 10], "learning_rate": (0.001, 0.1, "log")},
)
@dataclasses.dataclass(frozen=True)
class RandomLabel(FineTuning):
    """Fine-tune on D_r with the true labels and on D_f with wrong random labels, with the mask fixed.

    It minimises sum_{D_r} CE(f_theta(x), y) + sum_{D_f} CE(f_theta(x), y') by SGD, starting from the original weights
    theta_o. y' is uniform over the K - 1 classes other than y. It is drawn once per record, from the seed and the
    record id, so it is the same in every epoch and does not depend on the other records of the request. Batches contain
    records of both sets, in one order.

    The code of the papers draws y' from all K classes, so that 1 / K of D_f keeps its true label; here none does. The
    method trains the model to predict wrong labels. On records that a retrained model would classify correctly, long
    training therefore forgets too much.

    Attributes:
        label_smoothing: of the loss on both sets; see `FT`.
    """

    label_smoothing: float = 0.0

    def epoch_reads(self, sizes: Sizes) -> Reads:
        """See `FineTuning.epoch_reads`."""
        return Reads(retain=sizes.retain, forget=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            MethodError: there is only one class, so there is no wrong label.
        """
        records = relabel(task.context.records, task.request.record_ids, task.context.seed)
        self.fine_tune(task, on="both", records=records)


def relabel(records: Records, record_ids: Iterable[str], seed: int) -> Records:
    """Return the records with wrong labels for those with the given ids.

    y' = (y + 1 + (h mod (K - 1))) mod K with h = hash(seed, record id): never y, and uniform over the other classes.

    Raises:
        MethodError: there is only one class.
        DataError: an id is unknown.
    """
    if records.classes < 2:
        raise MethodError("RL needs at least two classes", where=records.name)
    rows = records.rows(record_ids)
    shift = mix(records.keys[rows], derive(seed, "method", "RL", "labels")) % np.uint64(records.classes - 1)
    labels = records.labels.copy()
    labels[rows] = (labels[rows] + 1 + shift.astype(np.int64)) % records.classes
    return replace_labels(records, labels)
