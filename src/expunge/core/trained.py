"""A trained model together with the state that training left: mask, split, provenance and stored tensors.

`compare_states` says which tensors of a model another one changed, and `find_running_tensors` which tensors a forward
pass changes. Both decide by comparing values, not by the types of layers.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .errors import ModelError
from .hashing import hash_tensors, plain_names
from .mask import Mask
from .probe import run_on_random_records
from .show import Bar, Summary, plural, repr_fields, repr_html, repr_text, shorten, shorten_names, show_shape
from .split import Split

#: Influence-bearing state: the parts of a trained model that depend on its training records.
INFLUENCE_STATE: dict[str, str] = {
    "weights": "the parameters",
    "batch_norm": "running means and variances of BatchNorm and InstanceNorm layers",
    "buffers": "other tensors that forward passes in training change, such as custom running statistics",
    "mask": "which weights are kept",
    "pruning_scores": "the scores that ranked the weights when the mask was made",
    "pruning_weights": "all tensors from which the pruning scores were computed",
    "rewind_checkpoint": "early weights, stored for rewinding",
    "early_checkpoints": "all tensors after some of the first epochs of training, stored for replaying it",
    "optimiser_moments": "momentum and second moments of the optimiser",
    "patches": "patches with proofs about outputs, and the activation patterns in them",
    "normalisation": "input means and standard deviations computed from training records",
}

#: State that does not depend on training records.
INDEPENDENT_STATE = ("initial_weights",)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a trained model was made; JSON values.

    Attributes:
        architecture: `expunge.models.Architecture.to_json()`: `{"name", "options", "input_shape", "classes", ..}`;
            the name is a registered network or a custom `package.module:function`.
        data: `{"name", "hash"}` of the records.
        recipe: the training recipe as a dictionary (`expunge.training.Recipe`); empty if unknown.
        seeds: seeds by purpose; `initial` reproduces the initial weights, `order` the order of records.
        weights_from: `training`, or the hash of an imported weights file.
        history: one line for each stage, in order.
        initial_weights: hash of the parameters that training started from; empty if unknown.
        checkpoints: by epoch, what the state `early_checkpoints` has seen (`early_checkpoints.describe_checkpoint`).
        assumed: what nobody declared and is a default here: `recipe`.
        recorded: of imported weights, what a recording of their training says and nobody declared: `recipe`, `split`.
        weight_prefix: what the user's names of the weights begin with (`model.`); an export writes it again.
        trained_on: after a request, the hash of the records that the weights were trained on, with their corrections
            (`hashing.hash_training_set`): those of D_r if the model was retrained, of D otherwise; else empty.
    """

    architecture: Mapping[str, Any]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights_from: str = "training"
    history: tuple[str, ...] = ()
    initial_weights: str = ""
    checkpoints: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    weight_prefix: str = ""
    trained_on: str = ""

    __repr__ = repr_fields

    def add_history(self, line: str) -> Provenance:
        """Return the provenance with one more line of history."""
        return dataclasses.replace(self, history=(*self.history, line))

    def to_json(self) -> dict[str, Any]:
        """Return the value of `provenance` in `trained.json` (docs/formats/trained.md)."""
        body = dataclasses.asdict(self) | {key: list(getattr(self, key)) for key in ("history", "assumed", "recorded")}
        optional = ("checkpoints", "assumed", "recorded", "weight_prefix", "trained_on")
        return {key: value for key, value in body.items() if value or key not in optional}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Provenance:
        """Read the provenance that `to_json` wrote; unknown keys are ignored."""
        values = {f.name: body[f.name] for f in dataclasses.fields(cls) if f.name in body}
        return cls(**{**values, **{key: tuple(values.get(key, ())) for key in ("history", "assumed", "recorded")}})


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with its mask, split, provenance, and the tensors that methods need.

    Attributes:
        model: the network; it maps `N x ...` float32 inputs to `N x K` logits. Never modified in place.
        mask: which weights are kept, or None for a dense model.
        split: which records it was trained on (retain and forget set) and which it was not.
        provenance: architecture, data, recipe, seeds, history.
        state: tensors that training stored, by name of the state (`rewind_checkpoint`, `pruning_scores`, or one that a
            method defines), then by tensor name.
    """

    model: nn.Module
    mask: Mask | None
    split: Split
    provenance: Provenance
    state: Mapping[str, Mapping[str, torch.Tensor]] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of weights and buffers."""
        return hash_tensors(plain_state(self.model))

    def find_running_state(self) -> dict[str, tuple[str, ...]]:
        """Return the tensors that forward passes in training change, by kind: `batch_norm` and `buffers`.

        `batch_norm` are the running statistics of torch's normalisation layers. All others are `buffers`: running
        statistics of custom layers, vectors of `spectral_norm`, counters.
        """
        known = list_normalisation_buffers(self.model)
        found = find_running_tensors(self.model, self.provenance.architecture.get("input_shape"))
        return {"batch_norm": tuple(known), "buffers": tuple(name for name in found if name not in known)}

    def list_influence_state(self) -> tuple[str, ...]:
        """List the state that depends on training data (influence-bearing): keys of `INFLUENCE_STATE`, in order.

        State that a method defines follows: it is taken to depend on training data.
        """
        present = ["weights"]
        present.extend(name for name, tensors in self.find_running_state().items() if tensors)
        if self.mask is not None:
            present.append("mask")
        if self.provenance.architecture.get("normalisation_from") == "training records":
            present.append("normalisation")
        present.extend(name for name in INFLUENCE_STATE if name in self.state)
        custom = (name for name in self.state if name not in (*INFLUENCE_STATE, *INDEPENDENT_STATE))
        return (*(name for name in INFLUENCE_STATE if name in present), *custom)

    def _summarise(self) -> Summary:
        facts = {
            "network": self._describe_network,
            "mask": lambda: "none: a dense model" if self.mask is None else self.mask._describe(),
            "records": lambda: f"{self.provenance.data.get('name', 'not recorded')}; {self.split._describe_counts()}",
            "normalisation": lambda: str(self.provenance.architecture.get("normalisation_from") or "none"),
            "state": self._describe_state,
            "weights from": lambda: (
                w if (w := self.provenance.weights_from) == "training" else f"elsewhere, hash {w[:8]}"
            ),
            "history": lambda: f"{plural(len(self.provenance.history), 'stage')} (provenance.history)",
        }
        return Summary(self._describe, facts, lines=True, bars=self._density_bars)

    def _density_bars(self) -> list[Bar]:
        return [] if self.mask is None else self.mask._density_bars()

    def _describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{self.provenance.architecture.get('name', type(self.model).__name__)}, {plural(count, 'parameter')}"

    def _describe_network(self) -> str:
        network = self.provenance.architecture
        shape = show_shape(network["input_shape"]) if "input_shape" in network else "not recorded"
        return f"{type(self.model).__name__}, input {shape}, classes {shorten(network.get('classes', 'not recorded'))}"

    def _describe_state(self) -> str:
        """The influence-bearing state, and tensors that a method stored under other names."""
        known = self.list_influence_state()
        return shorten_names((*known, *(name for name in self.state if name not in known)))

    __repr__ = repr_text
    _repr_html_ = repr_html


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model under plain names (without the prefixes of DDP, Fabric and torch.compile).

    Raises:
        ModelError: two names are equal without their prefixes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> list(plain_state(nn.DataParallel(model)))
        ['0.weight', '0.bias']
    """
    return plain_names(model.state_dict())


def clone_model(model: nn.Module) -> nn.Module:
    """Copy a model: the copy shares no tensor with the caller's model and has no gradients.

    Raises:
        ModelError: the model cannot be copied; the message names the tensor that prevents it.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> copied = clone_model(model)
        >>> torch.equal(copied.weight, model.weight), copied.weight is model.weight
        (True, False)
    """
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise _explain_copy_error(model, error) from error
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _explain_copy_error(model: nn.Module, error: Exception) -> ModelError:
    """Name the attribute of a module that deepcopy refuses, and its remedy."""
    what = f"the model cannot be copied ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
            where = f"{path}.{name}" if path else name
            if torch.nn.parameter.is_lazy(value):
                return ModelError(
                    "the model cannot be copied: a lazy layer has no tensors before its first forward pass",
                    where=where,
                    hint="run the network once on a batch of zeros before the factory returns it, or give the sizes",
                )
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                derived = f"{name}_orig" in module._parameters or f"{name}_v" in module._parameters
                return ModelError(
                    "the model cannot be copied: it keeps a tensor that autograd computed",
                    where=where,
                    hint="a hook computes it (legacy weight_norm, spectral_norm, or torch.nn.utils.prune): call "
                    "remove_weight_norm, remove_spectral_norm or prune.remove, or use "
                    "torch.nn.utils.parametrizations; give the mask of a pruned model as a file"
                    if derived
                    else "its forward stores an activation: store activation.detach(), or nothing",
                )
    return ModelError(what, where=type(model).__name__, hint="remove attributes that copy.deepcopy refuses")


@dataclasses.dataclass(frozen=True)
class TensorChange:
    """How one tensor of a model differs from the tensor of the same name in an earlier model.

    Attributes:
        name: plain name, as in the state dict.
        kind: `parameter` or `buffer`.
        total: entries that can change: those that the mask keeps, or all.
        changed: entries whose bits differ; all if one model lacks the tensor or has it in another shape or type.
        status: `unchanged`, `partly` (0 < changed < total), `changed`, `added`, `removed`, `replaced` (shape or type).
    """

    name: str
    kind: str
    total: int
    changed: int
    status: str

    __repr__ = repr_fields

    @property
    def fraction(self) -> float:
        """Fraction of changed entries, in [0, 1]; 0 for a tensor without entries."""
        return self.changed / self.total if self.total else 0.0


def compare_states(before: nn.Module, after: nn.Module, mask: Mask | None = None) -> tuple[TensorChange, ...]:
    """Compare all parameters and buffers of two models, entry by entry and bit by bit.

    Only tensors of the state dict are compared: those that files store. Each name of a tied tensor is listed.

    Args:
        before: the earlier model.
        after: the later model; the order of the result is that of its state dict, then the removed tensors.
        mask: entries that it prunes are not counted, since they are +0.0 before and after.

    Raises:
        ModelError: two names are equal without the prefixes of wrappers.

    Example:
        >>> before = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        >>> after = clone_model(before)
        >>> with torch.no_grad():
        ...     _ = after[0].weight[0, 0].add_(1.0)
        >>> [(c.name, c.fraction) for c in compare_states(before, after) if c.status != "unchanged"]
        [('0.weight', 0.5)]
    """
    old, new = plain_state(before), plain_state(after)
    parameters = {*_name_all_parameters(before), *_name_all_parameters(after)}
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        kind = "parameter" if name in parameters else "buffer"
        if name not in old or name not in new:
            size = (new if name in new else old)[name].numel()
            found.append(TensorChange(name, kind, size, size, "added" if name in new else "removed"))
            continue
        a, b = old[name].detach().cpu(), new[name].detach().cpu()
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(TensorChange(name, kind, b.numel(), b.numel(), "replaced"))
            continue
        different, total = _differing_entries(a, b), b.numel()
        if mask is not None and (kept := mask.kept.get(name)) is not None:
            different, total = different & kept.reshape(-1), int(kept.sum())
        changed = int(different.sum())
        status = "unchanged" if not changed else "changed" if changed == total else "partly"
        found.append(TensorChange(name, kind, total, changed, status))
    return tuple(found)


def _name_all_parameters(model: nn.Module) -> list[str]:
    """All names of parameters, also those of tied ones."""
    return list(plain_names(dict(model.named_parameters(remove_duplicate=False))))


def _differing_entries(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return, flat, which entries of two tensors of equal shape and type differ in a bit."""
    if a.numel() == 0:
        return torch.zeros(0, dtype=torch.bool)
    rows = [t.contiguous().reshape(-1).view(torch.uint8).reshape(t.numel(), -1) for t in (a, b)]
    return (rows[0] != rows[1]).any(1)


