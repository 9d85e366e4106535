"""Mistakes in custom entries of every kind are named as such: which entry, what went wrong, where, and how to go on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Line
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.registry import CRITERIA, REGISTRIES
from expunge.core.registry import custom_code as module_of_blame
from expunge.core.registry.custom_code import find_custom_code, naming
from expunge.core.trust import gate
from expunge.sparsity import ScoringContext, compute_scores, prunable_weights, register_criterion

MISTAKES = '''
import dataclasses
import torch
from expunge.core.errors import RequestError
from expunge.data import Records, register_source
from expunge.evaluation import register_score
from expunge.methods import FineTuning, Method, register_method
from expunge.sparsity import (
    Granularity, register_criterion, register_granularity, register_schedule, register_scope
)


@register_method("arity", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Arity(FineTuning):
    """The objective takes too few arguments."""

    epochs: int = 1

    def unlearn(self, task):
        self.fine_tune(task, on="retain", objective=lambda logits: logits.mean())


@register_method("returns", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Returns(Method):
    """Returns a number."""

    def unlearn(self, task):
        return 3


@register_method("picky", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Picky(Method):
    """Fails when it is made."""

    alpha: float = 0.5

    def __post_init__(self):
        assert self.alpha > 1, "alpha is small"

    def unlearn(self, task):
        """Never called."""


@register_method("asks", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Asks(Method):
    """Fails when it is asked what it supports."""

    def unsupported_reason(self, model, records):
        return model.no_such_layer

    def unlearn(self, task):
        """Never called."""


@register_criterion("flat")
def flat(context):
    """Other shapes."""
    return {name: weight.detach().flatten()[:5] for name, weight in context.weights.items()}


@register_criterion("missing")
def missing(context):
    """No layer."""
    return {}


@register_criterion("fails")
def fails(context):
    """Fails."""
    return {name: weight.no_such_attribute for name, weight in context.weights.items()}


@register_scope("nothing")
def nothing(pools, sparsity):
    """Nothing."""


@register_granularity("numbers", unit_name="weights", counts_weights=True)
class Numbers(Granularity):
    """Floats."""

    def select(self, ranking, sparsity, scope):
        return {name: torch.ones(2) for name in ranking.context.weights}


@register_schedule("unfinished", starts_from="trained", scores="dense", trains=False)
def unfinished(run):
    """No result."""


@register_schedule("stumbles", starts_from="trained", scores="dense", trains=False)
def stumbles(run):
    """Wrong arguments for expunge."""
    run.make_mask(run.trained.model, sparsity="many")


@register_source("empty-handed")
def empty_handed(directory):
    """Nothing."""


@register_source("careless")
def careless(directory):
    """Fails."""
    return [][0]


@register_score("Division")
def division(inputs):
    """Fails."""
    return 1 / 0
'''
METHOD, SPARSE = "method={name: 'mine:%s'}", "sparsity={layers: [linear], schedule: one-shot, %s}"


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(MISTAKES.splitlines(), 1) if text in line)


@pytest.fixture
def mine(line: Line) -> Iterator[Line]:
    (line.directory / "mine.py").write_text(MISTAKES)
    agreed = dict(gate._AGREED)
    with contextlib.ExitStack() as stack:
        for registry in REGISTRIES.values():
            stack.enter_context(registry.temporary())
        yield line
    sys.modules.pop("mine", None)
    gate._AGREED.clear()
    gate._AGREED.update(agreed)


CASES = {
    "arity": (METHOD % "Arity", "method arity (", "its code raised TypeError", "self.fine_tune(task",
              "raised in expunge/training/epochs/steps.py"),
    "returns": (METHOD % "Returns", "method returns: unlearn returned a value of type int", "", "", "return nothing"),
    "picky": (METHOD % "Picky", "method picky (", "its code raised AssertionError: alpha is small", "assert self", ""),
    "asks": (METHOD % "Asks", "custom code raised AttributeError", "no_such_layer", "return model.no_such", ""),
    "flat": (SPARSE % "criterion: 'mine:flat'", "criterion mine:flat", "have the shape (5,), not (12, 64)", "",
             "a tensor for each weight, in its shape"),
    "missing": (SPARSE % "criterion: 'mine:missing'", "criterion mine:missing", "returned no scores for", "", ""),
    "fails": (SPARSE % "criterion: 'mine:fails'", "criterion mine:fails (", "AttributeError", "weight.no_such", ""),
    "scope": (SPARSE % "scope: 'mine:nothing'", "scope mine:nothing: returned a value of type NoneType", "", "",
              "bool tensors"),
    "granularity": (SPARSE % "granularity: 'mine:Numbers'", "granularity mine:Numbers: returned torch.float32", "", "",
                    "True where kept"),
    "schedule": ("sparsity={layers: [linear], schedule: 'mine:unfinished'}", "schedule mine:unfinished",
                 "returned a value of type NoneType, not a Pruned", "", "run.finish"),
    "stumbles": ("sparsity={layers: [linear], schedule: 'mine:stumbles'}", "schedule mine:stumbles (", "TypeError",
                 "run.make_mask", "raised in expunge/sparsity/"),
    "source": ("data={source: 'mine:empty_handed'}", "data source mine:empty_handed",
               "returned a value of type NoneType, not Records", "", "return expunge.data.Records("),
    "careless": ("data={source: 'mine:careless'}", "data source mine:careless (", "its code raised IndexError",
                 "return [][0]", "EXPUNGE_DEBUG=1"),
    "score": ("evaluation={scores: ['mine:division']}", "score mine:division (", "its code raised ZeroDivisionError",
              "return 1 / 0", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named(case: str, mine: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    override, *says, source, hint = CASES[case]
    # the names must stand in the file that the owner starts
    text = (mine.directory / "config.yaml").read_text()
    key, value = override.split("=", 1)
    kept = [row for row in text.splitlines() if not row.startswith(f"{key}:")]
    (mine.directory / "config.yaml").write_text("\n".join([*kept, f"{key}: {value}"]) + "\n")
    result = mine("forget", "config.yaml")
    assert result.code in (1, 2), result.err
    for part in (*says, hint):
        assert part in result.err
    assert "bug of expunge" not in result.err
    assert "Traceback" not in result.err
    if source:
        assert f"mine.py:{line_of(source)}" in result.err
    found = mine("check", "config.yaml")
    assert found.code in (0, 1), found.err
    assert "bug of expunge" not in found.out + found.err
    if case in ("arity", "careless"):
        monkeypatch.setenv("EXPUNGE_DEBUG", "1")
        assert "Traceback" in mine("forget", "config.yaml").err


def test_an_option_without_a_default(mine: Line) -> None:
    text = MISTAKES.replace("alpha: float = 0.5", "alpha: float").replace("self.alpha > 1", "self.alpha")
    (mine.directory / "mine.py").write_text(text)
    config = mine.directory / "config.yaml"
    config.write_text(
        config.read_text().replace("method: {name: FT, options: {epochs: 1}}", "method: {name: 'mine:Picky'}")
    )
    found = mine("check", "config.yaml")
    assert found.code == 1
    assert "method picky: option alpha has no default" in found.out + found.err
    assert "alpha: float = ..." in found.out + found.err


def test_a_method_without_its_default_in_a_plan(mine: Line) -> None:
    """`check` of a plan reports it for the cells that name it; the other cells are checked."""
    plan = "name: small\nbase:\n  data: {source: digits}\n  model: {name: mlp}\n  training: {recipe: one-cycle}\n"
    plan += "  forget: {by: class, index: 3}\ngrid:\n  method: [{name: Retrain}, {name: 'mine:Picky'}]\n"
    (mine.directory / "plan.yaml").write_text(plan)
    found = mine("check", "plan.yaml")
    assert found.code == 1, found.err
    assert "ok       method Retrain: 1 cell" in found.out
    assert "alpha is small" in found.out


# ---- the one place that decides


def test_frames() -> None:
    """The innermost frame outside expunge and libraries is the cause, wherever the exception is raised."""

    def custom() -> None:
        compute_scores("magnitude", 3)  # type: ignore[arg-type]

    with pytest.raises(AttributeError) as caught:
        custom()
    assert find_custom_code(caught.value) == f"{Path(__file__).resolve()}:{custom.__code__.co_firstlineno + 1}"
    with pytest.raises(FileNotFoundError) as missing:
        Path("nowhere").read_text()
    trace = missing.value.__traceback__
    assert trace is not None
    library_frames = missing.value.with_traceback(trace.tb_next)
    assert find_custom_code(library_frames) is None, "no frame of custom code"


def test_code_of_expunge_is_not_blamed_on_others() -> None:
    with pytest.raises(ZeroDivisionError), naming("method", "FT", compute_scores):
        raise ZeroDivisionError
    with pytest.raises(MemoryError), naming("method", "mine", test_frames):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), naming("method", "mine", test_frames):
        raise KeyboardInterrupt
    with pytest.raises(MaskError, match="as it was"), naming("method", "mine", test_frames):
        raise MaskError("as it was")
    says = r"method mine \(.*test_custom_code_errors.py:\d+\): its code raised KeyError"
    with pytest.raises(ConfigError, match=says), naming("method", "mine", test_frames):
        raise KeyError("x")


def test_installed_plug_ins_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in a directory of libraries is custom if a plug-in, a registered entry or the owner names its package."""
    monkeypatch.setattr(module_of_blame.sysconfig, "get_path", lambda key: str(tmp_path))
    (tmp_path / "a_plug_in.py").write_text("def fail():\n    raise ValueError('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import a_plug_in  # type: ignore[import-not-found]

    def find() -> str | None:
        try:
            a_plug_in.fail()
        except ValueError as error:
            trace = error.__traceback__
            assert trace is not None
            return find_custom_code(error.with_traceback(trace.tb_next))
        raise AssertionError

    assert find() is None
    with CRITERIA.temporary():
        CRITERIA.add("from-a-plug-in", object(), a_plug_in.fail)
        assert find() == f"{tmp_path / 'a_plug_in.py'}:2"
    sys.modules.pop("a_plug_in")


# ---- causes


def test_a_criterion_that_reads_records_says_so() -> None:
    model = nn.Linear(4, 3)
    context = ScoringContext(model, prunable_weights(model, ("linear",)))
    with CRITERIA.temporary():

        @register_criterion("forgetful")
        def forgetful(context: ScoringContext) -> dict[str, torch.Tensor]:
            context.require_batches("forgetful")
            return {}

        with pytest.raises(MaskError, match="its registration does not say so") as caught:
            compute_scores("forgetful", context)
    assert caught.value.hint == "@register_criterion(..., needs_data=True)"
    with pytest.raises(MaskError, match="ranks weights by their gradients"):
        compute_scores("SNIP", context)


def test_nan_is_blamed_on_the_weights_only_if_they_are_not_finite() -> None:
    model = nn.Linear(4, 3)
    context = ScoringContext(model, prunable_weights(model, ("linear",)))
    with CRITERIA.temporary():

        @register_criterion("logarithm")
        def logarithm(context: ScoringContext) -> dict[str, torch.Tensor]:
            return {name: (weight.detach() * 0 - 1).log() for name, weight in context.weights.items()}

        with pytest.raises(MaskError, match=r"criterion logarithm gives NaN .* every weight is finite: its formula"):
            compute_scores("logarithm", context)
        with torch.no_grad():
            model.weight[0, 0] = float("inf")
        with pytest.raises(
            MaskError, match=r"criterion logarithm gives NaN or infinite scores: the weights are damaged"
        ):
            compute_scores("logarithm", context)
