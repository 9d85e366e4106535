"""The keys of a plan file (docs/formats/plan.md). Nothing here imports torch."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from expunge.core.files import PathLike

from .validation import Section
from .yaml_source import read_yaml


class Adjustment(Section):
    """Keys to set in the cells that match `when`."""

    when: dict[str, Any]
    set: dict[str, Any]


class Claim(Section):
    """A pre-registered claim: a score of a first group of cells compared with that of a second group.

    Attributes:
        name: short, unique in the plan.
        statement: the claim in words.
        score: built-in or one of `evaluation.scores`; with `gap:` before it, its distance to the reference of the same
            cell.
        where: labels that both groups share.
        compare: labels of the first and of the second group.
        expect: whether the first group's score is expected to be `lower` or `higher` than the second's.
        by: the minimum difference, in the units of the score.
        factor: multiplies the second group's score (0.2 and `lower`: the first must be below a fifth of the second).
        each: axes over whose labels the claim is tested separately; over all other axes it is tested jointly.
    """

    name: str
    statement: str
    score: str
    where: dict[str, Any] = pydantic.Field(default_factory=dict)
    compare: tuple[dict[str, Any], dict[str, Any]]
    expect: Literal["lower", "higher"]
    by: float = pydantic.Field(default=0.0, ge=0)
    factor: float = pydantic.Field(default=1.0, gt=0)
    each: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON values; a factor of 1 is left out."""
        return self.model_dump(mode="json", exclude={"factor"} if self.factor == 1 else None)


class PlanFile(Section):
    """The keys of a plan file; docs/formats/plan.md explains them."""

    name: str
    description: str = ""
    base: dict[str, Any] | str
    grid: dict[str, Any] = pydantic.Field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, Any]]] = pydantic.Field(default_factory=dict)
    adjust: tuple[Adjustment, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    reference: str = "Retrain"
    rerun: str | None = None
    columns: tuple[str, ...] = ()
    curves: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)
    passes_limit: float = pydantic.Field(default=0.1, gt=0)
    claims: tuple[Claim, ...] = ()


def is_plan(path: PathLike) -> bool:
    """Whether a YAML file is a plan, and not a configuration: it has one of the keys `grid`, `variants`, `base`.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.

    >>> from pathlib import Path
    >>> from expunge.experiments import is_plan
    >>> _ = Path("plan.yaml").write_text("{name: small, base: run.yaml, grid: {seed: [0, 1]}}")
    >>> _ = Path("run.yaml").write_text("{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}}")
    >>> is_plan("plan.yaml"), is_plan("run.yaml")
    (True, False)
    """
    value = read_yaml(path).value
    return isinstance(value, dict) and not {"grid", "variants", "base"}.isdisjoint(value)
