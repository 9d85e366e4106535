"""The search spaces of the registered methods contain the defaults and only options that the methods accept."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from expunge.core.errors import MethodError
from expunge.core.registry import METHODS
from expunge.methods import Method, get_method, method_class, method_names, register_method
from expunge.methods.registry import options_of
from expunge.methods.space import Choice, Domain, Range, draw_options, parse_space, read_space

#: Methods without a search space, and why: nothing of theirs moves the result towards retraining.
UNTUNED = {
    "Retrain": "it is the reference",
    "mask-logit": "it has no options",
    "mixed-privacy": "its options are those of the original's training",
    "patch": "it aims at a proof, not at the retrained model",
    "then": "its steps are other methods",
}
TUNED = [name for name in method_names() if name not in UNTUNED]


def extremes(domain: Domain) -> list[Any]:
    return list(domain.values) if isinstance(domain, Choice) else [domain.round(domain.low), domain.round(domain.high)]


def test_every_method_has_a_space_or_a_reason() -> None:
    assert [name for name in method_names() if not read_space(name)] == [n for n in method_names() if n in UNTUNED]


@pytest.mark.parametrize("name", TUNED)
def test_the_space_contains_the_defaults(name: str) -> None:
    defaults = {field.name: field.default for field in options_of(method_class(name))}
    for option, domain in read_space(name).items():
        assert defaults[option] in domain, option
        assert len(extremes(domain)) > 1, "there is something to search"


@pytest.mark.parametrize("name", TUNED)
def test_all_extremes_of_the_space_are_valid_together(name: str) -> None:
    """Ranges of options depend on each other, so all combinations of the extreme values are made."""
    space = read_space(name)
    for values in itertools.product(*(extremes(domain) for domain in space.values())):
        options, _ = method_class(name).drop_unused(dict(zip(space, values, strict=True)))
        get_method(name, **options)


@pytest.mark.parametrize("name", TUNED)
def test_draws_are_in_the_space_and_valid(name: str) -> None:
    space = read_space(name)
    for trial in range(30):
        options = draw_options(space, 0, name, trial)
        assert list(options) == list(space)
        assert all(options[option] in domain for option, domain in space.items())
        get_method(name, **method_class(name).drop_unused(options)[0])


def test_the_space_in_the_source_is_that_of_the_class() -> None:
    for name in method_names():
        assert read_space(name) == parse_space(name, method_class(name).space)


def test_log_ranges_are_uniform_in_the_logarithm() -> None:
    draws = [draw_options({"x": Range(1e-4, 1.0, log=True)}, 0, n)["x"] for n in range(2000)]
    below = [sum(draw < limit for draw in draws) / len(draws) for limit in (1e-3, 1e-2, 1e-1)]
    assert below == pytest.approx([0.25, 0.5, 0.75], abs=0.04)


def test_integer_ranges_and_choices_reach_all_values() -> None:
    space = parse_space("m", {"a": (1, 3), "b": ["x", "y"]})
    draws = [draw_options(space, 0, n) for n in range(100)]
    assert {draw["a"] for draw in draws} == {1, 2, 3}
    assert {draw["b"] for draw in draws} == {"x", "y"}
    assert all(type(draw["a"]) is int for draw in draws)


def test_another_option_does_not_change_the_draws_of_the_others() -> None:
    few, more = parse_space("m", {"a": (0.0, 1.0)}), parse_space("m", {"z": [1, 2], "a": (0.0, 1.0)})
    assert [draw_options(few, 0, n)["a"] for n in range(5)] == [draw_options(more, 0, n)["a"] for n in range(5)]


def test_booleans_are_not_numbers() -> None:
    assert True not in Choice((1, 2))
    assert True not in Range(0, 2, integer=True)
    assert 1 not in Choice((True, False))


@pytest.fixture
def registry() -> Iterator[None]:
    with METHODS.temporary():
        yield


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"scal": (0.0, 1.0)}, "unknown option 'scal'"),
        ({"scale": (0.5, 1.0)}, "does not contain its default"),
        ({"scale": (1.0, 0.0)}, "is empty"),
        ({"scale": (0.0, 1.0, "log")}, "not positive"),
        ({"scale": (0.0, 1.0, "sqrt")}, "not a search space"),
        ({"scale": []}, "not a search space"),
        ({"scale": 0.1}, "not a search space"),
        ({"scale": (0.0, float("inf"))}, "ends of a range"),
    ],
)
def test_a_wrong_space_is_refused_when_the_method_is_registered(
    registry: None, space: dict[str, Any], message: str
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Example(Method):
        scale: float = 0.1

        def unlearn(self, task: Any) -> None:
            raise NotImplementedError

    with pytest.raises(MethodError, match=message):
        register_method("Example", guarantee="empirical", citation="none", space=space)(Example)
