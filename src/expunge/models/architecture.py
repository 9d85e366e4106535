"""What a network is, apart from its weights: enough to build it again, bit for bit.

A network is a file of its own with one class, registered by `@register_model("name")`. The class takes
`(input_shape, classes, normalise, **options)`; `normalise` is the module that it must apply first. A user's own network
is named `package.module:factory` (see `expunge.models.factory`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, unknown_name_hint
from expunge.core.hashing import hash_json
from expunge.core.seeds import global_rng
from expunge.core.split import Ids, Split
from expunge.data.records import Normalisation, Records

from .factory import build_own, check_own_options, is_own, permit_factory
from .normalise import Normalised, measure_normalisation, normalise_module
from .size import check_size

_FIXED = ("self", "input_shape", "classes", "normalise")
_MODELS: dict[str, type[nn.Module]] = {}
_NORMALISE = ("auto", "none", "published", "training")

Network = TypeVar("Network", bound=type[nn.Module])


def register_model(name: str) -> Callable[[Network], Network]:
    """Register a network class under a name; its keyword arguments with defaults become its options."""

    def register(network: Network) -> Network:
        if name in _MODELS:
            raise ValueError(f"a model is already registered as {name!r}")
        _MODELS[name] = network
        return network

    return register


def model_names() -> list[str]:
    """Names of the registered networks, sorted."""
    return sorted(_MODELS)


def model_options(name: str) -> dict[str, Any]:
    """The options of a registered network and their defaults.

    Raises:
        ModelError: no network has this name.
    """
    if name not in _MODELS:
        hint = unknown_name_hint(name, _MODELS) + "; your own is given as package.module:factory"
        raise ModelError(f"no model is called {name!r}", hint=hint)
    parameters = inspect.signature(_MODELS[name].__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _FIXED}


def model_table() -> list[dict[str, Any]]:
    """One row a registered network: name, summary (first line of its docstring), options with defaults."""
    return [
        {
            "name": name,
            "summary": (inspect.getdoc(_MODELS[name]) or "").split("\n")[0],
            "options": _listed(model_options(name)),
        }
        for name in model_names()
    ]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(v) for key, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network without weights.

    Attributes:
        name: a registered name, or `package.module:factory`.
        options: options of the network; those left out of a registered one are filled in with its defaults.
        input_shape: shape of one record, without the batch axis: `C x H x W`, `C x T` or `F`.
        classes: number of classes K, the width of the output.
        normalisation: constants applied to the input inside the network, or None.

    Raises:
        ModelError: unknown name, an option or a shape that the network cannot have.
    """

    name: str
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        options = {key: _frozen(value) for key, value in self.options.items()}
        if is_own(self.name):
            check_own_options(self.name, options)
        else:
            defaults = model_options(self.name)
            unknown = [key for key in options if key not in defaults]
            if unknown:
                raise ConfigError(
                    f"the model {self.name} has no option {unknown[0]!r}", hint=unknown_name_hint(unknown[0], defaults)
                )
            options = {**defaults, **options}
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "input_shape", tuple(int(size) for size in self.input_shape))
        object.__setattr__(self, "classes", int(self.classes))
        if self.classes < 1:
            raise ModelError(f"a classifier of {self.classes} classes cannot be built", where=self.name)
        if not self.input_shape or min(self.input_shape) < 1:
            raise ModelError(f"records of shape {self.input_shape} cannot be an input", where=self.name)

    @property
    def hash(self) -> str:
        """Hash of all that decides the network."""
        return hash_json(self.to_json())

    def build(self, seed: int = 0) -> nn.Module:
        """A new network on the CPU, float32, in training mode; the same seed gives the same bits.

        The initial weights are drawn under `global_rng(seed, "initial weights")`, so the global generators are left as
        they were.

        Raises:
            ModelError: the network cannot take this input shape or is above the limits of `core.reading.limits`, or a
                user's network gives another output width.
        """
        if not is_own(self.name):
            check_size(self.name, _MODELS[self.name], self.options, self.input_shape, self.classes)
        with global_rng(seed, "initial weights"), torch.device("cpu"):
            normalise = normalise_module(self.normalisation, self.input_shape)
            if not is_own(self.name):
                network = _MODELS[self.name](self.input_shape, self.classes, normalise, **self.options)
                return network.float().train()
            own = build_own(self.name, self.options, self.input_shape, self.classes)
            return own if self.normalisation is None else Normalised(normalise, own).train()

    def renormalised(self, records: Records, record_ids: Ids) -> Architecture:
        """This architecture with its constants measured on `record_ids`, if they were measured on training records.

        Published constants (or none) do not depend on the records and stay. Retraining uses this with the retain set.
        """
        if self.normalisation is None or self.normalisation.origin == "published":
            return self
        return dataclasses.replace(self, normalisation=measure_normalisation(records, record_ids))

    def to_json(self) -> dict[str, Any]:
        """JSON values that rebuild this architecture (docs/formats/trained.md)."""
        body: dict[str, Any] = {"name": self.name}
        if is_own(self.name):
            body["factory"] = self.name
        body.update(options=_listed(self.options), input_shape=list(self.input_shape), classes=self.classes)
        constants = self.normalisation
        body["normalisation"] = None if constants is None else _listed(dataclasses.asdict(constants))
        body["normalisation_from"] = None if constants is None else constants.origin
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Architecture:
        """The architecture that `to_json` wrote.

        A custom network comes from a file here, so its name must have been agreed to (`expunge.core.trust`).

        Raises:
            TrustError: nobody agreed to run the code that it names; nothing was imported.
            ModelError: a key is missing or of the wrong kind, or the model is unknown here.
        """
        name = body.get("name") or body.get("factory")
        missing = [key for key in ("input_shape", "classes") if key not in body]
        if not isinstance(name, str):
            missing.insert(0, "name")
        if missing:
            raise ModelError(f"the architecture lacks {', '.join(missing)}")
        if is_own(str(name)):
            permit_factory(str(name))
        try:
            constants = body.get("normalisation")
            if constants is not None:
                mean, deviation = (tuple(map(float, constants[key])) for key in ("mean", "deviation"))
                constants = Normalisation(mean, deviation, str(constants["origin"]))
            return cls(str(name), dict(body.get("options", {})), tuple(body["input_shape"]), body["classes"], constants)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ModelError(f"the architecture cannot be read ({repr(error)[:200]})", where=name) from error


