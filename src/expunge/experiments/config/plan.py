"""A plan: one YAML file that spans a grid of runs and says, before they are run, what they are to show.

The file is in docs/plans.md. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.core.files import PathLike
from expunge.core.hashing import hash_json
from expunge.core.reading.limits import PLAN_AXES, PLAN_CELLS, PLAN_NODES, PLAN_SETTINGS
from expunge.core.trust import Trust
from expunge.evaluation.score import ORDER as SCORE_NAMES

from .run_config import RunConfig, apply_overrides, check_config, set_dotted
from .selections import label_of, matches, wanted_labels
from .validation import Origins, Section, check, known_keys, section_at
from .yaml_source import KeyPath, YamlText, read_yaml


class AdjustBlock(Section):
    """Keys that are set in the cells that match `when`."""

    when: dict[str, Any]
    set: dict[str, Any]


class Claim(Section):
    """What the plan expects: a score of the first group of cells against that of the second.

    Attributes:
        name: short, unique in the plan.
        statement: the claim in words.
        score: one of `SCORE_NAMES`, or `gap:` and one of them (distance to the reference of the same cell).
        where: labels that both groups share.
        compare: labels of the first and of the second group.
        expect: whether the first group's score is to be `lower` or `higher` than the second's.
        by: how much lower or higher it must be at least, in the units of the score.
        factor: the second group's score counts this many times (0.2 and `lower`: the first is to be below a fifth).
        each: axes over whose labels the claim is checked one by one; over all others it is checked together.
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


