"""The registry of methods: registering, looking up by name, and the table of all methods.

The command line, docs/methods.md and the contract tests read it. The table is read from source: it imports neither the
methods nor torch. Only the module of a method that is asked for is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from expunge.core.errors import MethodError, unknown_name_hint
from expunge.core.outcome import GUARANTEES
from expunge.core.registry import METHODS
from expunge.core.registry.custom_code import naming
from expunge.core.registry.definitions import ClassDefinition, FieldDefinition

from .options import coerce_option
from .space import check_space

if TYPE_CHECKING:
    from .base import Method

T = TypeVar("T", bound="Method")


def register_method(
    name: str,
    *,
    guarantee: str,
    citation: str,
    trains: bool = False,
    corrects: bool = False,
    space: Mapping[str, Any] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that registers a frozen dataclass as a method.

    Give the arguments as literals: they are read from source without importing the method.

    Args:
        name: the method's name in its paper.
        guarantee: a key of `expunge.core.outcome.GUARANTEES`.
        citation: paper and section or equation.
        trains: the method has a `fit` of its own, which the original model must be trained with.
        corrects: the method supports corrections: it reads the old values of the records in `task.old_records`, and
            the new ones, in the retain set, in `task.context.records`.
        space: what `expunge bench tune` searches: option to a list of values, or to a range `(low, high)` or
            `(low, high, "log")`, in which the default is; None: the method is not tuned.

    Raises:
        MethodError: the guarantee is unknown; the class is not a frozen dataclass that derives from `Method`; or
            `trains` does not agree with whether the class defines `fit`; an option has no default; or the search space
            names an unknown option, or does not contain a default.
        ConfigError: other code has registered the name.

    >>> import dataclasses
    >>> from expunge.core.registry import METHODS
    >>> from expunge.methods import Method, get_method, register_method
    >>> @register_method("Example", guarantee="empirical", citation="docs/adding-a-method.md")
    ... @dataclasses.dataclass(frozen=True)
    ... class Example(Method):
    ...     scale: float = 0.1
    ...
    ...     def unlearn(self, task):
    ...         raise NotImplementedError
    >>> get_method("example", scale=0.2).scale
    0.2
    >>> METHODS.remove("Example")  # so that the registry is as before
    """
    if guarantee not in GUARANTEES:
        hint = unknown_name_hint(guarantee, GUARANTEES)
        raise MethodError(f"unknown guarantee {guarantee!r}", where=str(name), hint=hint)

    def add_class(cls: type[T]) -> type[T]:
        from .base import Method

        is_frozen = getattr(vars(cls).get("__dataclass_params__"), "frozen", False)
        if not issubclass(cls, Method) or not is_frozen:
            raise MethodError(
                f"{cls.__name__} is not a frozen dataclass that derives from Method",
                where=str(name),
                hint="first @register_method(...), then @dataclasses.dataclass(frozen=True), then class Name(Method)",
            )
        if trains != (cls.fit is not Method.fit):
            raise MethodError(
                f"{cls.__name__} has a fit of its own, so it needs trains=True"
                if not trains
                else f"{cls.__name__} has trains=True, but no fit of its own",
                where=str(name),
                hint="@register_method(..., trains=True) and def fit(self, records, split, architecture, ...)",
            )
        for field in options_of(cls):
            if field.init and field.default is field.default_factory is dataclasses.MISSING:
                shown = getattr(field.type, "__name__", field.type)
                raise MethodError(
                    f"option {field.name} has no default",
                    where=f"method {name}",
                    hint=f"give it one in the class {cls.__name__}: {field.name}: {shown} = ...",
                )
        check_space(name, space or {}, {field.name: field.default for field in options_of(cls)})
        cls.name, cls.guarantee, cls.citation, cls.trains, cls.corrects = name, guarantee, citation, trains, corrects
        cls.space = dict(space or {})
        facts = {"guarantee": guarantee, "citation": citation, "trains": trains, "corrects": corrects, "space": space}
        METHODS.add(name, cls, cls, facts)
        return cls

    return add_class


def method_names() -> list[str]:
    """Return the names of the registered methods, Retrain first. Nothing is imported.

    >>> from expunge.methods import method_names
    >>> method_names()[0], "FT" in method_names()
    ('Retrain', True)
    """
    return sorted(METHODS.names(), key=lambda name: (name != "Retrain", name.casefold()))


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Args:
        name: a registered name (case is ignored), or `package.module:Class`.

    Raises:
        MethodError: the method is unknown; the hint has the nearest name.
        TrustError: `package.module:Class` is code that you have not agreed to run; it was not imported.

    >>> from expunge.methods import method_class
    >>> method_class("ft").name, method_class("ft").guarantee
    ('FT', 'empirical')
    """
    found: type[Method] = METHODS.get(name)
    return found


def options_of(cls: type[Method]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the hyper-parameters of a method, in the order of its dataclass."""
    return dataclasses.fields(cast(Any, cls))


def get_method(name: str, **options: Any) -> Method:
    """Return a method with the given hyper-parameters.

    Args:
        name: a registered name (case is ignored), or `package.module:Class`.
        options: hyper-parameters; the others have their defaults.

    Raises:
        MethodError: the method or an option is unknown (the hint has the nearest name), a value has the wrong type
            or is out of range, or the other options leave the option without effect.
        TrustError: `package.module:Class` is code that you have not agreed to run; it was not imported.

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
        values[key] = coerce_option(cls.name, fields[key], value)
    with naming("method", cls.name, cls, MethodError):  # its __post_init__
        return cls(**values)


def method_table() -> list[dict[str, Any]]:
    """Return one dictionary per method: name, guarantee and its meaning, citation, summary, options with defaults.

    The sources of the methods are read; neither they nor torch are imported.

    >>> from expunge.methods import method_table
    >>> row = next(row for row in method_table() if row["name"] == "GA")
    >>> row["guarantee"], row["options"]["learning_rate"]
    ('empirical', 0.0001)
    """
    rows = []
    for name in method_names():
        guarantee, citation = read_facts(name)
        found = read_options(name)
        rows.append(
            {
                "name": name,
                "guarantee": guarantee,
                "meaning": GUARANTEES[guarantee],
                "citation": citation,
                "summary": found.docs[-1].split("\n\n")[0].replace("\n", " "),
                "options": {field.name: field.default for field in found.fields},
            }
        )
    return rows


def read_facts(name: str) -> tuple[str, str]:
    """The guarantee and the citation of a method; it is imported only if its decorator has no literals."""
    facts = METHODS.describe(name).facts
    if facts.get("guarantee") in GUARANTEES and isinstance(facts.get("citation"), str):
        return facts["guarantee"], facts["citation"]
    cls = method_class(name)
    return cls.guarantee, cls.citation


def read_options(name: str) -> ClassDefinition:
    """The options of a method and the docstrings of its classes; imported only if its source does not say them."""
    found = METHODS.describe_class(name)
    if found is not None and found.docs:
        return found
    cls = method_class(name)
    fields = tuple(FieldDefinition(field.name, str(field.type), field.default) for field in options_of(cls))
    docs = [
        inspect.cleandoc(base.__dict__.get("__doc__") or "") for base in reversed(cls.__mro__) if base is not object
    ]
    return ClassDefinition(fields, tuple(docs))
