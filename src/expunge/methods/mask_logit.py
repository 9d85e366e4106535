"""mask-logit: a class is never answered again. The trivial baseline of class-wise forgetting."""

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

#: What the logit of the class becomes for every input; no other logit comes near it.
LOGIT = -1e4


@register("mask-logit", guarantee="empirical", source="the trivial baseline of class-wise forgetting; docs/patches.md")
@dataclasses.dataclass(frozen=True)
class MaskLogit(Method):
    """Never answer a class: its row of the last linear layer becomes zero and its bias -10,000. Nothing is trained.

    It takes a request for a whole class only. Every other weight stays as it was, so whatever the model learned from
    the class is still there; other methods for a class have to be worth more than this.
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
                "only the logit of a whole class can be masked",
                where="mask-logit",
                hint="for single records use another method, for example patch",
            )
        started = time.perf_counter()
        split = request.apply(trained.split)
        model = clone_model(trained.model)
        last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == context.records.classes]
        if not last or last[-1].bias is None:
            raise RequestError("the model does not end in a linear layer with a bias", where="mask-logit")
        with torch.no_grad():
            last[-1].weight[request.forgotten_class] = 0.0
            last[-1].bias[request.forgotten_class] = LOGIT
        provenance = trained.provenance.then(f"mask-logit: class {request.forgotten_class} is never answered")
        state = {k: v for k, v in trained.state.items() if k not in DROPPED_STATE}
        return Outcome(
            trained=dataclasses.replace(trained, model=model, split=split, state=state, provenance=provenance),
            request=request,
            method=self.name,
            options={},
            guarantee=self.guarantee,
            cost=Cost(0, 0, len(split.retain), time.perf_counter() - started),
            rewrote=("weights",),
            dropped=tuple(k for k in DROPPED_STATE if k in trained.state),
            seed=context.seed,
        )
