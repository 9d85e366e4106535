"""Replay: run the first epochs of training again without the forgotten records, and add the difference.

    delta_k   = theta_k(D_r) - theta_k(D)
    theta_hat = theta_T(D) + c delta_k

theta_k(S): the weights after the first k of T epochs of the original's recipe on the records S, from the same initial
weights and in the same order. No paper; it is this project's own idea (docs/replay.md).
"""

from .arithmetic import combine
from .decay import Decay, DecayTrace, compare_runs, measure_decay
from .prefix import PREFIXES, Prefixes, run_prefixes

__all__ = [
    "PREFIXES",
    "Decay",
    "DecayTrace",
    "Prefixes",
    "combine",
    "compare_runs",
    "measure_decay",
    "run_prefixes",
]
