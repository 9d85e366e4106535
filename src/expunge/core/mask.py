"""Which weights are alive: named bool tensors plus where they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import FileError, MaskError
from .files import PathLike, read_tensors, write_tensors
from .hashing import hash_json, hash_tensor, plain_name

SCHEMA = "expunge.mask"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class MaskProvenance:
    """Where a mask came from.

    Attributes:
        criterion: what ranked the weights (`magnitude`, ...).
        scope: `global` (one threshold) or `layer`.
        granularity: `weight`, `filter` or `n:m`.
        layers: kinds of layers that took part, e.g. `("conv", "linear")`.
        schedule: how the mask came about (`one-shot`, `omp`, ...).
        scores_hash: hash of the scores that were ranked, or None.
        details: further facts of the pruner, JSON values only.
    """

    criterion: str
    scope: str = "global"
    granularity: str = "weight"
    layers: tuple[str, ...] = ()
    schedule: str = "one-shot"
    scores_hash: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "layers": list(self.layers), "details": dict(self.details)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MaskProvenance:
        """The provenance that `to_json` wrote.

        Raises:
            ValueError: a value of the wrong kind.
            KeyError, TypeError, AttributeError: no criterion, or no mapping.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in body.items() if k in known}
        _check_kinds(values)
        return cls(**{**values, "layers": tuple(values.get("layers", ()))})


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless a provenance, and the details that pruning again reads, are of their kind."""
    details = values.get("details", {})
    if not isinstance(details, Mapping):
        raise ValueError(f"details is a mapping, not {details!r}")
    for key in ("criterion", "scope", "granularity", "schedule"):
        if not isinstance(values.get(key, ""), str):
            raise ValueError(f"{key} is a name, not {values[key]!r}")
    for key, names in (("layers", values.get("layers", ())), ("left_out", details.get("left_out", ()))):
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is a list of names, not {names!r}")
    wanted, count, options = (details.get(key) for key in ("sparsity", "score_records", "options"))
    if wanted is not None and not (_is(wanted, int | float) and 0 <= wanted < 1):
        raise ValueError(f"sparsity is a share in [0, 1), not {wanted!r}")
    if count is not None and not (_is(count, int) and count >= 0):
        raise ValueError(f"score_records is a number of records, not {count!r}")
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options is a mapping, not {options!r}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind of number; bools are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Named bool tensors, True where a weight is alive.

    Attributes:
        alive: parameter name (as in `model.state_dict()`) to a bool tensor of the parameter's shape, on the CPU.
        provenance: how the mask was made.

    A masked weight is +0.0 exactly: masking assigns (a product would leave -0.0, and NaN from infinities).
    """

    alive: Mapping[str, torch.Tensor]
    provenance: MaskProvenance

    def __post_init__(self) -> None:
        for name, tensor in self.alive.items():
            if tensor.dtype != torch.bool:
                raise MaskError(f"a mask holds bool tensors, not {tensor.dtype}", where=name)

    @property
    def total(self) -> int:
        """Weights the mask speaks of."""
        return sum(t.numel() for t in self.alive.values())

    @property
    def kept(self) -> int:
        """Weights alive."""
        return sum(int(t.sum()) for t in self.alive.values())

    @property
    def density(self) -> float:
        """Share of alive weights among those the mask speaks of, in [0, 1]."""
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    def layer_density(self) -> dict[str, float]:
        """Density of each tensor."""
        return {name: float(t.float().mean()) for name, t in self.alive.items()}

    def hash(self) -> str:
        """Hash of the bool tensors alone: equal topology, equal hash, whatever the provenance."""
        return hash_json({plain_name(name): hash_tensor(t) for name, t in self.alive.items()})

    def check_fits(self, model: nn.Module) -> None:
        """Raise MaskError unless every masked name is a parameter of the model with the same shape."""
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        for name, tensor in self.alive.items():
            if name not in parameters:
                raise MaskError(
                    "the mask names a weight that the model does not have",
                    where=name,
                    hint="the mask was made for another architecture",
                )
            if parameters[name].shape != tensor.shape:
                raise MaskError(
                    f"the mask has shape {tuple(tensor.shape)}, the weight {tuple(parameters[name].shape)}",
                    where=name,
                    hint="the mask was made for another architecture",
                )

    def apply_(self, model: nn.Module) -> None:
        """Assign +0.0 to every masked weight of `model`, in place (for models that expunge itself made)."""
        self.check_fits(model)
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        with torch.no_grad():
            for name, tensor in self.alive.items():
                parameters[name].masked_fill_(~tensor.to(parameters[name].device), 0.0)

    def violations(self, model: nn.Module) -> dict[str, int]:
        """How many masked weights are not exactly +0.0, by name; empty where the invariant holds."""
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        found = {}
        for name, tensor in self.alive.items():
            dead = parameters[name].detach().cpu()[~tensor]
            wrong = int(((dead != 0) | torch.signbit(dead)).sum())
            if wrong:
                found[name] = wrong
        return found

    def save(self, path: PathLike) -> None:
        """Write the mask as safetensors; the provenance is in the metadata (docs/formats/mask.md)."""
        metadata = {
            "kind": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "provenance": self.provenance.to_json(),
            "hash": self.hash(),
        }
        write_tensors(path, self.alive, metadata)

    @classmethod
    def load(cls, path: PathLike) -> Mask:
        """Read a mask; its hash is checked.

        Raises:
            FileError: not a mask file, or damaged.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != SCHEMA or metadata.get("schema_version") != SCHEMA_VERSION:
            raise FileError("is not an expunge mask file of a version this release reads", where=Path(path))
        try:
            mask = cls(tensors, MaskProvenance.from_json(metadata["provenance"]))
        except MaskError as error:
            raise FileError(f"holds a damaged mask ({error})", where=Path(path)) from error
        except ValueError as error:
            raise FileError(f"does not say how its mask was made: {error}", where=f"{path}: provenance") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError("does not say how its mask was made (provenance)", where=Path(path)) from error
        if mask.hash() != metadata.get("hash"):
            raise FileError("the mask's tensors do not have the hash that the file records", where=Path(path))
        return mask