_RUNNING: weakref.WeakKeyDictionary[nn.Module, tuple[str, ...]] = weakref.WeakKeyDictionary()


def find_running_tensors(model: nn.Module, input_shape: Sequence[int] | None) -> tuple[str, ...]:
    """Find the tensors of a model that forward passes in training mode change, without any optimiser step.

    A copy is run twice on 4 random records, and its state is compared. This finds the running statistics of every
    layer, whatever its type, and no constant buffers. A model is not run if all its buffers are those of torch's
    normalisation layers, or of modules that declare `constant_buffers = True`.

    Args:
        model: the network; not modified.
        input_shape: shape of one record; None if it is not known.

    Returns:
        Plain names, in the order of the state dict. If the copy cannot be run: all buffers not declared constant.

    Example:
        >>> class Centre(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_buffer("centre", torch.zeros(3))
        ...         self.register_buffer("constant", torch.ones(3))
        ...
        ...     def forward(self, x):
        ...         if self.training:
        ...             self.centre.lerp_(x.mean(0), 0.1)
        ...         return (x - self.centre) * self.constant
        >>> find_running_tensors(nn.Sequential(Centre(), nn.Linear(3, 2)), (3,))
        ('0.centre',)
    """
    if model in _RUNNING:
        return _RUNNING[model]
    owners = _find_buffer_owners(model)
    candidates = [name for name, owner in owners.items() if not getattr(owner, "constant_buffers", False)]
    if set(candidates) == set(_choose_normalisation(owners)) and all(p.requires_grad for p in model.parameters()):
        return tuple(candidates)
    found = None if input_shape is None else _run_and_compare(model, input_shape)
    if found is None:
        return tuple(candidates)
    _RUNNING[model] = found
    return found


