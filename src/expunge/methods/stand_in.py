"""Run a method with a stand-in retain set: it reads the stand-in wherever it would read D_r."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from expunge.core.errors import RequestError
from expunge.core.outcome import GUARANTEES, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.retain_set.stand_in import StandIn
from expunge.training.context import Context

if TYPE_CHECKING:
    from .base import Method

#: Guarantees that compare with a model retrained on D_r: none of them holds for another set.
_ABOUT_RETRAINING = ("exact", "certified", "conditional")


def forget_with_stand_in(
    method: Method, trained: Trained, request: ForgetRequest, context: Context, stand_in: StandIn
) -> Outcome:
    """Forget a request with a stand-in for D_r, whose records are absent.

    The method runs as usual, with a split whose retain set is the stand-in. The outcome names the stand-in, has the
    split of the original, and at most the guarantee `empirical` (`behavioural` for a patch, whose proof does not depend
    on D_r).

    Args:
        method: the method.
        trained: the original; its split declares the retain records absent.
        request: the records to forget.
        context: as in `Method.forget`; its records are replaced.
        stand_in: see `join_stand_in`.

    Raises:
        RequestError: the split does not declare the retain records absent; or see `Method.forget`.
        MethodError: see `Method.forget`.
    """
    replaced = replace_retained(trained, request, stand_in)
    after_request = request.apply(trained.split)
    outcome = method.forget(replaced, request, dataclasses.replace(context, records=stand_in.records))
    guarantee = lower_guarantee(outcome.guarantee)
    return dataclasses.replace(
        outcome,
        trained=dataclasses.replace(outcome.trained, split=after_request),
        guarantee=guarantee,
        bound={} if guarantee != outcome.guarantee else outcome.bound,
        stand_in=stand_in.to_json(),
    )


def replace_retained(trained: Trained, request: ForgetRequest, stand_in: StandIn) -> Trained:
    """The model that a method gets: its retain set is the stand-in.

    Args:
        trained: the original; its split declares the retain records absent.
        request: the records to forget.
        stand_in: see `join_stand_in`.

    Raises:
        RequestError: the split does not declare the retain records absent.
    """
    split = trained.split
    if not split.retain_absent:
        raise RequestError(
            "the retain records are there: a stand-in would replace them",
            where="stand-in",
            hint="leave the stand-in out, or declare them absent: split.retain=absent, or adopt(..., gone=...)",
        )
    known = np.concatenate([request.record_ids, stand_in.record_ids])
    return dataclasses.replace(trained, split=dataclasses.replace(split, retain=known, retain_absent=False))


def lower_guarantee(guarantee: str) -> str:
    """Return what is left of a guarantee if a method reads a stand-in in place of D_r.

    Args:
        guarantee: of the method on the model (`Method.find_guarantee`).

    >>> from expunge.methods.stand_in import lower_guarantee
    >>> lower_guarantee("exact"), lower_guarantee("behavioural")
    ('empirical', 'behavioural')
    """
    return list(GUARANTEES)[-1] if guarantee in _ABOUT_RETRAINING else guarantee
