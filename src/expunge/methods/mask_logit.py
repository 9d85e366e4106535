"""mask-logit: the model never predicts the forgotten class. A trivial baseline for forgetting a class."""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import nn

from expunge.core.errors import RequestError
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model

from .base import Context, Method, identity_outcome, register
from .finetuning import DROPPED_STATE

#: The logit of the class for every input, far below all other logits.
LOGIT = -1e4


@register("mask-logit", guarantee="empirical", citation="trivial baseline for forgetting a class; docs/patches.md")
@dataclasses.dataclass(frozen=True)
class MaskLogit(Method):
    """Forget a whole class: its logit becomes -10,000 for every input, so that it is never predicted. No training.

    The row of the class in the last linear layer is set to 0, and its bias to -10,000. "Mask" in the name means that a
    logit is hidden; the pruning mask does not change. The request must be for a whole class. All other
    weights are unchanged, so everything else that the model learned from the class is still in it: other methods should
    do better than this baseline.
    """

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`.

        Raises:
            RequestError: the request is not for a whole class, or the model does not end in a linear layer with a bias.
        """
        if len(request.record_ids) == 0:
            return identity_outcome(self, trained, request, context, {})
        if request.forgotten_class is None:
            raise RequestError(
                "this method can only forget a whole class",
                where="mask-logit",
                hint="use another method for single records, for example patch",
            )
        start_time = time.perf_counter()
        split = request.apply(trained.split)
        model = clone_model(trained.model)
        last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == context.records.classes]
        if not last or last[-1].bias is None:
            raise RequestError("the model does not end in a linear layer with a bias", where="mask-logit")
        with torch.no_grad():
            last[-1].weight[request.forgotten_class] = 0.0
            last[-1].bias[request.forgotten_class] = LOGIT
        provenance = trained.provenance.add_history(f"mask-logit: class {request.forgotten_class} is never predicted")
        state = {k: v for k, v in trained.state.items() if k not in DROPPED_STATE}
        return Outcome(
            trained=dataclasses.replace(trained, model=model, split=split, state=state, provenance=provenance),
            request=request,
            method=self.name,
            options={},
            guarantee=self.guarantee,
            cost=Cost(0, 0, len(split.retain), time.perf_counter() - start_time),
            rewrote=("weights",),
            dropped=tuple(k for k in DROPPED_STATE if k in trained.state),
            seed=context.seed,
        )
