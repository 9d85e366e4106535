"""The contract of a method, and the registry that the command line, the docs and the contract tests read."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from torch import nn

from expunge.core.errors import MethodError, RequestError, unknown_name_hint
from expunge.core.outcome import GUARANTEES, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.training.progress import Progress
from expunge.training.runtime import Runtime


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a method may use besides the model and the request.

    Attributes:
        records: features and labels, forget and retain among them.
        runtime: device and precision.
        seed: seeds whatever the method draws (order of records, augmentation, noise).
        checkpoint: file for resuming a long method, or None.
        progress: told of progress, or None.
    """

    records: Records
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    seed: int = 0
    checkpoint: Path | None = None
    progress: Progress | None = None


class Method(abc.ABC):
    """A frozen dataclass of hyper-parameters with one call. It never modifies `trained`.

    `register` sets the three class attributes.
    """

    name: ClassVar[str]
    guarantee: ClassVar[str]
    source: ClassVar[str]

    @abc.abstractmethod
    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """Make `trained` forget the request's records.

        Raises:
            RequestError: a record is not in the retain set, or nothing would be retained.
            MethodError: the method lacks something it needs.
        """

    def objection(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """Why the method cannot work on a network, and a hint; None where it can. Said before anything is trained."""
        return None


_METHODS: dict[str, type[Method]] = {}
_loaded = False
T = TypeVar("T", bound=Method)


def register(name: str, *, guarantee: str, source: str) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as a method.

    Args:
        name: the name its paper gives it.
        guarantee: a key of `expunge.core.outcome.GUARANTEES`.
        source: paper and section or equation.
    """
    if guarantee not in GUARANTEES:
        raise ValueError(f"unknown guarantee {guarantee!r}; known: {', '.join(GUARANTEES)}")

    def keep(cls: type[T]) -> type[T]:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a dataclass")
        if name in _METHODS and _METHODS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"a method named {name!r} is registered already")
        cls.name, cls.guarantee, cls.source = name, guarantee, source
        _METHODS[name] = cls
        return cls

    return keep


def _load() -> None:
    """Import every module of this package once, so that each registers itself."""
    global _loaded
    if not _loaded:
        package = __name__.rpartition(".")[0]
        for module in pkgutil.walk_packages([str(Path(__file__).parent)], f"{package}."):
            importlib.import_module(module.name)
        _loaded = True


def method_names() -> list[str]:
    """The registered methods, Retrain first."""
    _load()
    return sorted(_METHODS, key=lambda name: (name != "Retrain", name.casefold()))


def method_class(name: str) -> type[Method]:
    """The dataclass of a method; case does not matter.

    Raises:
        MethodError: unknown, with the nearest name.
    """
    _load()
    by_fold = {known.casefold(): cls for known, cls in _METHODS.items()}
    if name.casefold() not in by_fold:
        raise MethodError(f"unknown method {name!r}", hint=unknown_name_hint(name, _METHODS))
    return by_fold[name.casefold()]


def options_of(cls: type[Method]) -> tuple[dataclasses.Field[Any], ...]:
    """The hyper-parameters of a method, in the order of its dataclass."""
    return dataclasses.fields(cast(Any, cls))


def get_method(name: str, **options: Any) -> Method:
    """A method with its hyper-parameters.

    Raises:
        MethodError: unknown method or option (with the nearest name), or a value of the wrong kind.
    """
    cls = method_class(name)
    fields = {field.name: field for field in options_of(cls)}
    values = {}
    for key, value in options.items():
        if key not in fields:
            raise MethodError(f"method {cls.name} has no option {key!r}", hint=unknown_name_hint(key, fields))
        values[key] = _coerce(cls, fields[key], value)
    return cls(**values)


def _coerce(cls: type[Method], field: dataclasses.Field[Any], value: Any) -> Any:
    default = field.default
    wanted = type(default)
    if default is None and str(field.type).startswith("Mapping") and value is not None:
        wanted = Mapping
    elif default is dataclasses.MISSING or default is None:
        return value
    if isinstance(value, wanted) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) and isinstance(default, bool):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    kind = "a mapping" if wanted is Mapping else wanted.__name__
    raise MethodError(
        f"option {field.name} of {cls.name} is {kind}, not {type(value).__name__} ({value!r})",
        where=field.name,
    )


def method_table() -> list[dict[str, Any]]:
    """One row a method: name, guarantee, source, summary, options with their defaults."""
    rows = []
    for name in method_names():
        cls = _METHODS[name]
        rows.append(
            {
                "name": name,
                "guarantee": cls.guarantee,
                "meaning": GUARANTEES[cls.guarantee],
                "source": cls.source,
                "summary": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
                "options": {f.name: f.default for f in options_of(cls)},
            }
        )
    return rows


def require_range(method: str, **checks: tuple[Any, bool]) -> None:
    """Raise MethodError for the first option whose check is false: `name=(value, fine)`."""
    for option, (value, fine) in checks.items():
        if not fine:
            raise MethodError(f"{option} = {value!r} is out of range", where=f"{method}.{option}")


def identity_outcome(
    method: Method, trained: Trained, request: ForgetRequest, context: Context, options: Mapping[str, Any]
) -> Outcome:
    """The outcome of an empty request: the same model (a copy), nothing rewritten."""
    from expunge.core.outcome import Cost
    from expunge.core.trained import clone_model

    if len(request.record_ids):
        raise RequestError("not an empty request")
    return Outcome(
        trained=dataclasses.replace(trained, model=clone_model(trained.model)),
        request=request,
        method=method.name,
        options=options,
        guarantee=method.guarantee,
        cost=Cost(0, 0, len(trained.split.retain), 0.0),
        rewrote=(),
        seed=context.seed,
    )
