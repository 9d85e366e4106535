"""The pages on methods, criteria, scores and sources list the fields that the classes have."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterable

import pytest
from pages import DOCS, first_table

from expunge.core.errors import ConfigError
from expunge.core.outcome import Cost
from expunge.data.records import Records
from expunge.evaluation import Parts, Predictions, ScoreInputs
from expunge.methods import FineTuning, Method, Task
from expunge.sparsity import ScoringContext
from expunge.training import Steps


def _public(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def _attributes(cls: type) -> set[str]:
    """Fields of a dataclass, and properties."""
    computed = {k for k, v in vars(cls).items() if isinstance(v, (property, functools.cached_property))}
    return _public(computed | {field.name for field in dataclasses.fields(cls)})


def _after(page: str, before: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8").partition(before)[2]


def _listed(page: str, before: str) -> set[str]:
    """The names in the first column of the table after a line that contains `before`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    rows = first_table(text.partition(before)[2])
    assert rows[0][0] == "field"
    return {name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[0])}


def test_the_tables_of_fields_are_those_of_the_classes() -> None:
    task = {field.name for field in dataclasses.fields(Task)}
    assert _listed("adding-a-method.md", "### The fields of a task") == _public(task)
    assert _listed("adding-a-criterion.md", "a `ScoringContext`:") == _attributes(ScoringContext)
    inputs = {name for name, value in vars(ScoreInputs).items() if isinstance(value, property)}
    assert _listed("adding-a-score.md", "What a `ScoreInputs` has") == inputs | _public(vars(ScoreInputs()))
    assert _listed("adding-a-score.md", "`inputs.parts` is a `Parts`") == _attributes(Parts)
    assert _listed("adding-a-score.md", "Each part is a `Predictions`") == _attributes(Predictions)
    assert _listed("data.md", "The fields of `Records`") == {field.name for field in dataclasses.fields(Records)}
    cost = next(row for row in first_table(_after("adding-a-score.md", "What a `ScoreInputs` has")) if "cost" in row[0])
    assert set(re.findall(r"`(\w+)`", cost[2])) == _attributes(Cost)


def test_the_needs_of_the_fields_are_those_that_the_inputs_ask_for() -> None:
    for row in first_table(_after("adding-a-score.md", "What a `ScoreInputs` has"))[1:]:
        for name in re.findall(r"`(\w+)`", row[0]):
            if row[1] != "none":
                with pytest.raises(ConfigError) as caught:
                    getattr(ScoreInputs(), name)
                assert f"needs=({row[1].strip('`')!r},)" in str(caught.value)
            else:
                getattr(ScoreInputs(), name)


def test_what_a_method_declares_is_on_the_page() -> None:
    rows = first_table(_after("adding-a-method.md", "### What is declared on the class"))[1:]
    written = {"unlearn", "forget", "fit", "trains"}  # explained in sections of their own
    assert {row[0].strip("`").partition("(")[0] for row in rows} == _public(vars(Method)) - written


def test_the_helpers_and_hooks_of_the_methods_page_exist() -> None:
    text = (DOCS / "adding-a-method.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btask\.(\w+)", text))
    assert {"fit", "read", "make_batches", "seed"} <= named
    assert named <= set(dir(Task)) | {field.name for field in dataclasses.fields(Task)}
    hooks = {
        row[0].strip("`") for row in first_table(text.partition("| hook |")[1] + text.partition("| hook |")[2])[1:]
    }
    settings = {"batch_norm", "passes", "optimiser", "order", "restriction", "keep_last_good"}
    assert hooks == {field.name for field in dataclasses.fields(Steps)} - settings
    assert all(f"`{name}`" in text for name in settings - {"batch_norm"})
    assert hooks - {"before_epoch", "after_epoch"} <= set(inspect.signature(FineTuning.fine_tune).parameters)
