"""FT: fine-tuning on the retain set."""

from __future__ import annotations

import dataclasses

from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained

from .base import Context, register
from .finetuning import FineTuning, fine_tune


@register(
    "FT", guarantee="empirical", source="paper A [Jia2023], section 3; Warnecke et al. 2021; Golatkar et al. 2020"
)
@dataclasses.dataclass(frozen=True)
class FT(FineTuning):
    """Fine-tuning: cross-entropy on D_r from the original weights, and hope that the rest is forgotten.

    theta_u = argmin over a few epochs of mean_{D_r} CE(f_theta(x), y), from theta_o, mask fixed.
    """

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`."""
        return fine_tune(self, self, trained, request, context, on="retain")