def architecture(
    name: str, records: Records, split: Split | None = None, *, normalise: str = "auto", **options: Any
) -> Architecture:
    """The architecture of a network that takes these records.

    Args:
        name: a registered name (`model_names()`), or `package.module:factory` for a custom network: by giving the name
            a Python caller agrees to that code (`expunge.core.trust`).
        records: gives the input shape, the number of classes and the published constants.
        split: gives the records that constants are measured on: D, retain and forget set together, as `train` does.
        normalise: `published` constants of the records; `training`: measured per channel (axis 1 of a batch) on the
            training records of `split`; `none`; or `auto`: published ones, else measured ones where there is a split,
            else none. A network of your own is taken as it stands under `auto`: no constants unless asked for.
        **options: options of the network.

    Raises:
        ModelError: unknown model or shape, or constants that cannot be had.
        ConfigError: unknown option.
    """
    if normalise not in _NORMALISE:
        raise ConfigError(f"normalise is not {normalise!r}", hint=unknown_name_hint(normalise, _NORMALISE))
    if normalise == "auto":
        normalise = (
            "none" if is_own(name) else "published" if records.normalisation else "training" if split else "none"
        )
    constants: Normalisation | None = None
    if normalise == "published":
        constants = records.normalisation
        if constants is None:
            raise ModelError(
                "these records have no published normalisation constants",
                where=records.name,
                hint="use normalise='training' (measured on the training records) or 'none'",
            )
    elif normalise == "training":
        if split is None:
            raise ModelError(
                "normalise='training' needs a split: constants are measured on training records only",
                where=records.name,
                hint="pass the split, or use normalise='none'",
            )
        constants = measure_normalisation(records, split.train)
    return Architecture(name, options, records.input_shape, records.classes, constants)