def _find_buffer_owners(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that own the buffers of the state dict, by plain name."""
    modules = model.named_modules(remove_duplicate=False)
    owners = {f"{path}.{name}" if path else name: module for path, module in modules for name in module._buffers}
    state = model.state_dict()
    return {plain: owners[name] for name, plain in zip(state, plain_names(state), strict=True) if name in owners}


def list_normalisation_buffers(model: nn.Module) -> list[str]:
    """Plain names of the running statistics of torch's normalisation layers, in the order of the state dict.

    They are listed whether or not a forward pass changes them now: earlier training did.
    """
    return _choose_normalisation(_find_buffer_owners(model))


def _choose_normalisation(owners: Mapping[str, nn.Module]) -> list[str]:
    ends, kind = (".running_mean", ".running_var", ".num_batches_tracked"), nn.modules.batchnorm._NormBase
    return [name for name, owner in owners.items() if isinstance(owner, kind) and f".{name}".endswith(ends)]


def _run_and_compare(model: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...] | None:
    """Run a copy in training mode; return the names of the tensors that changed, or None if it cannot be run."""
    try:
        copied = clone_model(model)
        for module in copied.modules():  # not `train()`, which a network may override
            module.training = True
        run_on_random_records(copied, input_shape)
    except Exception:
        return None
    return tuple(change.name for change in compare_states(model, copied) if change.changed)
