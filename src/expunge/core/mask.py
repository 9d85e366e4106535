"""The pruning mask: named bool tensors, True where a weight is kept, with the provenance of the mask."""

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
from .reading.file_names import check_format
from .show import Bar, Summary, plural, repr_fields, repr_html, repr_text, shorten_names

SCHEMA = "expunge.mask"
SCHEMA_VERSION = 2
#: Weights that `repr` counts, in far less than a second; a larger mask is shown without its density.
_COUNTED = 500_000_000


@dataclasses.dataclass(frozen=True)
class MaskProvenance:
    """How a mask was made.

    Attributes:
        criterion: what ranked the weights (`magnitude`, ...); `unknown` if it is not known.
        scope: `global` (one threshold for all layers), `layer` (one for each), or another registered scope.
        granularity: `weight`, `filter` or `n:m`.
        layers: layer types that were pruned, e.g. `("conv", "linear")`.
        schedule: the pruning schedule (`one-shot`, `omp`, ...), or the format from which the mask was imported.
        scores_hash: hash of the ranked scores, or None.
        details: further facts recorded by the pruner; JSON values.
    """

    criterion: str
    scope: str = "global"
    granularity: str = "weight"
    layers: tuple[str, ...] = ()
    schedule: str = "one-shot"
    scores_hash: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values of the provenance (docs/formats/mask.md)."""
        return {**dataclasses.asdict(self), "layers": list(self.layers), "details": dict(self.details)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MaskProvenance:
        """Read the provenance that `to_json` wrote.

        Raises:
            ValueError: a value has the wrong type.
            KeyError, TypeError, AttributeError: the criterion is missing, or `body` is not a mapping.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in body.items() if k in known}
        _check_types(values)
        return cls(**{**values, "layers": tuple(values.get("layers", ()))})


def _check_types(values: Mapping[str, Any]) -> None:
    """Raise ValueError if a value of a provenance, or of the details that re-pruning reads, has the wrong type."""
    details = values.get("details", {})
    if not isinstance(details, Mapping):
        raise ValueError(f"details is a mapping, not {details!r}")
    for key in ("criterion", "scope", "granularity", "schedule"):
        if not isinstance(values.get(key, ""), str):
            raise ValueError(f"{key} is a name, not {values[key]!r}")
    lists = {"layers": values.get("layers", ())}
    lists |= {key: details.get(key, ()) for key in ("left_out", "zero_parameters")}
    for key, names in lists.items():
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is a list of names, not {names!r}")
    wanted, count, options = (details.get(key) for key in ("sparsity", "score_records", "options"))
    if wanted is not None and not (_is_number(wanted, int | float) and 0 <= wanted < 1):
        raise ValueError(f"sparsity is a fraction in [0, 1), not {wanted!r}")
    if count is not None and not (_is_number(count, int) and count >= 0):
        raise ValueError(f"score_records is a number of records, not {count!r}")
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options is a mapping, not {options!r}")
    rounded = details.get("rounded_zeros")
    if rounded is not None:
        keys = ("below", "zeros", "expected")
        if not isinstance(rounded, Mapping) or not all(_is_number(rounded.get(k), int | float) for k in keys):
            raise ValueError(f"rounded_zeros has the numbers {', '.join(keys)}, not {rounded!r}")


def _is_number(value: Any, types: Any) -> bool:
    """Whether a value has one of these number types; bools do not count."""
    return isinstance(value, types) and not isinstance(value, bool)


def _count(kept: torch.Tensor) -> int:
    return int(torch.count_nonzero(kept))


