"""mask-logit: the model never predicts the forgotten class. A trivial baseline for forgetting a class."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from expunge.core.errors import RequestError

from .base import Method
from .registry import register_method
from .task import Task

#: The logit of the class for every input, far below all other logits.
LOGIT = -1e4


@register_method(
    "mask-logit", guarantee="empirical", citation="trivial baseline for forgetting a class; docs/patches.md"
)
@dataclasses.dataclass(frozen=True)
class MaskLogit(Method):
    """Forget a whole class: its logit becomes -10,000 for every input, so that it is never predicted. No training.

    The row of the class in the last linear layer is set to 0, and its bias to -10,000. "Mask" in the name means that a
    logit is hidden; the pruning mask does not change. The request must be for a whole class. All other
    weights are unchanged, so everything else that the model learned from the class is still in it: other methods should
    do better than this baseline.
    """

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`.

        Raises:
            RequestError: the request is not for a whole class; the model does not end in a linear layer with a bias; or
                the mask prunes that bias.
        """
        forgotten, classes = task.request.forgotten_class, task.context.records.classes
        if forgotten is None:
            raise RequestError(
                "this method can only forget a whole class",
                where="mask-logit",
                hint="use another method for single records, for example patch",
            )
        last = [m for m in task.model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
        if not last or last[-1].bias is None:
            raise RequestError("the model does not end in a linear layer with a bias", where="mask-logit")
        with torch.no_grad():
            last[-1].weight[forgotten] = 0.0
            last[-1].bias[forgotten] = LOGIT
        if task.mask is not None:
            task.mask.apply_(task.model)
        if float(last[-1].bias[forgotten].detach()) != LOGIT:
            raise RequestError(
                "the pruning mask sets the bias of the class to 0, so its logit cannot be hidden",
                where="mask-logit",
                hint="use another method, or leave the biases of the last layer out of the mask",
            )
        task.line = f"mask-logit: class {forgotten} is never predicted"
