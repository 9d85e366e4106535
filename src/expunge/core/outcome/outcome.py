"""The result of an unlearning method: the model, its cost, and the state that depends on training data."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from expunge.core.request import ForgetRequest
from expunge.core.show import Summary, plural, repr_html, repr_text, shorten_mapping, shorten_names

from .extent import Extent, MaskChange, describe_nothing_changed, is_almost_all, list_changed, sum_mask_changes

if TYPE_CHECKING:
    from expunge.core.mask import Mask
    from expunge.core.trained import TensorChange, Trained

GUARANTEES: dict[str, str] = {
    "exact": "a model that retraining could have produced, by construction",
    "certified": "(epsilon, delta)-indistinguishable from retraining",
    "conditional": "certified under stated assumptions that are not checked",
    "behavioural": "proved output on a region",
    "empirical": "measured only",
}


#: What is said of state that changed, and was not made without D_f.
FROM_FORGET = "changed from what was trained on D_f"
#: State that forward passes in training move.
_RUNNING = ("batch_norm", "buffers")
#: Of a bound: its two numbers, the noise, and what was computed on the way.
_BOUND_PARTS = ("epsilon", "delta", "noise", "distance", "steps")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a method.

    Attributes:
        trained_records: records that went forward and backward, counted with repetition.
        forward_records: records that only went forward.
        retain_records: size of D_r, the unit of a pass.
        seconds: wall-clock time of the method without evaluation and without reading data; the device is synchronised.
        optimiser_steps: steps of the optimisers of its training runs; 0: it has no such run. None: not recorded (files
            of earlier versions).

    Example:
        >>> Cost(150, 150, retain_records=100, seconds=2.0, optimiser_steps=34).describe()
        '2.00 passes over 100 retained records, 34 optimiser steps, 2.00 s'
    """

    trained_records: int
    forward_records: int
    retain_records: int
    seconds: float
    optimiser_steps: int | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Cost:
        """Read the value of `cost` in `outcome.json`; unknown keys are ignored."""
        return cls(**{field.name: body[field.name] for field in dataclasses.fields(cls) if field.name in body})

    @property
    def passes(self) -> float:
        """Passes over D_r: (trained + forward / 3) / |D_r|, since a backward pass costs about two forward passes."""
        return (self.trained_records + self.forward_records / 3) / max(1, self.retain_records)

    def describe(self) -> str:
        """The cost in words: passes, steps if they are recorded, seconds."""
        retained = plural(self.retain_records, "retained record")
        steps = "" if self.optimiser_steps is None else f"{plural(self.optimiser_steps, 'optimiser step')}, "
        return f"{self.passes:.2f} passes over {retained}, {steps}{self.seconds:.2f} s"