def _density(kept: int, total: int) -> float:
    return kept / total if total else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """A pruning mask: named bool tensors, True where a weight is kept.

    A pruned weight is exactly +0.0. Masking assigns that value; a product would leave -0.0, and NaN from infinities.

    Attributes:
        kept: parameter name (as in `model.state_dict()`) to a bool tensor of the parameter's shape, on the CPU.
        provenance: how the mask was made.

    Raises:
        MaskError: a tensor is not bool.

    Example:
        >>> kept = {"0.weight": torch.tensor([[True, False, True, False]])}
        >>> mask = Mask(kept, MaskProvenance("magnitude", layers=("linear",)))
        >>> mask.kept_count, mask.total, mask.density, mask.sparsity
        (2, 4, 0.5, 0.5)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False))
        >>> mask.apply_(model)
        >>> mask.count_violations(model), int((model[0].weight == 0).sum())
        ({}, 2)
    """

    kept: Mapping[str, torch.Tensor]
    provenance: MaskProvenance

    def __post_init__(self) -> None:
        for name, tensor in self.kept.items():
            if tensor.dtype != torch.bool:
                raise MaskError(f"a mask has bool tensors, not {tensor.dtype}", where=name)

    @property
    def total(self) -> int:
        """Number of weights that the mask covers."""
        return sum(t.numel() for t in self.kept.values())

    @property
    def kept_count(self) -> int:
        """Number of kept weights."""
        return sum(int(t.sum()) for t in self.kept.values())

    @property
    def density(self) -> float:
        """Fraction of kept weights among those that the mask covers, in [0, 1]."""
        return _density(self.kept_count, self.total)

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights among those that the mask covers: 1 - density."""
        return 1.0 - self.density

    def layer_density(self) -> dict[str, float]:
        """Density of each tensor."""
        return {name: float(t.float().mean()) for name, t in self.kept.items()}

    def _summarise(self) -> Summary:
        facts = {
            "weights": self._describe_counts,
            "criterion": lambda: self.provenance.criterion,
            "scope": lambda: self.provenance.scope,
            "granularity": lambda: self.provenance.granularity,
            "schedule": lambda: self.provenance.schedule,
            "layers": lambda: shorten_names(self.provenance.layers),
        }
        return Summary(self._describe, facts, bars=self._density_bars)

    def _describe(self) -> str:
        how = self.provenance
        made = (how.criterion, how.scope, how.granularity, how.schedule)
        return f"{self._describe_counts()}; {', '.join(f'{name:.40}' for name in made)}"

    def _describe_counts(self) -> str:
        tensors = f" in {plural(len(self.kept), 'tensor')}"
        if self.total > _COUNTED:
            return f"{self.total:,} weights{tensors}, not counted"
        kept = sum(map(_count, self.kept.values()))
        return f"{kept:,} of {plural(self.total, 'weight')} kept{tensors} (density {_density(kept, self.total):.4g})"

    def _density_bars(self) -> list[Bar]:
        if self.total > _COUNTED:
            return []
        counts = {name: (_count(tensor), tensor.numel()) for name, tensor in self.kept.items()}
        return [Bar(name, _density(*n), f"{_density(*n):.4g} ({n[0]:,} of {n[1]:,})") for name, n in counts.items()]

    __repr__ = repr_text
    _repr_html_ = repr_html

    def hash(self) -> str:
        """Hash of the bool tensors alone: masks of equal topology have equal hashes, whatever their provenance."""
        return hash_json({plain_name(name): hash_tensor(t) for name, t in self.kept.items()})

    def check_fits(self, model: nn.Module) -> None:
        """Raise MaskError unless every tensor of the mask has the name and the shape of a parameter of the model."""
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        for name, tensor in self.kept.items():
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
        """Assign +0.0 to every pruned weight of `model`, in place. Only for models that expunge itself made.

        Raises:
            MaskError: the mask does not fit the model.
        """
        self.check_fits(model)
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        with torch.no_grad():
            for name, tensor in self.kept.items():
                parameters[name].masked_fill_(~tensor.to(parameters[name].device), 0.0)

    def count_violations(self, model: nn.Module) -> dict[str, int]:
        """Count the pruned weights that are not exactly +0.0, by parameter name; empty if all are."""
        parameters = {plain_name(n): p for n, p in model.named_parameters()}
        found = {}
        for name, tensor in self.kept.items():
            pruned = parameters[name].detach().cpu()[~tensor]
            wrong = int(((pruned != 0) | torch.signbit(pruned)).sum())
            if wrong:
                found[name] = wrong
        return found

    def save(self, path: PathLike) -> None:
        """Write the mask as safetensors with its provenance in the metadata (docs/formats/mask.md)."""
        metadata = {
            "kind": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "provenance": self.provenance.to_json(),
            "hash": self.hash(),
        }
        write_tensors(check_format(path, "safetensors"), self.kept, metadata)

    @classmethod
    def load(cls, path: PathLike) -> Mask:
        """Read a mask and check its hash.

        Raises:
            FileError: the file is missing, damaged, or not a mask file of this version.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != SCHEMA or metadata.get("schema_version") != SCHEMA_VERSION:
            raise FileError("is not an expunge mask file of a version this release reads", where=Path(path))
        try:
            mask = cls(tensors, MaskProvenance.from_json(metadata["provenance"]))
        except MaskError as error:
            raise FileError(f"has a damaged mask ({error})", where=Path(path)) from error
        except ValueError as error:
            raise FileError(f"does not record how its mask was made: {error}", where=f"{path}: provenance") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError("does not record how its mask was made (provenance)", where=Path(path)) from error
        if mask.hash() != metadata.get("hash"):
            raise FileError("the tensors of the mask do not match the hash in the file", where=Path(path))
        return mask
