"""What a method did: the unlearned model, what it cost, and which state still remembers."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from .request import ForgetRequest
from .trained import INFLUENCE_STATE, Trained

GUARANTEES: dict[str, str] = {
    "exact": "equal to retraining by construction",
    "certified": "(epsilon, delta)-indistinguishable from retraining",
    "conditional": "certified under stated assumptions that are not checked",
    "behavioural": "proved output on a region",
    "empirical": "measured only",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a method spent.

    Attributes:
        trained_records: records that went forward and backward, counted with repetition.
        forward_records: records that only went forward.
        retain_records: size of D_r, the unit of a pass.
        seconds: wall-clock time of the method alone (no evaluation, no reading of data); the device is synchronised.
        memory_mib: peak resident memory of the process during the method above what it held before, in MiB; None where
            it was not measured.
    """

    trained_records: int
    forward_records: int
    retain_records: int
    seconds: float
    memory_mib: float | None = None

    @property
    def passes(self) -> float:
        """Passes over D_r: (trained + forward / 3) / |D_r|; a backward costs about two forwards."""
        return (self.trained_records + self.forward_records / 3) / max(1, self.retain_records)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a method.

    Attributes:
        trained: the unlearned model; its split has the forget set moved out of retain.
        request: what was asked.
        method: the method's registered name.
        options: its hyper-parameters.
        guarantee: a key of `GUARANTEES`.
        cost: passes and seconds.
        rewrote: kinds of influence-bearing state that the method made anew from D_r alone or changed by training.
        dropped: kinds that the unlearned model no longer carries.
        history: one dictionary an epoch.
        seed: the method's seed.
    """

    trained: Trained
    request: ForgetRequest
    method: str
    options: Mapping[str, Any]
    guarantee: str
    cost: Cost
    rewrote: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    seed: int = 0

    @property
    def remembers(self) -> tuple[str, ...]:
        """State that the unlearned model still carries from training on D: unchanged, or (a mask) only thinned."""
        return tuple(name for name in self.trained.influence_state() if name not in self.rewrote)

    def to_json(self) -> dict[str, Any]:
        """The body of `outcome.json` (docs/formats/outcome.md)."""
        trained = self.trained
        return {
            "request": self.request.to_json(),
            "method": {"name": self.method, "options": dict(self.options), "guarantee": self.guarantee},
            "cost": {**dataclasses.asdict(self.cost), "passes": self.cost.passes},
            "state": {
                "rewrote": list(self.rewrote),
                "dropped": list(self.dropped),
                "still_remembers": list(self.remembers),
                "meaning": {k: v for k, v in INFLUENCE_STATE.items() if k in (*self.rewrote, *self.remembers)},
            },
            "hashes": {
                "data": trained.provenance.data.get("hash"),
                "split": trained.split.hash,
                "base_split": trained.split.base_hash,
                "weights": trained.hash,
                "mask": None if trained.mask is None else trained.mask.hash(),
            },
            "seeds": {**trained.provenance.seeds, "method": self.seed},
            "provenance": trained.provenance.to_json(),
            "history": [dict(entry) for entry in self.history],
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Versions of expunge, Python and the libraries that decide the numbers."""
    names = ("expunge", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a distribution"
    return found
