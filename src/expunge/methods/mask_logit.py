"""mask-logit: the model never predicts the forgotten class. A trivial baseline for forgetting a class."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import nn

from expunge.core.errors import RequestError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records

from .base import Method
from .output_row import OutputRow, describe_masking_error, find_output_row, run_in_mode
from .reads import Reads, Sizes
from .registry import register_method
from .task import Task

#: The logit of the class for every input, far below all other logits.
LOGIT = -1e4
_REFUSED = "the model does not end in a linear layer with a bias that can be masked"
_HINT = "use another method, for example FT; patch does not change weights"


@register_method(
    "mask-logit", guarantee="empirical", citation="trivial baseline for forgetting a class; docs/patches.md"
)
@dataclasses.dataclass(frozen=True)
class MaskLogit(Method):
    """Forget a whole class: its logit becomes -10,000 for every input, so that it is never predicted. No training.

    In the layer that answers, the weights of the class are set to 0, and its bias so that the logit is -10,000. That
    layer is found by changing parameters and comparing outputs: the change must leave all other logits unchanged, in
    training and in evaluation mode. If there is no such change, the method refuses the model. The result is checked on
    all retained and test records. "Mask" in the name means that a logit is hidden; the pruning mask does not change,
    and a model whose mask prunes that bias is refused, as is one in which it is frozen. The request must be for a
    whole class. All other weights are unchanged, so everything else that the model learned from the class is still in
    it: other methods should do better than this baseline.
    """

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: no logit can be masked."""
        found: OutputRow | str = ""
        for index in sorted({0, records.classes // 2, records.classes - 1}):
            found = find_output_row(model, records, index, LOGIT)
            if not isinstance(found, str):
                return None
        return f"{_REFUSED}: {found}", _HINT

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            RequestError: the request is not for a whole class, or the model has no layer in which its logit can be
                masked.
        """
        _find_row(model, mask, request, records)

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`: it only checks its result on them, if they are there."""
        return False

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        return Reads()

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            RequestError: see `check_request`; or the result predicts the class, or changes another logit.
        """
        with task.untimed():
            row = _find_row(task.trained.model, task.mask, task.request, task.context.records)
        row.apply_(task.model)
        forgotten = task.request.forgotten_class
        assert forgotten is not None
        with task.untimed():
            _verify(task, forgotten)
        changed = ", ".join(dict.fromkeys(part.name for part in (*row.cleared, *row.biases)))
        task.line = f"mask-logit: class {forgotten} is never predicted ({changed})"


def _find_row(model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> OutputRow:
    forgotten = request.forgotten_class
    if forgotten is None:
        raise RequestError(
            "this method can only forget a whole class",
            where="mask-logit",
            hint="use another method for single records, for example patch",
        )
    found = find_output_row(model, records, forgotten, LOGIT, mask)
    if isinstance(found, str):
        raise RequestError(f"{_REFUSED} for class {forgotten}: {found}", where="mask-logit", hint=_HINT)
    return found


def _verify(task: Task, forgotten: int) -> None:
    """Compare the outputs for all retained and test records, and those of the first batches in training mode."""
    original = task.context.runtime.place(clone_model(task.trained.model))
    records, split = task.context.records, task.split
    retained = split.retain[np.isin(split.retain, records.record_ids)] if split.retain_absent else split.retain
    rows = np.concatenate([records.rows(retained), records.rows(split.test)])
    for number, (x, _) in enumerate(task.make_batches(rows, 256).in_order()):
        for training in (False, True)[: 2 if number < 4 and len(x) > 1 else 1]:
            before, after = (run_in_mode(model, x, training=training) for model in (original, task.model))
            wrong = describe_masking_error(before, after, forgotten, LOGIT)
            if wrong:
                mode = "training" if training else "evaluation"
                raise RequestError(f"{_REFUSED}: in {mode} mode, {wrong}", where="mask-logit", hint=_HINT)
