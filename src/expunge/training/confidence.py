"""Training confidence: the probability of the true label during training, averaged over the epochs.

A record that the model learns late, or only by heart, has a low one. It is a cheap proxy of memorisation: one training
instead of an ensemble of models that were not trained on the record [Zhao2024]_.

.. [Zhao2024] Zhao, Triantafillou: Scalability of memorization-based machine unlearning, arXiv 2410.16516.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.show import repr_fields
from expunge.data.records import Records

from .context import Context
from .epochs.steps import EpochCheck, Steps
from .loop import fit, order_seed
from .predict import predict_logits
from .progress import Progress
from .recipes import Recipe, get_recipe
from .runtime import Runtime

if TYPE_CHECKING:
    from expunge.models import Architecture


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingConfidences:
    """Confidences of records, averaged over the epochs of one training.

    Attributes:
        rows: `N` row numbers of the records.
        confidences: `N` means of the probability of the true label after each epoch, in [0, 1].
        epochs: number of epochs.
    """

    rows: NDArray[np.int64]
    confidences: NDArray[np.float64]
    epochs: int

    __repr__ = repr_fields

    def smallest_first(self) -> NDArray[np.int64]:
        """Return the rows by ascending confidence, the most memorised first; equal ones in ascending order of rows."""
        return self.rows[np.lexsort((self.rows, self.confidences))]


def measure_training_confidences(
    records: Records,
    rows: NDArray[np.int64],
    architecture: Architecture,
    *,
    recipe: str | Recipe,
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> TrainingConfidences:
    """Train one model on records, and measure each record's probability of its label after every epoch.

    The model has the initial weights and the order of records of `train` with the same seed. Confidences are measured
    in evaluation mode, without augmentation, and averaged over the epochs.

    Args:
        records: features and labels.
        rows: `N` row numbers of the records.
        architecture: the network.
        recipe: a registered name or a `Recipe`.
        seed: seeds initial weights, order and augmentation.
        runtime: device and precision.
        progress: callback for progress in records.

    Raises:
        TrainingError: the loss is not finite.

    >>> import numpy as np
    >>> import expunge
    >>> from expunge.training import measure_training_confidences
    >>> records = expunge.load_records("digits")
    >>> network = expunge.architecture("mlp", records, widths=(8,), normalise="none")
    >>> found = measure_training_confidences(records, np.arange(60), network, recipe=expunge.Recipe(epochs=2))
    >>> found.confidences.shape, found.epochs, bool((found.confidences <= 1).all())
    ((60,), 2, True)
    """
    recipe, runtime, rows = get_recipe(recipe), runtime or Runtime(), np.sort(rows)
    model = runtime.place(architecture.build(seed))
    labels = torch.from_numpy(records.labels[rows])
    total = np.zeros(len(rows))

    def add_epoch(network: nn.Module, epoch: int) -> EpochCheck:
        nonlocal total
        logits = predict_logits(network, records, rows, runtime=runtime).double()
        total = total + torch.softmax(logits, dim=1)[torch.arange(len(rows)), labels].numpy()
        return EpochCheck(forward_records=len(rows))

    context = Context(records, runtime, order_seed(seed), None, progress)
    result = fit(model, rows, recipe, context, steps=Steps(after_epoch=add_epoch), label="training confidences")
    return TrainingConfidences(rows, total / max(1, len(result.history)), len(result.history))
