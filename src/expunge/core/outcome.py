"""The result of an unlearning method: the model, its cost, and the state that depends on training data.

Importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .request import ForgetRequest
from .show import Summary, plural, repr_html, repr_text, shorten_mapping, shorten_names

if TYPE_CHECKING:
    from .trained import TensorChange, Trained

GUARANTEES: dict[str, str] = {
    "exact": "a model that retraining could have produced, by construction",
    "certified": "(epsilon, delta)-indistinguishable from retraining",
    "conditional": "certified under stated assumptions that are not checked",
    "behavioural": "proved output on a region",
    "empirical": "measured only",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a method.

    Attributes:
        trained_records: records that went forward and backward, counted with repetition.
        forward_records: records that only went forward.
        retain_records: size of D_r, the unit of a pass.
        seconds: wall-clock time of the method without evaluation and without reading data; the device is synchronised.

    Example:
        >>> Cost(trained_records=150, forward_records=150, retain_records=100, seconds=2.0).passes
        2.0
    """

    trained_records: int
    forward_records: int
    retain_records: int
    seconds: float

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Cost:
        """Read the value of `cost` in `outcome.json`; unknown keys are ignored."""
        return cls(**{field.name: body[field.name] for field in dataclasses.fields(cls)})

    @property
    def passes(self) -> float:
        """Passes over D_r: (trained + forward / 3) / |D_r|, since a backward pass costs about two forward passes."""
        return (self.trained_records + self.forward_records / 3) / max(1, self.retain_records)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a method.

    Attributes:
        trained: the unlearned model; its split has the forget set moved out of retain.
        request: the request.
        method: the method's registered name.
        options: the hyper-parameters of the method.
        guarantee: a key of `GUARANTEES`, for this outcome; it can be weaker than the method's.
        cost: passes, seconds, memory.
        rewrote: state depending on training data that the method recomputed from D_r alone or changed by training.
        dropped: state that the unlearned model no longer has.
        history: one dictionary for each epoch.
        seed: the method's seed.
        changes: each parameter and buffer of the model, compared with the original's; empty if not compared.
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
    changes: tuple[TensorChange, ...] = ()

    @property
    def carried(self) -> tuple[str, ...]:
        """State that is unchanged since training on D_f, or (a mask) has only lost further weights since."""
        return tuple(name for name in self.trained.list_influence_state() if name not in self.rewrote)

    def _summarise(self) -> Summary:
        facts = {
            "guarantee": lambda: f"{self.guarantee} ({GUARANTEES.get(self.guarantee, 'not registered')})",
            "options": lambda: shorten_mapping(self.options) or "none",
            "request": lambda: self.request._summarise().title(),
            "cost": self._describe_cost,
            "rewrote": lambda: shorten_names(self.rewrote),
            "dropped": lambda: shorten_names(self.dropped),
            "carried": lambda: shorten_names(self.carried),
            "model": lambda: self.trained._describe(),
        }
        return Summary(self._describe, facts, lines=True, bars=lambda: self.trained._density_bars())

    def _describe(self) -> str:
        return f"{self.method}, {plural(len(self.request.record_ids), 'record')} forgotten, guarantee {self.guarantee}"

    def _describe_cost(self) -> str:
        retained = plural(self.cost.retain_records, "retained record")
        return f"{self.cost.passes:.2f} passes over {retained}, {self.cost.seconds:.2f} s"

    __repr__ = repr_text
    _repr_html_ = repr_html

    def to_json(self) -> dict[str, Any]:
        """Return the body of `outcome.json` (docs/formats/outcome.md)."""
        from .trained import INFLUENCE_STATE

        trained, present = self.trained, self.trained.list_influence_state()
        return {
            "request": self.request.to_json(),
            "method": {"name": self.method, "options": dict(self.options), "guarantee": self.guarantee},
            "cost": {**dataclasses.asdict(self.cost), "passes": self.cost.passes},
            "state": {
                "rewrote": list(self.rewrote),
                "dropped": list(self.dropped),
                "carried": list(self.carried),
                "meaning": {name: INFLUENCE_STATE.get(name, "state that a method defines") for name in present},
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
    """Versions of expunge, Python and the libraries that affect results."""
    names = ("expunge", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a distribution"
    return found
