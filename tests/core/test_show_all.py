"""The `repr` of every dataclass of the package is short, never raises, and shows no record id or control character."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import expunge
from expunge.core.errors import ConfigError

LINES, CHARACTERS = 16, 1_300
ID = "person-of-record"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\n" + 400 * "x"
IDS = [f"{ID}-{number}" for number in range(500)]


def dataclasses_of_package() -> Iterator[type]:
    """Every dataclass in any module but those of the methods, whose reprs are plain hyper-parameters."""
    found = set()
    for info in pkgutil.walk_packages(expunge.__path__, "expunge."):
        if info.name.endswith("__main__") or info.name.startswith("expunge.methods"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ConfigError as error:  # a module around a package of an extra that is not installed
            if "pip install" not in (error.hint or ""):
                raise
            continue
        for value in vars(module).values():
            is_here = inspect.isclass(value) and value.__module__ == info.name and not inspect.isabstract(value)
            if is_here and dataclasses.is_dataclass(value):
                found.add(value)
    yield from sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


KINDS = [kind for kind in dataclasses_of_package() if not kind.__name__.startswith("_")]


def large(annotation: str) -> Any:
    """A large and hostile value of about the annotated type."""
    kind = annotation.replace("typing.", "")
    if kind.startswith(("Ids", "NDArray[np.str_]")):
        return np.asarray(IDS)
    for start, value in (
        ("NDArray", np.ones((300, 40))),
        ("Array", np.ones((300, 40))),
        ("torch.Tensor", torch.ones(300, 40)),
        ("Tensor", torch.ones(300, 40)),
        ("nn.Module", torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(30)))),
        ("str", HOSTILE),
        ("bool", True),
        ("int", 10**50),
        ("float", 1 / 3),
        ("Path", Path("/" + HOSTILE.replace("\n", ""))),
        ("Interval", (0.25, 0.75)),
        ("tuple[int", tuple(range(500))),
        ("tuple[float", tuple(number / 7 for number in range(500))),
        ("tuple[str", (HOSTILE,) * 500),
        ("tuple", (HOSTILE, torch.ones(300, 40)) * 250),
        ("list", [torch.ones(300, 40)] * 500),
        ("frozenset", frozenset(IDS)),
        ("set", set(IDS)),
        ("Mapping", {f"{HOSTILE}{number}": torch.ones(300, 40) for number in range(500)}),
        ("dict", {f"{HOSTILE}{number}": {"record_ids": IDS} for number in range(500)}),
    ):
        if kind.startswith(start):
            return value
    return np.ones((300, 40))


def make(kind: type, value_of: Any) -> Any:
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, value_of(str(field.type)))
    return made


def check(text: str) -> None:
    """The hint for a new class: give it `__repr__ = repr_fields`, of `expunge.core.show`."""
    assert len(text) <= CHARACTERS, f"{len(text)} characters; a class with long fields has `__repr__ = repr_fields`"
    assert text.count("\n") < LINES
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert ID not in text


def test_there_are_many() -> None:
    assert len(KINDS) > 80


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.removeprefix('expunge.')}.{kind.__name__}")
def test_repr_of_large_and_hostile_values(kind: type) -> None:
    made = make(kind, large)
    check(repr(made))
    assert repr(made) == repr(make(kind, large)) == str(made)
    if hasattr(made, "_repr_html_"):
        assert "<script" not in made._repr_html_()
        assert ID not in made._repr_html_()
    assert not re.search(r"(tensor|array|Sequential)\(", repr(made))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.removeprefix('expunge.')}.{kind.__name__}")
def test_repr_without_fields(kind: type) -> None:
    """A debugger asks for the `repr` of an object whose constructor has failed."""
    if kind.__repr__.__module__.startswith("expunge.core.show"):
        made = object.__new__(kind)
        check(repr(made))
        wrong = repr(make(kind, lambda _: IDS))  # every field has a wrong type
        assert len(wrong) <= CHARACTERS
        if hasattr(made, "_repr_html_"):
            check(re.sub(r"<[^>]*>", "", made._repr_html_()))