def group_changes(trained: Trained, changes: Iterable[TensorChange]) -> dict[str, list[TensorChange]]:
    """Group the compared tensors of a model by the kind of state that they are (`trained.INFLUENCE_STATE`).

    Constant buffers that did not change are left out: they do not depend on training records.

    Args:
        trained: the later model.
        changes: its tensors, compared with the earlier model's.
    """
    kinds = {name: kind for kind, names in trained.find_running_state().items() for name in names}
    found: dict[str, list[TensorChange]] = {}
    for change in changes:
        if change.name in kinds:  # running statistics can be frozen parameters
            kind = kinds[change.name]
        elif change.kind == "parameter":
            kind = "weights"
        elif change.name.startswith("normalise."):
            kind = "normalisation"
        elif change.status != "unchanged":
            kind = "buffers"
        else:
            continue
        found.setdefault(kind, []).append(change)
    return found


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
        rewrote: state depending on training data that the method recomputed from D_r alone, or changed in at least one
            entry; `extents` says how much of it changed.
        dropped: state that the unlearned model no longer has.
        history: one dictionary for each epoch.
        seed: the method's seed.
        changes: each parameter and buffer of the model, compared with the original's; empty if not compared.
        recomputed: state in `rewrote` that the method computed from D_r alone, even if not a bit changed.
        bound: of a guarantee `certified` or `conditional`: `epsilon`, `delta`, and the numbers and assumptions that
            they follow from (`assumptions`); empty otherwise.
        followed: how many records moved running statistics in training since they were last recomputed: `forget` (of
            D_f) and `others`; empty: none did, or it is not known.
        mask_changes: tensors in which the mask differs from the original's; empty: there are none, or it is not known.
        stand_in: the stand-in retain set that the method read instead of D_r, whose records are absent; or empty.
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
    recomputed: tuple[str, ...] = ()
    bound: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stand_in: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    followed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    mask_changes: tuple[MaskChange, ...] = ()

    @property
    def relative_to(self) -> Mapping[str, str] | None:
        """The declared start (`file` and `hash`) to which the guarantee `exact` is relative; None if there is none."""
        declared: Mapping[str, str] | None = self.trained.provenance.architecture.get("initial")
        return declared if self.guarantee == "exact" else None

    @functools.cached_property
    def extents(self) -> dict[str, Extent]:
        """How much of the model's state that depends on training data changed, by kind; empty if not compared."""
        present, found = self.trained.list_influence_state(), {}
        followed = sum(self.followed.values())
        for kind, changes in group_changes(self.trained, self.changes).items():
            if kind not in present:
                continue
            if kind == "batch_norm":  # a counter of batches is no statistic; InstanceNorm never counts
                changes = [c for c in changes if not c.name.endswith("num_batches_tracked")] or changes
            changed = [change for change in changes if change.status != "unchanged"]
            entries, changed_entries = (sum(getattr(c, key) for c in changes) for key in ("total", "changed"))
            whole = kind in self.recomputed or is_almost_all((c.changed, c.total) for c in changes)
            found[kind] = Extent(
                "rewritten" if kind in self.rewrote and whole else "partly rewritten" if changed else "unchanged",
                len(changes), len(changed), entries, changed_entries,
                tuple(change.name for change in changes if change.status == "unchanged"),
                tuple(change.name for change in changes) if kind == "buffers" else (),
                self.followed["forget"] / followed if followed and changed and kind in _RUNNING else None,
            )  # fmt: skip
        if "mask" in self.rewrote and self.trained.mask is not None and self.mask_changes:
            found["mask"] = self._measure_mask(self.trained.mask)
        return found

    def _measure_mask(self, mask: Mask) -> Extent:
        """How much of the mask changed: of the weights that it keeps, before or after, those that it did not keep."""
        counts = {name: (0, int(kept.sum())) for name, kept in mask.kept.items()}
        counts |= {c.name: (c.newly_kept + c.newly_pruned, c.before + c.newly_kept) for c in self.mask_changes}
        changed, entries = (sum(column) for column in zip(*counts.values(), strict=True))
        whole = "mask" in self.recomputed or is_almost_all(counts.values())
        same = tuple(name for name, (part, _) in counts.items() if not part)
        status = "rewritten" if whole else "partly rewritten"
        return Extent(status, len(counts), len(counts) - len(same), entries, changed, same)

    @property
    def changed(self) -> tuple[str, ...]:
        """State that changed as a whole, from what training on D_f had left: it was not made without D_f."""
        return list_changed(self.rewrote, self.recomputed, self.partly_rewritten)

    @property
    def changed_nothing(self) -> bool:
        """Whether the model is the original: its tensors were compared, and none changed."""
        return bool(self.changes) and not self.rewrote and all(c.status == "unchanged" for c in self.changes)

    def describe_warning(self) -> str:
        """That the method changed nothing, if so; else empty."""
        return describe_nothing_changed(self.method, len(self.changes)) if self.changed_nothing else ""

    @property
    def partly_rewritten(self) -> tuple[str, ...]:
        """State in `rewrote` of which more than a few entries are unchanged since training on D_f (`Extent.status`)."""
        return tuple(name for name, extent in self.extents.items() if extent.status == "partly rewritten")

    @property
    def carried(self) -> tuple[str, ...]:
        """State that is as a whole unchanged since training on D_f, or (a mask) has only lost further weights since.

        State that is partly unchanged is in `partly_rewritten`.
        """
        return tuple(name for name in self.trained.list_influence_state() if name not in self.rewrote)

    def _summarise(self) -> Summary:
        facts = {
            **({"warning": self.describe_warning} if self.changed_nothing else {}),
            "guarantee": lambda: describe_guarantee(self.guarantee, self.relative_to),
            **({"bound": lambda: describe_bound(self.bound)} if self.bound else {}),
            **({"stand-in for D_r": lambda: describe_stand_in(self.stand_in)} if self.stand_in else {}),
            "options": lambda: shorten_mapping(self.options) or "none",
            "request": lambda: self.request._summarise().title(),
            "cost": self.cost.describe,
            "rewrote": lambda: shorten_names(name for name in self.rewrote if name not in self.partly_rewritten),
            **(
                {"towards D_f": self._describe_followed} if any(e.follows_forget for e in self.extents.values()) else {}
            ),
            "partly": lambda: "; ".join(f"{k}: {self.extents[k].describe()}" for k in self.partly_rewritten) or "none",
            **({"mask": lambda: sum_mask_changes(self.mask_changes).describe()} if self.mask_changes else {}),
            **({"changed": lambda: f"{shorten_names(self.changed)}: {FROM_FORGET}"} if self.changed else {}),
            "dropped": lambda: shorten_names(self.dropped),
            "carried": lambda: shorten_names(self.carried),
            "model": lambda: self.trained._describe(),
        }
        return Summary(self._describe, facts, lines=True, bars=lambda: self.trained._density_bars())

    def _describe(self) -> str:
        records = f"{plural(len(self.request.record_ids), 'record')} {self.request.verb}"
        return f"{self.method}, {records}, guarantee {self.guarantee}"

    def _describe_followed(self) -> str:
        lines = {name: extent.describe_source() for name, extent in self.extents.items()}
        return "; ".join(f"{name}: {line}" for name, line in lines.items() if line)

    __repr__ = repr_text
    _repr_html_ = repr_html

    def to_json(self) -> dict[str, Any]:
        """Return the body of `outcome.json` (docs/formats/outcome.md)."""
        from expunge.core.trained import INFLUENCE_STATE

        trained, present = self.trained, self.trained.list_influence_state()
        return {
            "request": self.request.to_json(),
            "method": {
                "name": self.method,
                "options": dict(self.options),
                "guarantee": self.guarantee,
                "relative_to": None if self.relative_to is None else dict(self.relative_to),
                **({"bound": dict(self.bound)} if self.bound else {}),
            },
            "cost": {**dataclasses.asdict(self.cost), "passes": self.cost.passes},
            "state": {
                "rewrote": list(self.rewrote),
                "dropped": list(self.dropped),
                "carried": list(self.carried),
                "recomputed": list(self.recomputed),
                "extent": {name: extent.to_json() for name, extent in self.extents.items()},
                "changes": [dataclasses.asdict(change) for change in self.changes],
                **({"mask": [dataclasses.asdict(change) for change in self.mask_changes]} if self.mask_changes else {}),
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
            **self._describe_retain(),
        }

    def _describe_retain(self) -> dict[str, Any]:
        """The key `retain`, if the records of D_r are absent."""
        if not self.trained.split.retain_absent:
            return {}
        return {"retain": {"absent": True, "stand_in": dict(self.stand_in) or None}}


def describe_guarantee(
    name: str, relative_to: Mapping[str, str] | None = None, bound: Mapping[str, Any] | None = None
) -> str:
    """A guarantee and its meaning; `exact` can be relative to a declared start, others have a bound.

    Example:
        >>> describe_guarantee("exact", {"file": "start.safetensors", "hash": "0123456789abcdef"})[:62]
        'exact relative to the declared start start.safetensors (SHA-25'
    """
    if relative_to is None:
        return f"{name} ({GUARANTEES.get(name, 'not registered')})" + (f": {describe_bound(bound)}" if bound else "")
    start = f"{relative_to['file']} (SHA-256 {relative_to['hash'][:12]})"
    return f"{name} relative to the declared start {start}: {GUARANTEES[name]} from these weights on"


def describe_stand_in(stand_in: Mapping[str, Any]) -> str:
    """A stand-in retain set in words: its source, the number of its records, and the beginning of its hash.

    Example:
        >>> describe_stand_in({"source": "digits", "records": 100, "hash": "0123456789abcdef"})
        '100 records of digits (hash 0123456789ab)'
    """
    return f"{plural(int(stand_in['records']), 'record')} of {stand_in['source']} (hash {stand_in['hash'][:12]})"


def describe_bound(bound: Mapping[str, Any]) -> str:
    """Epsilon and delta, with the noise and the constants that they follow from.

    Example:
        >>> describe_bound({"epsilon": 2.0, "delta": 1e-5, "noise": 0.1, "smoothness": 1.0, "gradient_bound": 2.0})
        'epsilon = 2 at delta = 1e-05, with noise = 0.1, if smoothness = 1, gradient_bound = 2'
    """
    constants = [key for key in bound if isinstance(bound[key], int | float) and key not in _BOUND_PARTS]
    given = ", ".join(f"{key} = {bound[key]:.4g}" for key in constants)
    found = {key: f"{bound[key]:.4g}" if key in bound else "not recorded" for key in _BOUND_PARTS}
    text = f"epsilon = {found['epsilon']} at delta = {found['delta']}, with noise = {found['noise']}"
    return text + (f", if {given}" if given else "")


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
