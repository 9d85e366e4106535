"""FT: fine-tuning on the retain set."""

from __future__ import annotations

import dataclasses

from expunge.core.outcome import Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained

from .base import Context, register
from .finetuning import FineTuning, fine_tune


@register("FT", guarantee="empirical", citation="[Jia2023], section 3; Warnecke et al. 2021; Golatkar et al. 2020")
@dataclasses.dataclass(frozen=True)
class FT(FineTuning):
    """Fine-tune the original model on D_r for a few epochs, with its mask fixed.

    It minimises mean_{D_r} CE(f_theta(x), y) by SGD, starting from the original weights theta_o.
    """

    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """See `Method.forget`."""
        return fine_tune(self, self, trained, request, context, on="retain")
