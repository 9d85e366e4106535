"""One rule for methods that ascend: stop when the forget error reaches that of validation records of the same classes.

A model that was never trained on D_f errs on it as on other records of these classes that it was never trained on. The
rule and SCRUB's rewinding compare with that error. Test records are never read.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.outcome import Outcome
from expunge.core.split import Split
from expunge.data.records import Records
from expunge.methods.task import Task
from expunge.training.epochs.steps import EpochCheck
from expunge.training.predict import predict_logits

#: When a method stops before its last epoch.
STOPS: dict[str, str] = {
    "never": "after the last epoch",
    "validation": "after the first epoch in which the forget error is at least that of validation records",
}


_SIGN = "; stopped: "
#: Values that switch an option off which needs validation records; else `False`.
_OFF = {"stop": "'never'"}


def explain_stop(reason: str) -> str:
    """What the history of a model says if a method ended before its last epoch; empty without a reason."""
    return f"{_SIGN}{reason}" if reason else ""


def find_stop(outcome: Outcome) -> str:
    """What the history of the model says about why a method ended early, for a method that ran it; or empty.

    Args:
        outcome: of the method.
    """
    history = outcome.trained.provenance.history
    _, sign, reason = (history[-1] if history else "").partition(_SIGN)
    return sign + reason


def find_validation_rows(
    records: Records, split: Split, forget_rows: NDArray[np.int64], where: str
) -> NDArray[np.int64]:
    """Find the validation records of the classes of D_f.

    Args:
        records: the records.
        split: has the validation records.
        forget_rows: rows of D_f.
        where: the option that needs them, for the error.

    Raises:
        MethodError: there are none of a class of D_f.
    """
    rows = records.rows(split.validation)
    wanted = np.unique(records.labels[forget_rows])
    missing = np.setdiff1d(wanted, records.labels[rows])
    if len(missing):
        names = ", ".join(records.class_names[index] for index in missing[:3])
        names += ", ..." if len(missing) > 3 else ""
        option = where.rpartition(".")[2]
        off = f"{option}={_OFF.get(option, 'False')}"
        classes = f"{len(missing)} class{'es' * (len(missing) > 1)}"
        raise MethodError(
            f"there are no validation records of {classes} of the forget set ({names}), so the error of a model "
            "that was not trained on it cannot be estimated",
            where=where,
            hint=f"draw a split with more validation records, adopt(..., validation=...); or do without: {off}",
        )
    return rows[np.isin(records.labels[rows], wanted)]


@dataclasses.dataclass(frozen=True, eq=False)
class ForgetErrors:
    """Measures the forget error and its reference: the error on validation records of the same classes.

    With n_c records of class c in D_f, and the validation records V_c of that class,

        forget error = mean over D_f of [argmax f(x) != y],
        reference = sum_c n_c / |D_f| * mean over V_c of [argmax f(x) != c],

    both of the model at hand, in evaluation mode, without augmentation. A measurement is one forward pass over D_f
    and one over the validation records of its classes.
    """

    task: Task
    forget_rows: NDArray[np.int64]
    validation_rows: NDArray[np.int64]

    @classmethod
    def make(cls, task: Task, needed_by: str) -> ForgetErrors:
        """Find the records.

        Args:
            task: the task of a method.
            needed_by: the option that needs them, for the message.

        Raises:
            MethodError: there are no validation records of a class of D_f.
        """
        where = f"{task.name}.{needed_by}"
        rows = find_validation_rows(task.context.records, task.split, task.forget_rows, where)
        return cls(task, task.forget_rows, rows)

    @property
    def count(self) -> int:
        """Records that go forward for one measurement."""
        return len(self.forget_rows) + len(self.validation_rows)

    def measure_forget(self, model: nn.Module) -> float:
        """The forget error, in percent."""
        return 100.0 * float(self._find_wrong(model, self.forget_rows).mean())

    def measure_reference(self, model: nn.Module) -> float:
        """The error on validation records of the same classes, in percent."""
        labels = self.task.context.records.labels
        wrong, seen = self._find_wrong(model, self.validation_rows), labels[self.validation_rows]
        classes, counts = np.unique(labels[self.forget_rows], return_counts=True)
        means = [float(wrong[seen == index].mean()) for index in classes]
        return 100.0 * float(np.dot(counts, means) / counts.sum())

    def _find_wrong(self, model: nn.Module, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        context = self.task.context
        predicted = predict_logits(model, context.records, rows, runtime=context.runtime).argmax(1).numpy()
        found: NDArray[np.bool_] = predicted != context.records.labels[rows]
        return found

    def check(self, model: nn.Module, epoch: int) -> EpochCheck:
        """The stopping rule, as `Steps.after_epoch`."""
        forget, reference = self.measure_forget(model), self.measure_reference(model)
        reason = f"the forget error ({forget:.1f} %) reached that of validation records ({reference:.1f} %)"
        return EpochCheck(
            f"{reason} in epoch {epoch + 1}" if forget >= reference else "",
            {"forget_error": forget, "reference_error": reference},
            self.count,
        )
