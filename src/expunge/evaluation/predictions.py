"""Predictions of one model on the parts of its split: computed once, shared by all scores."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import DataError, ModelError, RequestError
from expunge.core.request import ForgetRequest
from expunge.core.show import Summary, repr_fields, repr_text
from expunge.core.split import PARTS, Ids, Split, as_ids
from expunge.core.trained import Trained
from expunge.data.corrections.values import get_values_after, get_values_before
from expunge.data.records import Records

if TYPE_CHECKING:
    from expunge.training import Runtime

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Predictor(Protocol):
    """A function that computes logits, `N x K` for `N` rows in their order; see `expunge.training.predict_logits`."""

    def __call__(
        self, model: nn.Module, records: Records, rows: NDArray[np.int64], *, runtime: Runtime | None = None
    ) -> torch.Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of `N` records, in the order of the records in their data source.

    Attributes:
        logits: `N x K`, as the model returned them.
        labels: `N` class indices.
        record_ids: `N` record ids.

    Raises:
        ModelError: the logits are not `N x K`, not finite, or have too few classes for the labels.
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.int64]
    record_ids: Ids

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        shape = self.logits.shape
        if len(shape) != 2 or not (shape[0] == len(self.labels) == len(self.record_ids)):
            raise ModelError(
                f"logits of shape {tuple(shape)} for {len(self.labels)} records",
                hint="the model has to return K logits for each record",
            )
        if len(self.labels) and int(self.labels.max()) >= shape[1]:
            raise ModelError(
                f"the model has {shape[1]} outputs, but a record has label {int(self.labels.max())}",
                hint="build the model with as many outputs as the records have classes",
            )
        if not np.isfinite(self.logits).all():
            bad = str(self.record_ids[~np.isfinite(self.logits).all(axis=1)][0])
            raise ModelError("the model returns NaN or infinite logits", where=bad, hint="its weights are damaged")

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def confidence(self) -> Floats:
        """Softmax probability of the true label, `N` numbers in [0, 1], computed in float64.

        p_y = exp(z_y - max z) / sum_k exp(z_k - max z).
        """
        if len(self) == 0:
            return np.empty(0)
        shifted = self.logits.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        np.exp(shifted, out=shifted)
        return shifted[np.arange(len(self)), self.labels] / shifted.sum(axis=1)

    @functools.cached_property
    def legacy_confidence(self) -> Floats:
        """Softmax probability of the true label, computed in float32: the feature of the attack of [Jia2023].

        `N` numbers in [0, 1], each a float32. They are torch's softmax of the float32 logits, as in the released code.
        Near 1 they are coarser than `confidence`, which moves records across the boundary that the attack fits.
        """
        if len(self) == 0:
            return np.empty(0)
        probabilities = torch.tensor(self.logits, dtype=torch.float32).softmax(dim=-1).numpy()
        return probabilities[np.arange(len(self)), self.labels].astype(np.float64)

    @functools.cached_property
    def correct(self) -> Bools:
        """Whether the argmax of the logits is the label, `N` booleans (the first class wins a tie)."""
        if len(self) == 0:
            return np.empty(0, dtype=np.bool_)
        return np.asarray(self.logits.argmax(axis=1) == self.labels)

    def take(self, where: NDArray[np.bool_] | NDArray[np.int64]) -> Predictions:
        """The predictions at these positions (booleans or indices)."""
        return Predictions(self.logits[where], self.labels[where], self.record_ids[where])


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Predictions of one model by part of the split after the request.

    Attributes:
        forget: D_f, the records of the request; of a correction, with their old values.
        retain: D_r, the other training records (a correction does not change them).
        validation, test: never trained on; the test part includes a forgotten class.
        non_members: the non-member pool, never trained on.
        class_names: `K` strings.
        forgotten_class: index of the class if D_f is a whole class.
        corrected: the records of a correction with their new values; None: the request removes its records.
    """

    forget: Predictions
    retain: Predictions
    validation: Predictions
    test: Predictions
    non_members: Predictions
    class_names: tuple[str, ...]
    forgotten_class: int | None = None
    corrected: Predictions | None = None

    def counts(self) -> dict[str, int]:
        """Number of records in each part."""
        return {part: len(getattr(self, part)) for part in PARTS}

    def _summarise(self) -> Summary:
        return Summary(lambda: ", ".join(f"{count:,} {part}" for part, count in self.counts().items()))

    __repr__ = repr_text

    @functools.cached_property
    def legacy_test(self) -> Predictions:
        """The test records of the legacy scores: without the forgotten class if D_f is a whole class.

        Raises:
            DataError: there are no such records.
        """
        if not self.has_test:
            raise DataError("there are no test records to score on", hint="make a split with a larger test part")
        if self.forgotten_class is None:
            return self.test
        return self.test.take(self.test.labels != self.forgotten_class)

    @property
    def has_test(self) -> bool:
        """Whether there are test records of the legacy scores; without them, some scores are not measured."""
        return bool((self.test.labels != (-1 if self.forgotten_class is None else self.forgotten_class)).any())


