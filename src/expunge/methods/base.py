"""The interface of an unlearning method, and the registry of methods.

The command line, docs/methods.md and the contract tests read the registry.
"""

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
from expunge.training.context import Context


class Method(abc.ABC):
    """Base class of methods. A method is a frozen dataclass of hyper-parameters; it never modifies `trained`.

    Attributes:
        name: the registered name.
        guarantee: a key of `expunge.core.outcome.GUARANTEES`.
        citation: paper and section or equation.

    `register` sets these class attributes.
    """

    name: ClassVar[str]
    guarantee: ClassVar[str]
    citation: ClassVar[str]

    @abc.abstractmethod
    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
        """Return a model without the request's records.

        Args:
            trained: the original model, with mask, split, provenance and state.
            request: the records to forget. For an empty request, the result is a copy of the model.
            context: records, runtime, seed, checkpoint, progress.

        Raises:
            RequestError: a record is not in the retain set, or no record would be retained.
            MethodError: state that the method needs is missing.
        """

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """Return why the method does not support a network, and a hint; None if it does. Checked before training."""
        return None


_METHODS: dict[str, type[Method]] = {}
_loaded = False
T = TypeVar("T", bound=Method)


def register(name: str, *, guarantee: str, citation: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that registers a frozen dataclass as a method.

    Args:
        name: the method's name in its paper.
        guarantee: a key of `expunge.core.outcome.GUARANTEES`.
        citation: paper and section or equation.

    Raises:
        ValueError: the guarantee is unknown, or another class has the name.
        TypeError: the class is not a dataclass.

    >>> import dataclasses
    >>> from expunge.methods import Method, base, get_method, register
    >>> @register("Example", guarantee="empirical", citation="docs/adding-a-method.md")
    ... @dataclasses.dataclass(frozen=True)
    ... class Example(Method):
    ...     scale: float = 0.1
    ...
    ...     def forget(self, trained, request, context):
    ...         raise NotImplementedError
    >>> get_method("example", scale=0.2).scale
    0.2
    >>> _ = base._METHODS.pop("Example")  # so that the registry is as before
    """
    if guarantee not in GUARANTEES:
        raise ValueError(f"unknown guarantee {guarantee!r}; known: {', '.join(GUARANTEES)}")

    def add_class(cls: type[T]) -> type[T]:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a dataclass")
        if name in _METHODS and _METHODS[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"a method named {name!r} is registered already")
        cls.name, cls.guarantee, cls.citation = name, guarantee, citation
        _METHODS[name] = cls
        return cls

    return add_class


def _load() -> None:
    """Import every module of this package once; each registers its method."""
    global _loaded
    if not _loaded:
        package = __name__.rpartition(".")[0]
        for module in pkgutil.walk_packages([str(Path(__file__).parent)], f"{package}."):
            importlib.import_module(module.name)
        _loaded = True


def method_names() -> list[str]:
    """Return the names of the registered methods, Retrain first.

    >>> from expunge.methods import method_names
    >>> method_names()[0], "FT" in method_names()
    ('Retrain', True)
    """
    _load()
    return sorted(_METHODS, key=lambda name: (name != "Retrain", name.casefold()))


def method_class(name: str) -> type[Method]:
    """Return the class of a method; case is ignored.

    Raises:
        MethodError: the method is unknown; the hint has the nearest name.
    """
    _load()
    by_fold = {known.casefold(): cls for known, cls in _METHODS.items()}
    if name.casefold() not in by_fold:
        raise MethodError(f"unknown method {name!r}", hint=unknown_name_hint(name, _METHODS))
    return by_fold[name.casefold()]


def options_of(cls: type[Method]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the hyper-parameters of a method, in the order of its dataclass."""
    return dataclasses.fields(cast(Any, cls))


def get_method(name: str, **options: Any) -> Method:
    """Return a method with the given hyper-parameters.

    Args:
        name: a registered name; case is ignored.
        options: hyper-parameters; the others have their defaults.

    Raises:
        MethodError: the method or an option is unknown (the hint has the nearest name), or a value has the wrong type
            or is out of range.

    >>> import expunge
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> recipe = expunge.get_recipe("one-cycle", epochs=1)
    >>> trained = expunge.train(records, split, network, recipe=recipe, seed=0)
    >>> request = expunge.forget_ids(records, split, split.retain[:20])
    >>> method = expunge.get_method("FT", epochs=1, learning_rate=0.02)
    >>> outcome = method.forget(trained, request, expunge.Context(records, seed=0))
    >>> len(outcome.trained.split.forget), outcome.rewrote, outcome.cost.passes
    (20, ('weights',), 1.0)
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
    expected = type(default)
    if default is None and str(field.type).startswith("Mapping") and value is not None:
        expected = Mapping
    elif default is dataclasses.MISSING or default is None:
        return value
    if isinstance(value, expected) and not isinstance(value, bool):
        return value
    if isinstance(value, bool) and isinstance(default, bool):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    type_name = "a mapping" if expected is Mapping else expected.__name__
    raise MethodError(
        f"option {field.name} of {cls.name} must be {type_name}, not {type(value).__name__} ({value!r})",
        where=field.name,
    )


def method_table() -> list[dict[str, Any]]:
    """Return one dictionary per method: name, guarantee and its meaning, citation, summary, options with defaults.

    >>> from expunge.methods import method_table
    >>> row = next(row for row in method_table() if row["name"] == "GA")
    >>> row["guarantee"], row["options"]["learning_rate"]
    ('empirical', 0.0001)
    """
    rows = []
    for name in method_names():
        cls = _METHODS[name]
        rows.append(
            {
                "name": name,
                "guarantee": cls.guarantee,
                "meaning": GUARANTEES[cls.guarantee],
                "citation": cls.citation,
                "summary": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
                "options": {f.name: f.default for f in options_of(cls)},
            }
        )
    return rows


def require_range(method: str, **checks: tuple[Any, bool]) -> None:
    """Raise MethodError for the first option that is out of range: `name=(value, is_in_range)`."""
    for option, (value, is_in_range) in checks.items():
        if not is_in_range:
            raise MethodError(f"{option} = {value!r} is out of range", where=f"{method}.{option}")


def identity_outcome(
    method: Method, trained: Trained, request: ForgetRequest, context: Context, options: Mapping[str, Any]
) -> Outcome:
    """Return the outcome of an empty request: a copy of the model; no state is rewritten.

    Raises:
        RequestError: the request is not empty.
    """
    from expunge.core.outcome import Cost
    from expunge.core.trained import clone_model

    if len(request.record_ids):
        raise RequestError("the request is not empty")
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
