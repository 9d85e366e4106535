"""Architectures: a network without its weights, as a value from which it is rebuilt bit for bit.

A reference network is one file with one class, registered by `@register_model("name")`. The class takes
`(input_shape, classes, normalise, **options)`; `normalise` is the module that it must apply first. A custom network is
named `package.module:factory` (see `expunge.models.factory`). A file is imported when its network is named.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError, unknown_name_hint
from expunge.core.files import PathLike
from expunge.core.hashing import hash_json
from expunge.core.registry import MODELS
from expunge.core.seeds import global_rng
from expunge.core.show import repr_fields
from expunge.core.split import Ids, Split
from expunge.data.fields import Field, InputFields
from expunge.data.records import Normalisation, Records

from .call import ModelCall, adapt, find_call
from .drawn import DrawnNetworks
from .factory import build_custom, check_custom_options, find_factory, is_custom, permit_factory, refuse_entry
from .initial import InitialWeights
from .live import is_model_object, refuse_drawing
from .named import embed_config, is_named
from .normalise import Normalised, make_normalise, measure_normalisation
from .size import check_size

_FIXED = ("self", "input_shape", "classes", "normalise")
_DRAWN = DrawnNetworks()
_NORMALISE = ("auto", "none", "published", "training")

Network = TypeVar("Network", bound=type[nn.Module])


def register_model(name: str, *, title: str = "") -> Callable[[Network], Network]:
    """Register a network class under a name; its keyword arguments with defaults become its options.

    Args:
        name: name of the network.
        title: its name in reports (`Small CNN`); a literal, since it is read from the source. Empty: the name.

    Raises:
        ConfigError: the name is already registered.

    Example:
        >>> @register_model("linear-only")
        ... class LinearOnly(nn.Module):
        ...     "One linear layer."
        ...
        ...     def __init__(self, input_shape, classes, normalise, bias=True):
        ...         super().__init__()
        ...         self.normalise = normalise
        ...         self.layer = nn.Linear(input_shape[0], classes, bias=bias)
        ...
        ...     def forward(self, x):
        ...         return self.layer(self.normalise(x))
        >>> model_options("linear-only")
        {'bias': True}
        >>> Architecture("linear-only", {"bias": False}, (4,), 3).build(seed=0)(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
        >>> MODELS.remove("linear-only")  # only for this example
    """

    def register(network: Network) -> Network:
        MODELS.add(name, network, network, {"title": title})
        return network

    return register


def model_names() -> list[str]:
    """Names of the registered networks, sorted.

    Example:
        >>> {"mlp", "resnet18"} <= set(model_names())
        True
    """
    return MODELS.names()


def model_options(name: str) -> dict[str, Any]:
    """The options of a registered network and their defaults.

    Raises:
        ModelError: no network has this name.

    Example:
        >>> model_options("mlp")
        {'widths': (64, 64), 'batch_norm': False}
    """
    parameters = inspect.signature(MODELS.get(name).__init__).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _FIXED}


def model_table() -> list[dict[str, Any]]:
    """One row for each registered network: name, summary (first line of its docstring), options with defaults.

    Example:
        >>> [row["options"] for row in model_table() if row["name"] == "resnet20"]
        [{'depth': 20, 'width': 16}]
    """
    return [
        {
            "name": name,
            "summary": (inspect.getdoc(MODELS.get(name)) or "").split("\n")[0],
            "options": _thaw(model_options(name)),
        }
        for name in model_names()
    ]


def find_network(name: str) -> type[nn.Module] | None:
    """The class of a registered network, by its name or as `package.module:Class`; None for a custom factory.

    Raises:
        TrustError: `package.module:name` is code that the owner did not agree to run; it was not imported.
        ModelError: there is no such network or factory.
    """
    if not is_custom(name):
        found: type[nn.Module] = MODELS.get(name)
        return found
    factory = find_factory(name)
    network: Any = factory if inspect.isclass(factory) and MODELS.is_registered(factory) else None
    return network


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, (list, tuple)) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(v) for key, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network without weights.

    Attributes:
        name: a registered name, or `package.module:factory`.
        options: options of the network; for a registered network, missing ones are set to their defaults.
        input_shape: shape of one record, without the batch axis: `C x H x W`, `C x T` or `F`.
        classes: number of classes K, the width of the output.
        normalisation: normalisation statistics that the network applies to its input, or None.
        initial: a declared start: pretrained weights that take the place of drawn ones, or None.
        call: how a batch becomes a call of the network, and which output holds the logits; None for one float tensor.

    Raises:
        ModelError: the name is unknown, or the network cannot have this shape or number of classes.
        ConfigError: an option is unknown.

    Example:
        >>> network = Architecture("mlp", {"widths": [16]}, (1, 8, 8), 10)
        >>> model = network.build(seed=0)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> Architecture.from_json(network.to_json()) == network
        True
    """

    name: str
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    normalisation: Normalisation | None = None
    initial: InitialWeights | None = None
    call: ModelCall | None = None

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        options = {key: _freeze(value) for key, value in self.options.items()}
        if self.name.startswith("hf:"):  # a saved model does not need the folder
            options = {key: _freeze(value) for key, value in embed_config(self.name, options).items()}
        if find_network(self.name) is None:
            check_custom_options(self.name, options)
        else:
            defaults = model_options(self.name)
            object.__setattr__(self, "name", MODELS.canonical(self.name))
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
        fields = None if self.call is None else self.call.fields
        if fields is not None and fields.input_shape != self.input_shape:
            raise ModelError(f"the inputs take {fields.input_shape}, not {self.input_shape}", where=self.name)

    @property
    def hash(self) -> str:
        """Hash of everything that determines the network: the JSON values of `to_json`."""
        return hash_json(self.to_json())

    def build(self, seed: int = 0) -> nn.Module:
        """Build the network on the CPU, in float32 and training mode; equal seeds give equal bits.

        The initial weights are drawn within `global_rng(seed, "initial weights")`, so torch's global generators are not
        changed. The last networks are kept, so that a registered network is drawn once in a run and then copied.

        Raises:
            ModelError: the network cannot take this input shape or is above the limits of `core.reading.limits`, or a
                custom network has another output width, or the declared start does not fit; or the network was given
                as a model, without a factory (`expunge.models.live`).
            FileError: the file of the declared start is missing, or another one.
        """
        if self.initial is not None:
            return self.initial.load_into(dataclasses.replace(self, initial=None).build(seed))
        if is_model_object(self.name):
            raise refuse_drawing(self.name)
        network = find_network(self.name)
        if network is None:
            return self._build_custom(seed)
        check_size(self.name, network, self.options, self.input_shape, self.classes, self.call)

        def draw() -> nn.Module:
            with global_rng(seed, "initial weights"), torch.device("cpu"):
                normalise = make_normalise(self.normalisation, self.input_shape)
                made = network(self.input_shape, self.classes, normalise, **self.options).float().train()
                return made if self.call is None else adapt(made, self.call)

        return _DRAWN.get((network, json.dumps(self.to_json(), sort_keys=True)), seed, draw)

    def _build_custom(self, seed: int) -> nn.Module:
        with global_rng(seed, "initial weights"), torch.device("cpu"):
            normalise = make_normalise(self.normalisation, self.input_shape)
            custom = build_custom(self.name, self.options, self.input_shape, self.classes, self.call)
            return custom if self.normalisation is None else Normalised(normalise, custom).train()

    def build_blank(self) -> nn.Module:
        """Build the network for weights that replace all of its own: a network that was built before is copied."""
        if is_model_object(self.name):
            return self._build_custom(0)
        if self.initial is not None:  # its file is not read
            return dataclasses.replace(self, initial=None).build_blank()
        seed = _DRAWN.find_seed((find_network(self.name), json.dumps(self.to_json(), sort_keys=True)))
        return self.build(0 if seed is None else seed)

    def remeasure_normalisation(self, records: Records, record_ids: Ids) -> Architecture:
        """Return this architecture with normalisation statistics of `record_ids`, if they are from training records.

        Published statistics do not depend on the records and stay. Retraining calls this with the retain set.
        """
        if self.normalisation is None or self.normalisation.origin == "published":
            return self
        return dataclasses.replace(self, normalisation=measure_normalisation(records, record_ids))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values of this architecture (docs/formats/trained.md)."""
        body: dict[str, Any] = {"name": self.name}
        if is_custom(self.name):
            body["factory"] = self.name
        body.update(options=_thaw(self.options), input_shape=list(self.input_shape), classes=self.classes)
        statistics = self.normalisation
        body["normalisation"] = None if statistics is None else _thaw(dataclasses.asdict(statistics))
        body["normalisation_from"] = None if statistics is None else statistics.origin
        if self.initial is not None:
            body["initial"] = self.initial.to_json()
        if self.call is not None:
            body["call"] = self.call.to_json()
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Architecture:
        """Read the architecture that `to_json` wrote.

        The name of a custom network comes from a file here, so the owner must have agreed to it (`expunge.core.trust`).

        Raises:
            TrustError: the owner did not agree to run the code that it names; nothing was imported.
            ModelError: a key is missing or has the wrong type, or the model is unknown.
        """
        name = body.get("name") or body.get("factory")
        missing = [key for key in ("input_shape", "classes") if key not in body]
        if not isinstance(name, str):
            missing.insert(0, "name")
        if missing:
            raise ModelError(f"the architecture has no {', '.join(missing)}")
        if is_custom(str(name)):
            permit_factory(str(name))
        try:
            statistics = body.get("normalisation")
            if statistics is not None:
                mean, std = (tuple(map(float, statistics[key])) for key in ("mean", "std"))
                statistics = Normalisation(mean, std, str(statistics["origin"]))
            declared = body.get("initial")
            initial = None if declared is None else InitialWeights(str(declared["file"]), str(declared["hash"]))
            options, shape = dict(body.get("options", {})), tuple(body["input_shape"])
            call = None if body.get("call") is None else ModelCall.from_json(body["call"])
            return cls(str(name), options, shape, body["classes"], statistics, initial, call)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ModelError(f"the architecture cannot be read ({repr(error)[:200]})", where=name) from error


def architecture(
    name: str,
    records: Records,
    split: Split | None = None,
    *,
    normalise: str = "auto",
    initial: InitialWeights | PathLike | Mapping[str, Any] | None = None,
    statistics: Normalisation | None = None,
    **options: Any,
) -> Architecture:
    """Make the architecture of a network for these records.

    Args:
        name: a registered name (`model_names()`), or `package.module:factory` for a custom network: by giving the name
            a Python caller agrees to run that code (`expunge.core.trust`).
        records: determine the input shape, the number of classes and the published normalisation statistics.
        split: its training records D (retain and forget set) are those of which statistics are computed.
        normalise: `published`: the published statistics of the records; `training`: statistics of each channel (axis 1
            of a batch) over the training records of `split`; `none`; or `auto`: published if the records have them,
            else `training` if there is a split, else none. For a custom network, `auto` means `none`.
        initial: a declared pretrained start: a safetensors file, or `{"file", "hash"}` with the SHA-256 of the file.
            Its tensors take the place of drawn ones. Declare only weights that do not depend on the records.
        statistics: recorded normalisation statistics of training records, where these are gone (a split that declares
            them absent): they are not computed again.
        **options: options of the network.

    Raises:
        FileError: the file of the start cannot be read.
        ModelError: unknown model or shape, or the statistics are not available.
        ConfigError: unknown option.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = architecture("small-cnn", records, split, widths=(8, 16))
        >>> network.input_shape, network.classes, network.normalisation.origin
        ((1, 8, 8), 10, 'training records')
    """
    refuse_entry(name)
    if normalise not in _NORMALISE:
        raise ConfigError(f"normalise is not {normalise!r}", hint=unknown_name_hint(normalise, _NORMALISE))
    if normalise == "auto" and find_network(name) is None:
        normalise = "none"
    elif normalise == "auto":
        normalise = "published" if records.normalisation else "training" if split else "none"
    recorded, statistics = statistics, None
    start = None if initial is None else InitialWeights.declare(initial)
    if normalise == "published":
        statistics = records.normalisation
        if statistics is None:
            raise ModelError(
                "these records have no published normalisation statistics",
                where=records.name,
                hint="use normalise='training' (computed from the training records) or 'none'",
            )
    elif normalise == "training":
        if split is None:
            raise ModelError(
                "normalise='training' needs a split: statistics are computed from training records only",
                where=records.name,
                hint="pass the split, or use normalise='none'",
            )
        if split.retain_absent and recorded is None:
            what = "normalise='training' needs training records, and the split declares them absent"
            hint = "give weights that have the statistics (normalise.mean), or use normalise=none"
            raise ModelError(what, where=records.name, hint=hint)
        statistics = measure_normalisation(records, split.train) if recorded is None else recorded
    return _find_call(Architecture(name, options, records.input_shape, records.classes, statistics, start), records)


def _find_call(made: Architecture, records: Records) -> Architecture:
    """Add the call of the network, if the records have named or integer inputs; a custom network is run once for it."""
    fields = records.fields
    if fields is None and records.dtype == "int64":
        fields = InputFields((Field("", records.input_shape, "int64"),))
    if fields is not None and fields.names == ("",) and not fields.fields[0].is_integer:
        fields = None  # an ordinary batch
    if fields is None and not is_named(made.name):
        return made
    if made.normalisation is not None and fields is not None and fields.dtype == "int64":
        raise ModelError("integer inputs are not normalised", where=made.name, hint="use normalise='none'")
    found = dataclasses.replace(made, call=ModelCall(fields))
    if find_network(made.name) is not None:
        return found
    return dataclasses.replace(found, call=find_call(dataclasses.replace(found, normalisation=None).build_blank()))