class _PlanFile(Section):
    name: str
    description: str = ""
    base: dict[str, Any] | str
    grid: dict[str, Any] = pydantic.Field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, Any]]] = pydantic.Field(default_factory=dict)
    adjust: tuple[AdjustBlock, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    reference: str = "Retrain"
    again: str | None = None
    columns: tuple[str, ...] = ()
    passes_limit: float = pydantic.Field(default=0.1, gt=0)
    claims: tuple[Claim, ...] = ()


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of the grid: labels, and what each label sets (dotted keys)."""

    name: str
    settings: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, KeyPath]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.settings)

    @property
    def role(self) -> str:
        """What it is to a table: `replicate` (seeds, averaged over), `method` (rows), `sparsity` (columns), `case`."""
        keys = {key for settings in self.settings.values() for key in settings}
        if keys and all(key.rpartition(".")[2] == "seed" for key in keys):
            return "replicate"
        first = {key.partition(".")[0] for key in keys}
        if first == {"leakage"}:
            return "method"
        return first.pop() if first in ({"method"}, {"sparsity"}) else "case"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of the plan.

    Attributes:
        labels: axis name to label.
        config: the checked configuration; `forget` and `method` are set.
        reference: index of the cell that this one is compared with (its own for a reference).
    """

    labels: Mapping[str, str]
    config: RunConfig
    reference: int

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A checked plan.

    Attributes:
        path: its file.
        overrides: the overrides it was loaded with.
        again: label of the cells that repeat the reference with another order of records: what the normalised overlap
            of topologies is measured with; None: there are none.
        columns: score names of the tables, paper A's where empty.
        passes_limit: largest share of the reference's passes that an approximate method may use.
        hash: over the cells' configurations, the axes, the limit and the claims (not over where data lie).
        trust: which code the plan may name; no key of a file changes it.
    """

    name: str
    description: str
    path: Path
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    reference: str
    again: str | None
    columns: tuple[str, ...]
    passes_limit: float
    claims: tuple[Claim, ...]
    hash: str
    trust: Trust = dataclasses.field(default_factory=Trust)

    @property
    def results_path(self) -> Path:
        """Where the result file belongs: beside the plan."""
        return self.path.with_name(f"{self.path.stem}.results.json")


def load_plan(path: PathLike, overrides: Iterable[str] = (), *, trust: Sequence[str] | Trust = ()) -> Plan:
    """Read, expand and check a plan.

    Args:
        path: the YAML file. Whoever starts it agrees to the modules in its directory that its cells name.
        overrides: `dotted.key=value`, set last in every cell (`data.dir=...`, `runtime.device=cuda`).
        trust: top-level packages that the plan may name.

    Raises:
        ConfigError: with file, line and key.
    """
    overrides = tuple(overrides)
    text = read_yaml(path)
    if not isinstance(text.value, dict):
        raise ConfigError("a plan is a mapping of keys to values", where=text.name)
    file = check(_PlanFile, text.value, {(): (text, ())}, what="the plan")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file.name):
        raise ConfigError("a plan's name is letters, digits, '.', '-' and '_'", where=text.where(("name",)))
    axes = (*_grid_axes(file, text), *_variant_axes(file, text))
    duplicates = [name for name, count in Counter(axis.name for axis in axes).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"the axis {duplicates[0]!r} is in grid and in variants", where=text.where(("variants", duplicates[0]))
        )
    _check_size(axes, text)
    _check_selections(file, axes, text)
    for index, column in enumerate(file.columns):
        if column not in SCORE_NAMES:
            where = text.where(("columns", index))
            raise ConfigError(f"unknown score {column!r}", where=where, hint=unknown_name_hint(column, SCORE_NAMES))
    cells = _with_references(list(_cells(file, axes, overrides, text)), file.reference, axes, text)
    if file.again is not None and not any(file.again in cell.labels.values() for cell in cells):
        known = [label for axis in axes if axis.role == "method" for label in axis.labels]
        hint = unknown_name_hint(file.again, known)
        raise ConfigError(f"no method is labelled {file.again!r}", where=text.where(("again",)), hint=hint)
    body = {
        "cells": [{"labels": c.labels, "config": portable(c.config)} for c in cells],
        "reference": file.reference,
        "passes_limit": file.passes_limit,
        "claims": [claim.to_json() for claim in file.claims],
        **({"again": file.again} if file.again else {}),
        **({"columns": file.columns} if file.columns else {}),
    }
    return Plan(
        file.name, file.description.strip(), Path(path), overrides, axes, tuple(cells), file.reference,
        file.again, file.columns, file.passes_limit, file.claims, hash_json(body),
        Trust.from_value(trust).for_file(path, [cell.config.model_dump() for cell in cells]),
    )  # fmt: skip


def portable(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values: what differs from the defaults, without what differs between machines.

    Data directory and output are left out. Keys at their defaults are too, so that a release that adds a key leaves the
    hash of a plan as it was.
    """
    body = config.model_dump(mode="json", exclude_defaults=True)
    body["data"].pop("dir", None)
    body.pop("output", None)
    return body


def _grid_axes(file: _PlanFile, text: YamlText) -> Iterator[Axis]:
    for key, values in file.grid.items():
        at: KeyPath = ("grid", key)
        parts = tuple(key.split("."))
        above = section_at(RunConfig, parts[:-1])
        free = above is None or above.model_config.get("extra") == "allow"
        if not (parts[-1] in known_keys(RunConfig, parts[:-1]) or (free and parts[0] in RunConfig.model_fields)):
            hint = unknown_name_hint(parts[-1], known_keys(RunConfig, parts[:-1]))
            raise ConfigError(f"unknown key {key!r}", where=text.where(at), hint=hint)
        if isinstance(values, dict):
            found = {str(label): value for label, value in values.items()}
            places: dict[str, KeyPath] = {label: (*at, label) for label in found}
        elif isinstance(values, list):
            found, places = {}, {}
            for index, value in enumerate(values):
                label = label_of(value)
                if label in found:
                    raise ConfigError(f"the value {label} stands twice", where=text.where((*at, index)))
                found[label], places[label] = value, (*at, index)
        else:
            raise ConfigError("an axis is a list of values, or labels with values", where=text.where(at))
        if not found:
            raise ConfigError(f"the axis {key!r} has no values", where=text.where(at))
        yield Axis(key, {label: {key: value} for label, value in found.items()}, places)


def _variant_axes(file: _PlanFile, text: YamlText) -> Iterator[Axis]:
    for name, variants in file.variants.items():
        if not variants:
            raise ConfigError(f"the axis {name!r} has no values", where=text.where(("variants", name)))
        yield Axis(name, variants, {label: ("variants", name, label) for label in variants})


def _check_selections(file: _PlanFile, axes: tuple[Axis, ...], text: YamlText) -> None:
    by_name = {axis.name: axis for axis in axes}
    places: list[tuple[Mapping[str, Any], KeyPath]] = [(e, ("exclude", i)) for i, e in enumerate(file.exclude)]
    places += [(block.when, ("adjust", i, "when")) for i, block in enumerate(file.adjust)]
    for i, claim in enumerate(file.claims):
        places += [(claim.where, ("claims", i, "where"))]
        places += [(group, ("claims", i, "compare", side)) for side, group in enumerate(claim.compare)]
        places += [({axis: list(by_name[axis].labels) if axis in by_name else []}, ("claims", i, "each"))
                   for axis in claim.each]  # fmt: skip
        if claim.score.removeprefix("gap:") not in SCORE_NAMES:
            hint = unknown_name_hint(claim.score, SCORE_NAMES)
            raise ConfigError(f"unknown score {claim.score!r}", where=text.where(("claims", i, "score")), hint=hint)
        if claim.compare[0] == claim.compare[1]:
            raise ConfigError("a claim compares two different groups", where=text.where(("claims", i, "compare")))
        if claim.name in [other.name for other in file.claims[:i]]:
            raise ConfigError(f"two claims are named {claim.name!r}", where=text.where(("claims", i, "name")))
    for selection, at in places:
        for name, wanted in selection.items():
            if name not in by_name:
                hint = unknown_name_hint(name, by_name)
                raise ConfigError(f"the plan has no axis {name!r}", where=text.where((*at, name)), hint=hint)
            for label in wanted_labels(wanted):
                if label not in by_name[name].settings:
                    hint = unknown_name_hint(label, by_name[name].labels)
                    raise ConfigError(f"the axis {name} has no {label!r}", where=text.where((*at, name)), hint=hint)


def _check_size(axes: tuple[Axis, ...], text: YamlText) -> None:
    """Count the grid, before a cell is made.

    Raises:
        ConfigError: there are more axes, cells or settings than the limits.
    """
    if len(axes) > PLAN_AXES:
        raise ConfigError(f"a plan of {len(axes)} axes; at most {PLAN_AXES} are read", where=text.where(("grid",)))
    cells = math.prod(len(axis.labels) for axis in axes)
    PLAN_CELLS.check(cells, "the grid has", where=text.where(("grid",)), error=ConfigError)
    PLAN_NODES.check(cells * len(text.lines), "makes", where=text.where(("grid",)), error=ConfigError)
    for axis in axes:
        for label, settings in axis.settings.items():
            if len(settings) > PLAN_SETTINGS:
                raise ConfigError(
                    f"the label {label!r} sets {len(settings)} keys; at most {PLAN_SETTINGS} are read",
                    where=text.where(axis.places[label]),
                )


def _cells(
    file: _PlanFile, axes: tuple[Axis, ...], overrides: tuple[str, ...], text: YamlText
) -> Iterator[tuple[dict[str, str], RunConfig]]:
    if isinstance(file.base, str):
        base_text = read_yaml(Path(text.name).parent / file.base)
        base, above = base_text.value, ()
        if not isinstance(base, dict):
            raise ConfigError("a configuration is a mapping of keys to values", where=base_text.name)
        cells = math.prod(len(axis.labels) for axis in axes)
        PLAN_NODES.check(cells * len(base_text.lines), "makes", where=base_text.name, error=ConfigError)
    else:
        base_text, base, above = text, file.base, ("base",)  # type: ignore[assignment]
    found = 0
    for choice in itertools.product(*(axis.labels for axis in axes)):
        labels = {axis.name: label for axis, label in zip(axes, choice, strict=True)}
        if any(matches(labels, rule) for rule in file.exclude):
            continue
        values = copy.deepcopy(base)
        origins: Origins = {(): (base_text, above)}
        for axis in axes:
            at = axis.places[labels[axis.name]]
            variant = at[0] == "variants"
            for key, value in axis.settings[labels[axis.name]].items():
                set_dotted(values, key, value, origins, (text, (*at, key) if variant else at))
        for i, block in enumerate(file.adjust):
            if matches(labels, block.when):
                for key, value in block.set.items():
                    set_dotted(values, key, value, origins, (text, ("adjust", i, "set", key)))
        apply_overrides(values, overrides, origins)
        config = check_config(values, origins)
        for needed in ("forget", "method"):
            if getattr(config, needed) is None and config.leakage is None:
                raise ConfigError(f"a cell of the plan has no {needed}: {labels}", where=text.where(("grid",)))
        found += 1
        yield labels, config
    if not found:
        raise ConfigError("every cell of the grid is excluded", where=text.where(("exclude",)))


def _with_references(
    found: list[tuple[dict[str, str], RunConfig]], reference: str, axes: tuple[Axis, ...], text: YamlText
) -> list[Cell]:
    """Pair every cell with the reference of the same run: by the label of a method axis, else by the method's name."""
    labelled = [axis.name for axis in axes if axis.role == "method" and reference in axis.labels]
    references: dict[str, int] = {}
    situations = []
    for index, (labels, config) in enumerate(found):
        body = portable(config)
        method = body.pop("method", {"name": ""})
        situations.append(hash_json(body))
        if config.leakage is not None:
            continue
        if (
            reference in [labels[a] for a in labelled]
            if labelled
            else method["name"].casefold() == reference.casefold()
        ):
            if situations[-1] in references:
                other = found[references[situations[-1]]][0]
                raise ConfigError(
                    f"two cells are the reference of the same runs: {other} and {labels}",
                    where=text.where(("grid",)),
                    hint=f"exclude one of them; options of other methods belong into the method's own block, "
                    f"so that {reference} is not repeated",
                )
            references[situations[-1]] = index
    cells = []
    for index, ((labels, config), situation) in enumerate(zip(found, situations, strict=True)):
        if config.leakage is not None:
            cells.append(Cell(labels, config, index))
            continue
        if situation not in references:
            raise ConfigError(
                f"no cell runs {reference} for the comparison of {labels}",
                where=text.where(("grid",)),
                hint=f"add {reference} to the methods, or name another reference",
            )
        cells.append(Cell(labels, config, references[situation]))
    return cells