def select_scored_ids(split: Split, request: ForgetRequest) -> dict[str, Ids]:
    """Record ids by part of the split after the request: D_f is the request, D_r = retain minus D_f.

    The records of a correction stay in training, and are not part of D_r here: D_r are the unchanged records. The split
        may be that of the original model (D_f is in `retain`) or of an unlearned one (D_f is in `forget`).
    Records of earlier requests are in no part.

    Args:
        split: the split of the model that is scored.
        request: D_f.

    Raises:
        RequestError: the request is empty, has records that were never trained on, or has both records that were
            forgotten before and records that were not.
    """
    wanted = request.record_ids
    if len(wanted) == 0:
        raise RequestError("the forget set is empty: there is nothing to score")
    after = split if request.is_applied(split) else request.apply(split)
    parts = {part: getattr(after, part) for part in PARTS}
    if request.correction is not None:
        parts["retain"] = after.retain[~np.isin(after.retain, wanted)]
    return {**parts, "forget": as_ids(wanted)}


def predict_parts(
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    *,
    runtime: Runtime | None = None,
    predict: Predictor | None = None,
) -> Parts:
    """Run the model once over all parts of its split; the records of a part are in the order of the data source.

    All parts go through the model in one call, so that two models of one split see the same batches. If the split
    declares the records of D_r absent, that part is empty.

    Args:
        trained: the model and its split.
        request: D_f.
        records: the records of the split.
        runtime: device and precision.
        predict: computes logits; None: `expunge.training.predict_logits`.

    Raises:
        RequestError: the request is empty or does not fit the split.
        ModelError: the logits have the wrong shape or are not finite.

    Examples:
        >>> import expunge
        >>> from expunge.core.trained import Provenance
        >>> from expunge.evaluation import predict_parts
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records)
        >>> model = expunge.architecture("mlp", records, split, widths=(8,)).build(0)  # untrained
        >>> trained = expunge.Trained(model, None, split, Provenance({}))
        >>> request = expunge.forget_random(records, split, count=20)
        >>> parts = predict_parts(trained, request, records, runtime=expunge.Runtime("cpu"))
        >>> parts.forget.logits.shape, len(parts.forget) + len(parts.retain) == len(split.train)
        ((20, 10), True)
    """
    if predict is None:
        from expunge.training import predict_logits

        predict = predict_logits
    ids = select_scored_ids(trained.split, request)
    if trained.split.retain_absent:
        ids["retain"] = as_ids(())
    source, records = records, get_values_before(records, trained.split, request)
    rows = {part: np.sort(records.rows(ids[part])) for part in PARTS}
    together = np.sort(np.concatenate(list(rows.values())))
    logits = predict(trained.model, records, together, runtime=runtime).detach().float().cpu().numpy()
    if logits.shape[:1] != together.shape:
        raise ModelError(f"logits of shape {tuple(logits.shape)} for {len(together)} records")

    def part(name: str) -> Predictions:
        where = np.searchsorted(together, rows[name])
        return Predictions(logits[where], records.labels[rows[name]], records.record_ids[rows[name]])

    return Parts(
        **{name: part(name) for name in PARTS},
        class_names=records.class_names,
        forgotten_class=request.forgotten_class,
        corrected=_predict_corrected(trained, request, source, part("forget"), runtime, predict),
    )


def _predict_corrected(
    trained: Trained,
    request: ForgetRequest,
    records: Records,
    before: Predictions,
    runtime: Runtime | None,
    predict: Predictor,
) -> Predictions | None:
    """Predictions on the records of a correction with their new values, in the order of those on the old values."""
    if request.correction is None:
        return None
    after = get_values_after(records, trained.split, request)
    rows, logits = after.rows(before.record_ids), before.logits
    if request.correction.blank:
        logits = predict(trained.model, after, rows, runtime=runtime).detach().float().cpu().numpy()
    return Predictions(logits, after.labels[rows], before.record_ids)
